// The panel's list of your photos and, below it, the answer for the chosen one.
import { imageAddress } from "./api.js";
import { SIGNS, byId, make, picture, sign } from "./dom.js";
import { answer, belief, brief, coordinates, evidence, isCalibrated, isFound, reason } from "./words.js";

const MOST_NEIGHBOURS = 12;

export class Panel {
  constructor(answers, { onFind, onCopy }) {
    Object.assign(this, { answers, onFind, onCopy });
    this.list = byId("answers");
    this.detail = byId("detail");
    this.rows = new Map(); // entry -> its row, so that pictures are not made anew
    this.list.addEventListener("keydown", (event) => this.listKey(event));
    this.detail.addEventListener("keydown", (event) => this.detailKey(event));
  }

  draw() {
    const { entries, chosen } = this.answers;
    byId("panel").classList.toggle("busy", entries.length > 0);
    byId("listed").hidden = entries.length === 0;
    for (const [entry, row] of this.rows) {
      if (!entries.includes(entry)) {
        row.remove();
        this.rows.delete(entry);
      }
    }
    for (const entry of entries) this.drawRow(entry, entry === chosen);
    this.drawProgress();
    this.drawDetail(chosen);
  }

  drawProgress() {
    const { done, count } = this.answers.progress;
    byId("progress").hidden = done === count;
    const bar = byId("bar");
    // One photo has no share that is done: the bar then only moves.
    if (count > 1) Object.assign(bar, { max: count, value: done });
    else bar.removeAttribute("value");
    byId("done").textContent = count > 1 ? `${done} of ${count} located` : "";
  }

  drawRow(entry, isChosen) {
    let row = this.rows.get(entry);
    if (!row) {
      const button = make(
        "button",
        { type: "button", class: "row", onclick: () => this.answers.choose(entry) },
        picture(entry.address, ""),
        make("span", { class: "badge", "aria-hidden": "true" }, entry.letter),
        make(
          "span",
          { class: "words" },
          make("span", { class: "said" }),
          make("span", { class: "quiet file" }, entry.name),
        ),
      );
      const remove = make(
        "button",
        {
          type: "button",
          class: "icon",
          "aria-label": `Remove ${entry.name}`,
          title: "Remove (Del)",
          onclick: () => this.remove(entry),
        },
        sign(SIGNS.close),
      );
      row = make("li", {}, button, remove);
      this.rows.set(entry, row);
      this.list.append(row);
    }
    row.style.setProperty("--own", entry.colour);
    row.dataset.state = entry.state;
    row.classList.toggle("chosen", isChosen);
    const button = row.querySelector(".row");
    if (isChosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    // One stop for Tab in the list; arrows go on from there.
    button.tabIndex = isChosen ? 0 : -1;
    row.querySelector(".said").textContent = says(entry);
  }

  remove(entry) {
    const within = this.list.contains(document.activeElement);
    this.answers.remove(entry);
    if (within) (this.rows.get(this.answers.chosen)?.querySelector(".row") ?? byId("choose")).focus();
  }

  listKey(event) {
    const { entries, chosen } = this.answers;
    const moves = { ArrowDown: 1, ArrowUp: -1, Home: -entries.length, End: entries.length };
    if (event.key in moves) {
      event.preventDefault();
      const at = Math.max(0, Math.min(entries.length - 1, entries.indexOf(chosen) + moves[event.key]));
      this.answers.choose(entries[at]);
      this.rows.get(entries[at]).querySelector(".row").focus();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      if (chosen) this.remove(chosen);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      this.answers.showNeighbour(this.answers.rank + (event.key === "ArrowRight" ? 1 : -1));
    }
  }

  detailKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    this.answers.showNeighbour(this.answers.rank + (event.key === "ArrowRight" ? 1 : -1));
  }

  drawDetail(entry) {
    // Redrawn only when it says something new, so that focus and pictures stay.
    const key = entry ? `${entry.number} ${entry.state} ${entry.wait ?? ""} ${entry.colour}` : "";
    if (key !== this.detail.dataset.key) {
      this.detail.dataset.key = key;
      this.detail.replaceChildren(...this.detailOf(entry));
      this.detail.style.setProperty("--own", entry?.colour ?? "");
      this.detail.hidden = !entry || this.detail.childElementCount === 0;
    }
    if (entry?.result) this.drawNeighbour(entry);
  }

