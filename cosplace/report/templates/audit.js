// Shows one pair at a time, and keeps verdicts in the browser until they are exported.
//
// The page works without this script: it then shows all pairs.  Nothing is sent anywhere.
(() => {
  const audit = document.getElementById("audit");
  const pairs = [...document.querySelectorAll(".audited")];
  const choices = [...document.querySelectorAll("[data-verdict]")];
  const who = document.getElementById("who");
  const storageKey = `cosplace-audit-${audit.dataset.key}`;
  const keys = { y: "same", n: "different", u: "unsure" };
  let verdicts = {}; // by query and photo, and their contents
  let current = 0;
  let stored = true;

  const idOf = ({ dataset: { query, photo, querySha256, photoSha256 } }) =>
    JSON.stringify([query, photo, querySha256, photoSha256]);
  const verdictOf = (pair) => (Object.hasOwn(verdicts, idOf(pair)) ? verdicts[idOf(pair)] : null);

  function load() {
    try {
      const saved = JSON.parse(localStorage.getItem(storageKey) ?? "{}");
      if (saved && typeof saved.verdicts === "object") verdicts = saved.verdicts ?? {};
      if (typeof saved.who === "string") who.value = saved.who;
    } catch {
      stored = false; // the browser does not keep data of files
    }
  }

  function save() {
    try {
      localStorage.setItem(storageKey, JSON.stringify({ verdicts, who: who.value }));
    } catch {
      stored = false;
    }
  }

  function show(index) {
    current = Math.min(Math.max(index, 0), pairs.length - 1);
    pairs.forEach((pair, number) => { pair.hidden = number !== current; });
    const verdict = verdictOf(pairs[current])?.verdict;
    for (const choice of choices) choice.setAttribute("aria-pressed", String(choice.dataset.verdict === verdict));
    document.getElementById("previous").disabled = current === 0;
    document.getElementById("next").disabled = current === pairs.length - 1;
    document.getElementById("place").textContent = `pair ${current + 1} of ${pairs.length}`;
    const done = pairs.map(verdictOf).filter(Boolean);
    const count = (name) => done.filter((one) => one.verdict === name).length;
    document.getElementById("counts").textContent =
      `${count("same")} same, ${count("different")} different, ${count("unsure")} unsure`;
    document.getElementById("export").disabled = done.length === 0;
    say(done.length === pairs.length ? "All pairs have a verdict. Export them." : "");
  }

  function say(text) {
    const warning = stored ? "" : " This browser keeps nothing: export before you close the page.";
    document.getElementById("message").textContent = (text + warning).trim();
  }

  function judge(verdict) {
    const pair = pairs[current];
    verdicts[idOf(pair)] = { verdict, who: who.value.trim(), when: new Date().toISOString().slice(0, 19) + "Z" };
    save();
    const next = pairs.findIndex((one, number) => number > current && !verdictOf(one));
    const left = next >= 0 ? next : pairs.findIndex((one) => !verdictOf(one));
    show(left >= 0 ? left : current);
  }

  function download() {
    const rows = pairs.filter(verdictOf).map((pair) => ({
      query: pair.dataset.query, photo: pair.dataset.photo,
      query_sha256: pair.dataset.querySha256, photo_sha256: pair.dataset.photoSha256, ...verdictOf(pair),
      who: verdictOf(pair).who || who.value.trim(), // several people may have judged in this browser
    }));
    const content = {
      format: audit.dataset.format, dataset: audit.dataset.dataset, database_sha256: audit.dataset.checksum,
      verdicts: rows,
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    link.download = "verdicts.json";
    link.click();
    say(`${rows.length} ${rows.length === 1 ? "verdict" : "verdicts"} exported as verdicts.json.`);
  }

  load();
  for (const choice of choices) choice.addEventListener("click", () => judge(choice.dataset.verdict));
  document.getElementById("previous").addEventListener("click", () => show(current - 1));
  document.getElementById("next").addEventListener("click", () => show(current + 1));
  document.getElementById("export").addEventListener("click", download);
  who.addEventListener("change", save);
  document.addEventListener("keydown", (event) => {
    if (event.target === who || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (Object.hasOwn(keys, key)) judge(keys[key]);
    else if (key === "arrowleft") show(current - 1);
    else if (key === "arrowright") show(current + 1);
    else return;
    event.preventDefault();
  });
  document.getElementById("controls").hidden = false;
  const first = pairs.findIndex((pair) => !verdictOf(pair));
  show(first >= 0 ? first : 0);
})();
