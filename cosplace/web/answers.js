// Your photos and their answers: which wait, which are asked for, which are chosen.  No elements here.
import { ApiError, locate } from "./api.js";
import { letter } from "./words.js";

const AT_ONCE = 3;
const MEGABYTE = 1e6;
const COLOURS = {
  light: ["#3b5bdb", "#c2410c", "#0f766e", "#a21caf", "#be123c", "#0369a1", "#4d7c0f", "#92400e"],
  dark: ["#8da2fb", "#fb923c", "#2dd4bf", "#e879f9", "#fb7185", "#38bdf8", "#a3e635", "#fbbf24"],
};

/** Fires "change" with every change of a photo's state or of the choice, and "located" as each answer comes. */
export class Answers extends EventTarget {
  constructor({ maxUploadMb, searchBox }) {
    super();
    Object.assign(this, { maxUploadMb, searchBox });
    this.entries = [];
    this.chosen = null;
    this.rank = 0; // which neighbour is shown beside the chosen photo
    this.given = 0;
    this.asking = 0;
  }

  /** Take in photos; each is asked for in its turn. */
  add(files) {
    const bbox = this.searchBox();
    const made = [...files].map((file) => {
      const number = this.given++;
      const entry = { number, file, bbox, letter: letter(number), name: file.name || "Pasted photo", state: "waiting" };
      return Object.assign(entry, { address: URL.createObjectURL(file), stop: new AbortController(), result: null });
    });
    this.entries.push(...made);
    this.paint();
    if (made.length > 0) this.choose(made[0]);
    this.next();
    return made;
  }

  /** Colours follow the theme. */
  paint() {
    const colours = COLOURS[document.documentElement.dataset.theme] ?? COLOURS.light;
    for (const entry of this.entries) entry.colour = colours[entry.number % colours.length];
  }

  next() {
    while (this.asking < AT_ONCE) {
      const entry = this.entries.find(({ state }) => state === "waiting");
      if (!entry) return;
      this.asking += 1;
      entry.state = "asking";
      this.ask(entry).finally(() => {
        this.asking -= 1;
        this.next();
      });
    }
  }

  async ask(entry) {
    this.changed();
    try {
      if (this.maxUploadMb && entry.file.size > this.maxUploadMb * MEGABYTE) {
        const size = Math.ceil(entry.file.size / MEGABYTE);
        throw new ApiError(`This photo has ${size} MB; the server takes up to ${this.maxUploadMb} MB.`);
      }
      entry.result = await locate(entry.file, entry.bbox, entry.stop.signal, (seconds) => {
        entry.wait = `The server is busy; asking again in ${Math.ceil(seconds)} s`;
        this.changed();
      });
      entry.state = "located";
    } catch (error) {
      if (error.name === "AbortError") return; // removed meanwhile
      entry.state = "failed";
      entry.error = error instanceof ApiError ? error.message : `The answer could not be read: ${error.message}`;
    }
    entry.wait = "";
    this.changed();
    this.dispatchEvent(new CustomEvent("located", { detail: entry }));
  }

  choose(entry, rank = 0) {
    this.chosen = entry;
    this.rank = rank;
    this.changed();
    this.dispatchEvent(new Event("choose"));
  }

  showNeighbour(rank) {
    const count = this.chosen?.result?.neighbours?.length ?? 0;
    if (count === 0) return;
    this.rank = (rank + count) % count;
    this.changed();
  }

  remove(entry) {
    const at = this.entries.indexOf(entry);
    if (at < 0) return;
    entry.stop.abort();
    URL.revokeObjectURL(entry.address);
    this.entries.splice(at, 1);
    if (this.chosen === entry) this.choose(this.entries[at] ?? this.entries[at - 1] ?? null);
    else this.changed();
  }

  get progress() {
    const done = this.entries.filter(({ state }) => state === "located" || state === "failed").length;
    return { done, count: this.entries.length };
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}
