// The list of queries with its filters, the details of a query on the map, and the CSV.
//
// The page works without this script: it then shows the first rows of the list.  Names are other people's texts: they
// are set as text, never as HTML.  The data comes from query_data.py.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { queries, images } = data;
  const numQueries = queries.name.length;
  const conditions = Object.entries(data.conditions);
  const sources = new Map(); // of photos
  for (const image of document.querySelectorAll("img[data-photo]")) sources.set(image.dataset.photo, image.src);
  const sourceOf = (key) => sources.get(key) ?? (data.photos[key] && `data:image/jpeg;base64,${data.photos[key]}`);

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function meters(value) {
    if (value === null) return "unknown distance";
    if (!data.areMeters) return `${Number(value.toPrecision(4))} units`;
    if (value < 99.95) return `${value.toFixed(1)} m`;
    const grouped = (number, digits) =>
      number.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return value < 999.5 ? `${grouped(value, 0)} m` : `${grouped(value / 1000, 1)} km`;
  }

  // --- a query and its predictions ---

  function tile(kind, key, caption, detail, description) {
    const source = sourceOf(key);
    const photo = source
      ? make("img", { src: source, alt: description, title: description, decoding: "async" })
      : make("span", { class: "no-photo", title: description }, key ? "photo left out" : "none");
    const text = make("figcaption", {}, ...caption);
    if (detail) text.append(" ", make("span", {}, detail));
    return make("figure", { class: `tile ${kind}` }, photo, text);
  }

  function predictionTile(query, rank) {
    const place = queries.predictions[query][rank - 1];
    const kind = queries.correct[query][rank - 1] ? "correct" : "incorrect";
    const away = meters(queries.meters[query][rank - 1]);
    const similarity = `similarity ${queries.similarity[query][rank - 1].toFixed(3)}`;
    const caption = [`${rank}. `, make("b", {}, `${kind === "correct" ? "\u2713" : "\u2717"} ${away}`)];
    const description = `prediction ${rank}, ${kind}, ${away} away, ${similarity}: ${images.name[place]}`;
    return tile(kind, `d${images.row[place]}`, caption, similarity, description);
  }

  function expectedTile(query) {
    const place = queries.expected[query], turn = queries.expectedTurn[query];
    if (place < 0) {
      const text = `no database image within ${Number(data.radius.toPrecision(6))} ${data.areMeters ? "m" : "units"}`;
      return tile("expected", "", [], text, text);
    }
    const caption = `expected match, ${meters(queries.expectedMeters[query])}`;
    const detail = turn === null ? "" : `heading differs by ${turn}\u00b0`;
    const description = `${caption}${detail && ", "}${detail}: ${images.name[place]}`;
    return tile("expected", `d${images.row[place]}`, [caption], detail, description);
  }

  function ranksShown(query) {
    const ranks = [];
    for (let rank = 1; rank <= data.numShown; rank++) if (queries.predictions[query][rank - 1] >= 0) ranks.push(rank);
    const first = queries.rank[query];
    return first > data.numShown && first <= data.numPredictions ? [...ranks, first] : ranks;
  }

  function resultOf(query) {
    if (!queries.predictions[query].some((place) => place >= 0)) return "no predictions: the photo could not be opened";
    const first = queries.rank[query], confidence = queries.scores.confidence?.[query] ?? null;
    const end = confidence === null ? "" : `; confidence ${confidence.toFixed(3)}`;
    return first
      ? `first correct prediction at rank ${first} of ${data.numSearched}${end}`
      : `none of ${data.numSearched} predictions is correct${end}`;
  }

  const conditionOf = ([, { values, of }], query) => values[of[query]];

  function row(query, onMap) {
    const known = conditions.filter((one) => conditionOf(one, query));
    const text = known.map((one) => `${one[0]}: ${conditionOf(one, query)}`).join(", ");
    const heading = make("p", {}, make("b", {}, `Query ${query}`), `: ${resultOf(query)} `);
    if (text) heading.append(make("span", { class: "soft" }, `(${text}) `));
    if (onMap) {
      const button = make("button", { type: "button", class: "link", "aria-label": `show on map: query ${query}` });
      button.textContent = "show on map";
      button.addEventListener("click", () => onMap(query));
      heading.append(button);
    }
    heading.append(make("br"), make("code", { class: "soft" }, queries.name[query]));
    const tiles = make("div", { class: "tiles" });
    tiles.append(tile("query", `q${query}`, ["query"], "", `query ${query}: ${queries.name[query]}`));
    tiles.append(...ranksShown(query).map((rank) => predictionTile(query, rank)), expectedTile(query));
    return make("div", { class: "query-row" }, heading, tiles);
  }

  // --- matching points of two photos ---

  let showsMatches = false; // stays when another query is selected

  function makeSvg(tag, attributes, ...children) {
    const element = document.createElementNS(document.querySelector("#query-figure svg").namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function pointsText({ found, points }) {
    const drawn = points.length / 4;
    if (!drawn) return "no matching points";
    const all = drawn < found ? `(of ${found} found to fit one geometry)` : "that fit one geometry";
    const text = `${drawn} matching points ${all}`;
    return found < data.matches.chanceBelow ? `${text}; so few can also fit by chance` : text;
  }

  // Two photos with a line between each pair of points, in thousandths of the width and height of each photo.
  function matchFigure(query, place, what, pair) {
    // The photos are those of the tiles, which describe them.
    const photos = [`q${query}`, `d${images.row[place]}`].map((key) => make("img", { src: sourceOf(key), alt: "" }));
    for (const photo of photos) {
      photo.addEventListener("load", () => {
        photo.style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
      });
    }
    const overlay = makeSvg("svg", { "aria-hidden": "true" });
    const lines = [];
    for (let i = 0; i < pair.points.length; i += 4) {
      const line = makeSvg("g", { class: `s${lines.length % 4}` });
      line.append(makeSvg("line", { class: "halo" }), makeSvg("line", {}));
      line.append(makeSvg("circle", { r: 3.5 }), makeSvg("circle", { r: 3.5 }));
      lines.push(line);
    }
    overlay.append(...lines);
    const frame = make("div", { class: "match-photos" }, ...photos, overlay);

    function draw() {
      const from = frame.getBoundingClientRect();
      const boxes = photos.map((photo) => photo.getBoundingClientRect());
      overlay.setAttribute("viewBox", `0 0 ${from.width} ${from.height}`);
      lines.forEach((line, number) => {
        const ends = boxes.map((box, which) => {
          const at = 4 * number + 2 * which;
          const across = (pair.points[at] + 0.5) / 1000, down = (pair.points[at + 1] + 0.5) / 1000;
          return [box.left - from.left + across * box.width, box.top - from.top + down * box.height];
        });
        const [[x1, y1], [x2, y2]] = ends.map((end) => end.map((value) => value.toFixed(1)));
        for (const part of line.querySelectorAll("line")) {
          for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) part.setAttribute(name, value);
        }
        line.querySelectorAll("circle").forEach((end, which) => {
          end.setAttribute("cx", which ? x2 : x1);
          end.setAttribute("cy", which ? y2 : y1);
        });
      });
    }

    const observer = new ResizeObserver(draw); // also when a photo is decoded
    for (const part of [frame, ...photos]) observer.observe(part);
    return make("figure", {}, make("figcaption", {}, make("b", {}, what), `: ${pointsText(pair)}`), frame);
  }

  function matchFigures(query) {
    const { first, expected } = data.matches.of[query];
    const place = queries.predictions[query][0], figures = [];
    const name = place === queries.expected[query] ? "prediction 1, the expected match" : "prediction 1";
    if (first) figures.push(matchFigure(query, place, `Query and ${name}`, first));
    if (expected) figures.push(matchFigure(query, queries.expected[query], "Query and expected match", expected));
    return figures;
  }

  // A button that shows and hides the matching points of a query; nothing for a query without.
  function matchParts(query) {
    if (!data.matches?.of[query]) return [];
    const button = make("button", { type: "button" }, "Show matches");
    const figures = make("div", { class: "matches", role: "status" });
    const update = () => {
      button.setAttribute("aria-pressed", showsMatches);
      figures.replaceChildren(...(showsMatches ? matchFigures(query) : []));
    };
    button.addEventListener("click", () => { showsMatches = !showsMatches; update(); });
    update();
    return [button, figures];
  }

  // --- the map ---

  const selected = document.getElementById("selected");
  selected.style.setProperty("--tiles", data.numTiles);
  const map = queryMap(data, document.getElementById("query-map"), select);
  for (const element of document.querySelectorAll(".live-only")) element.hidden = false;

  function select(query) {
    map.select(query);
    selected.replaceChildren(row(query), ...matchParts(query));
    document.getElementById("selected-text").textContent =
      `Query ${query}: ${data.outcomes[queries.outcome[query]]}; lines lead to its predictions, numbered by rank, ` +
      "and the dotted line to the expected match.";
  }

  function showOnMap(query) {
    map.zoomTo(query);
    select(query);
    document.getElementById("query-figure").scrollIntoView({ block: "start" });
    document.querySelector("#query-map canvas").focus({ preventScroll: true });
  }

  // --- the list ---

  const form = document.getElementById("filters");
  const list = document.getElementById("query-list");
  const listText = document.getElementById("list-text");
  const pages = document.getElementById("pages");
  const rankInOrder = new Array(numQueries);
  data.order.forEach((query, place) => { rankInOrder[query] = place; });
  let found = [], page = 0;

  const SORT_KEYS = {
    order: (query) => rankInOrder[query],
    number: (query) => query,
    similarity: (query) => queries.similarity[query][0],
    meters: (query) => queries.meters[query][0],
  };

  function isIn(values, name) {
    const from = form.elements[`${name}-from`].value, to = form.elements[`${name}-to`].value;
    if (from === "" && to === "") return () => true;
    return (query) => {
      const value = values[query][0];
      return value !== null && (from === "" || value >= Number(from)) && (to === "" || value <= Number(to));
    };
  }

  function hasOutcome(choice) {
    if (choice === "all") return () => true;
    if (choice === "errors") return (query) => queries.outcome[query] !== 0;
    if (choice === "alone") return (query) => queries.numPositives[query] === 0;
    return (query) => queries.outcome[query] === Number(choice);
  }

  function filter() {
    const tests = [
      hasOutcome(form.elements.outcome.value),
      isIn(queries.meters, "meters"),
      isIn(queries.similarity, "similarity"),
    ];
    const text = form.elements.text.value.toLowerCase();
    if (text) tests.push((query) => queries.name[query].toLowerCase().includes(text));
    for (const choice of form.querySelectorAll("select[data-condition]")) {
      const { of } = data.conditions[choice.dataset.condition];
      if (choice.value !== "") tests.push((query) => of[query] === Number(choice.value));
    }
    found = [...Array(numQueries).keys()].filter((query) => tests.every((test) => test(query)));
    const order = form.elements.sort.value, sign = order.startsWith("-") ? -1 : 1;
    const key = SORT_KEYS[order.replace("-", "")];
    const keys = found.map((query) => key(query)); // unknown values are last
    const sorted = [...found.keys()].sort((a, b) =>
      keys[a] === null || keys[b] === null ? (keys[a] === null) - (keys[b] === null) : sign * (keys[a] - keys[b]));
    found = sorted.map((place) => found[place]);
    page = 0;
    showPage();
  }

  function showPage() {
    const numPages = Math.max(1, Math.ceil(found.length / data.pageSize));
    const first = page * data.pageSize, shown = found.slice(first, first + data.pageSize);
    list.replaceChildren(...shown.map((query) => row(query, showOnMap)));
    listText.textContent = shown.length
      ? `${first + 1}\u2013${first + shown.length} of ${found.length.toLocaleString("en-US")} ` +
        `(${numQueries.toLocaleString("en-US")} queries in total)`
      : "No query matches these filters.";
    pages.hidden = numPages === 1;
    pages.querySelector("span").textContent = `page ${page + 1} of ${numPages}`;
    for (const button of pages.querySelectorAll("button")) {
      const target = page + Number(button.dataset.step);
      button.disabled = target < 0 || target >= numPages;
    }
  }

  for (const button of pages.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      showPage();
      listText.scrollIntoView({ block: "start" });
    });
  }
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter)); // after the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // --- CSV ---

  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^(?:[=+\-\t\r]|@[A-Za-z])/.test(value) ? `./${value}` : value; // not a formula
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv() {
    const line = (values) => values.map(cell).join(",");
    const scores = Object.entries(queries.scores);
    const unit = data.areMeters ? "_m" : "";
    const header = [
      "query", "query_path", "outcome", "first_correct_rank", ...scores.map(([name]) => `score: ${name}`),
      ...conditions.map(([name]) => name), "expected_path",
      `expected_distance${unit}`, "expected_heading_difference_deg", "rank", "prediction_path", `distance${unit}`,
      "similarity", "correct",
    ];
    const lines = [`${line(header)}\n`];
    for (let query = 0; query < numQueries; query++) {
      const start = line([
        query, queries.name[query], data.outcomes[queries.outcome[query]], queries.rank[query] || "",
        ...scores.map(([, values]) => values[query]), ...conditions.map((one) => conditionOf(one, query)),
        images.name[queries.expected[query]],
        queries.expectedMeters[query], queries.expectedTurn[query],
      ]);
      const places = queries.predictions[query];
      if (places[0] < 0) lines.push(`${start},,,,,\n`);
      places.forEach((place, rank) => {
        if (place < 0) return;
        const { meters, similarity, correct } = queries;
        const end = [rank + 1, images.name[place], meters[query][rank], similarity[query][rank], correct[query][rank]];
        lines.push(`${start},${line(end)}\n`);
      });
    }
    return lines;
  }

  document.getElementById("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob(csv(), { type: "text/csv" }));
    make("a", { href: address, download: "queries.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
})();
