// The user's photos and their answers: a queue of requests, and the selected photo.  No elements here.
import { ApiError, locate } from "./api.js";
import { isHeic, toJpeg } from "./formats.js";
import { readAnswers, saveAnswers, smallCopy, toBlob } from "./saved_answers.js";
import { letter } from "./text.js";

const MAX_REQUESTS = 3; // at the same time
const MEGABYTE = 1e6;
const COLORS = {
  light: ["#3b5bdb", "#c2410c", "#0f766e", "#a21caf", "#be123c", "#0369a1", "#4d7c0f", "#92400e"],
  dark: ["#8da2fb", "#fb923c", "#2dd4bf", "#e879f9", "#fb7185", "#38bdf8", "#a3e635", "#fbbf24"],
};

/**
 * An entry per photo, with state "waiting", "locating", "located" or "failed".
 *
 * Fires "change" when an entry or the selection changes, "select" for a new selection, "located" for each answer.
 */
export class Answers extends EventTarget {
  /**
   * limitS: seconds to wait for an answer.  onServer: whether the server converts HEIC photos.
   * where(): the place and time that photos are searched in, {bbox, after, before}, or null.
   */
  constructor({ maxUploadMb, limitS, onServer, where }) {
    super();
    Object.assign(this, { maxUploadMb, limitS, onServer, where });
    this.entries = [];
    this.selected = null;
    this.rank = 0; // of the match shown with the selected photo
    this.numAdded = 0;
    this.numRequests = 0;
  }

  /** Add photos to the queue and select the first.  isIndexed: they are photos of the index. */
  add(files, { isIndexed = false } = {}) {
    const where = this.where();
    const added = [...files].map((file) => {
      const number = this.numAdded++;
      const name = file.name || "Pasted photo";
      const entry = { number, file, where, isIndexed, letter: letter(number), name, state: "waiting" };
      return Object.assign(entry, { url: URL.createObjectURL(file), controller: new AbortController(), result: null });
    });
    this.entries.push(...added);
    this.assignColors();
    if (added.length > 0) this.select(added[0]);
    this.startRequests();
    return added;
  }

  /** Add an answer from a link, without a photo. */
  addShared(result) {
    const number = this.numAdded++;
    const entry = { number, file: null, where: null, letter: letter(number), name: "From a link", state: "located" };
    Object.assign(entry, { url: "", controller: new AbortController(), result, shared: true });
    this.entries.push(entry);
    this.assignColors();
    this.save();
    return entry;
  }

  /** Add the answers of this tab from before a reload.  Returns the one that was selected, or null. */
  restore() {
    const { selected, entries } = readAnswers();
    for (const saved of entries) {
      const file = saved.copy ? toBlob(saved.copy) : null;
      const url = file ? URL.createObjectURL(file) : "";
      const entry = { ...saved, letter: letter(saved.number), state: "located", file, url };
      this.entries.push(Object.assign(entry, { controller: new AbortController() }));
      this.numAdded = Math.max(this.numAdded, saved.number + 1);
    }
    this.assignColors();
    return this.entries.find(({ number }) => number === selected) ?? null;
  }

  /** Locate photos again after an error. */
  retry(...entries) {
    for (const entry of entries) Object.assign(entry, { state: "waiting", error: "" });
    this.changed();
    this.startRequests();
  }

  /** The photos that may be located after an error of the server or the connection. */
  get retriable() {
    return this.entries.filter(({ state, canRetry }) => state === "failed" && canRetry);
  }

  save() {
    saveAnswers(this.entries, this.selected);
  }

  /** Give each entry its color in the current theme. */
  assignColors() {
    const colors = COLORS[document.documentElement.dataset.theme] ?? COLORS.light;
    for (const entry of this.entries) entry.color = colors[entry.number % colors.length];
  }

  startRequests() {
    while (this.numRequests < MAX_REQUESTS) {
      const entry = this.entries.find(({ state }) => state === "waiting");
      if (!entry) return;
      this.numRequests += 1;
      entry.state = "locating";
      this.locate(entry).finally(() => {
        this.numRequests -= 1;
        this.startRequests();
      });
    }
  }

  async locate(entry) {
    this.changed();
    try {
      if (this.maxUploadMb && entry.file.size > this.maxUploadMb * MEGABYTE) {
        const size = Math.ceil(entry.file.size / MEGABYTE);
        throw new ApiError(`The photo has ${size} MB, and the limit is ${this.maxUploadMb} MB. Choose a smaller copy.`, 413);
      }
      const onBusy = (seconds) => {
        entry.busy = `The server is busy; trying again in ${Math.ceil(seconds)} s`;
        this.changed();
      };
      const { signal } = entry.controller;
      const options = { signal, limitS: this.limitS, onBusy };
      if (isHeic(entry.file)) await this.convert(entry, options);
      entry.result = await locate(entry.file, entry.where, options);
      entry.state = "located";
    } catch (error) {
      if (error.name === "AbortError") return; // the entry was removed
      entry.state = "failed";
      entry.canRetry = error.canRetry ?? true;
      const isKnown = error instanceof ApiError;
      entry.errorTitle = isKnown ? error.title : "Couldn't read the answer";
      entry.error = isKnown ? error.advice : `The answer cannot be read: ${error.message}. Reload the page.`;
    }
    entry.busy = "";
    this.changed();
    this.dispatchEvent(new CustomEvent("located", { detail: entry }));
    if (!entry.result) return;
    entry.copy = await smallCopy(entry.file);
    this.save();
  }

  /** Replace a HEIC photo by a JPEG, which browsers can show. */
  async convert(entry, options) {
    entry.busy = "Converting to JPEG";
    this.changed();
    entry.file = await toJpeg(entry.file, { onServer: this.onServer, ...options });
    options.signal.throwIfAborted(); // the entry was removed
    URL.revokeObjectURL(entry.url);
    Object.assign(entry, { url: URL.createObjectURL(entry.file), busy: "" });
    this.changed();
  }

  select(entry, rank = 0) {
    this.selected = entry;
    this.rank = rank;
    this.changed();
    this.save();
    this.dispatchEvent(new Event("select"));
  }

  showMatch(rank) {
    const count = this.selected?.result?.neighbours?.length ?? 0;
    if (count === 0) return;
    this.rank = (rank + count) % count;
    this.changed();
  }

  remove(entry) {
    const position = this.entries.indexOf(entry);
    if (position < 0) return;
    entry.controller.abort();
    URL.revokeObjectURL(entry.url);
    this.entries.splice(position, 1);
    if (this.selected === entry) this.select(this.entries[position] ?? this.entries[position - 1] ?? null);
    else this.changed();
    this.save();
  }

  get progress() {
    const done = this.entries.filter(({ state }) => state === "located" || state === "failed").length;
    return { done, count: this.entries.length };
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}