  detailOf(entry) {
    if (!entry) return [];
    if (entry.state === "failed") {
      return [
        make("h2", { class: "answer" }, "No answer for this photo."),
        make("p", { class: "error" }, entry.error),
        make("div", { class: "pair one" }, figure(entry.address, "Your photo", entry.name)),
      ];
    }
    if (!entry.result) {
      const wait = entry.wait || (entry.state === "waiting" ? "Waiting its turn" : "Looking for this place");
      const photo = figure(entry.address, "Your photo", entry.name);
      photo.classList.add("asking");
      return [make("h2", { class: "answer quiet" }, `${wait} …`), make("div", { class: "pair one" }, photo)];
    }
    return this.answerOf(entry);
  }

  answerOf(entry) {
    const { result } = entry;
    const found = isFound(result);
    const meter =
      found && isCalibrated(result) ? make("div", { class: "meter", "aria-hidden": "true" }, make("span")) : null;
    if (meter) meter.firstChild.style.width = `${100 * Math.max(0, Math.min(1, result.confidence ?? 0))}%`;
    const neighbours = (result.neighbours ?? []).slice(0, MOST_NEIGHBOURS);
    const where = found
      ? make(
          "p",
          { class: "where" },
          make("span", { class: "coordinates" }, coordinates(result)),
          make(
            "button",
            {
              type: "button",
              class: "icon",
              "aria-label": "Copy the coordinates",
              title: "Copy",
              onclick: () => this.onCopy(coordinates(result)),
            },
            sign(SIGNS.copy),
          ),
          make(
            "button",
            {
              type: "button",
              class: "icon",
              "aria-label": "Show the answer on the map",
              title: "Show on the map",
              onclick: () => this.onFind(entry),
            },
            sign(SIGNS.find),
          ),
        )
      : null;
    const strip = make("ul", { class: "strip", "aria-label": "Known photos most alike" });
    neighbours.forEach((neighbour, rank) => {
      const said = evidence(neighbour, found);
      const words = `Known photo ${rank + 1}: ${said}`;
      const button = make(
        "button",
        { type: "button", "aria-label": words, title: said, onclick: () => this.answers.showNeighbour(rank) },
        picture(imageAddress(neighbour.id), ""),
        make("span", { "aria-hidden": "true" }, String(rank + 1)),
      );
      strip.append(make("li", {}, button));
    });
    const parts = [
      make("h2", { class: found ? "answer" : "answer unknown" }, answer(result)),
      make("p", { class: "belief" }, belief(result)),
      meter,
      found && result.reason ? make("p", { class: "quiet" }, reason(result)) : null,
      where,
    ];
    if (neighbours.length > 0) {
      const other = make("figure", { class: "neighbour" }, make("figcaption"));
      parts.push(
        found ? null : make("h3", {}, "The known photos most alike"),
        make("div", { class: "pair" }, figure(entry.address, "Your photo", entry.name), other),
        make("p", { class: "quiet evidence" }),
        strip,
      );
    } else parts.push(make("div", { class: "pair one" }, figure(entry.address, "Your photo", entry.name)));
    return parts.filter(Boolean);
  }

  /** Put the neighbour of the present rank beside the photo. */
  drawNeighbour(entry) {
    const neighbour = entry.result.neighbours?.[this.answers.rank];
    const other = this.detail.querySelector(".neighbour");
    if (!neighbour || !other) return;
    const rank = this.answers.rank;
    if (other.dataset.id !== String(neighbour.id)) {
      other.dataset.id = neighbour.id;
      other.replaceChildren(
        picture(imageAddress(neighbour.id), "The known photo"),
        make("figcaption", {}, `Known photo ${rank + 1}`),
      );
    }
    this.detail.querySelector(".evidence").textContent = evidence(neighbour, isFound(entry.result));
    [...this.detail.querySelectorAll(".strip button")].forEach((button, k) => {
      button.setAttribute("aria-pressed", String(k === rank));
    });
    bringIntoStrip(this.detail.querySelector(".strip"), rank);
  }
}

function figure(address, words, name) {
  return make("figure", { title: name }, picture(address, words), make("figcaption", {}, words));
}

// Only sideways: scrollIntoView would also move the panel, and the answer out of sight.
function bringIntoStrip(strip, rank) {
  const item = strip.children[rank];
  if (!item) return;
  const left = item.offsetLeft - strip.offsetLeft;
  if (left < strip.scrollLeft) strip.scrollLeft = left - 8;
  else if (left + item.offsetWidth > strip.scrollLeft + strip.clientWidth)
    strip.scrollLeft = left + item.offsetWidth + 8 - strip.clientWidth;
}

function says(entry) {
  if (entry.state === "failed") return "No answer";
  if (entry.result) return brief(entry.result);
  return entry.wait || (entry.state === "waiting" ? "Waiting" : "Looking …");
}
