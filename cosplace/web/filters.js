// Filters of the search and of the dots: the visible area, dates, and the sequence of a photo.
import { byId } from "./dom.js";
import { toBox } from "./positions.js";
import { fileName } from "./text.js";

const DAY_MS = 86400000;
const day = (milliseconds) => new Date(milliseconds).toISOString().slice(0, 10);

export class Filters {
  /** times: the first and the last of the index, in seconds since 1970, or null.  onChange(): the dots are others now. */
  constructor(map, times, onChange) {
    Object.assign(this, { map, onChange });
    this.sequenceOf = null; // {id, name} of a photo
    [this.first, this.last] = ["date-first", "date-last"].map(byId);
    for (const input of [this.first, this.last]) input.addEventListener("change", () => this.checkDates());
    byId("sequence-filter-remove").addEventListener("click", () => this.setSequence(null));
    if (times) this.setTimes(times);
  }

  setTimes(times) {
    for (const input of [this.first, this.last])
      Object.assign(input, { min: day(times[0] * 1000), max: day(times[1] * 1000) });
    byId("dates").hidden = false;
  }

  checkDates() {
    const isWrong = this.first.value && this.last.value && this.first.value > this.last.value;
    this.last.setCustomValidity(isWrong ? "The last date is before the first." : "");
    if (isWrong) this.last.reportValidity();
    else this.onChange();
  }

  /** Show and search only the photos of the sequence of a photo; null: all photos again. */
  setSequence(record) {
    const hadFocus = document.activeElement === byId("sequence-filter-remove");
    this.sequenceOf = record && { id: record.id, name: fileName(record.name) };
    byId("sequence-filter").hidden = !record;
    byId("sequence-filter-text").textContent = record ? `Only the sequence of ${this.sequenceOf.name}` : "";
    if (hadFocus) byId("choose").focus();
    this.onChange();
  }

  /** What the dots are restricted to: {after, before, sequence}; parts may be missing, null without any. */
  dots() {
    const where = {};
    if (this.first.value) where.after = this.first.value;
    if (this.last.value) where.before = day(Date.parse(this.last.value) + DAY_MS); // the last day is included
    if (this.sequenceOf) where.sequence = this.sequenceOf.id;
    return Object.keys(where).length > 0 ? where : null;
  }

  /** What the search is restricted to: {bbox, after, before, sequence}; parts may be missing, null without any. */
  search() {
    const where = this.dots();
    return byId("visible-only").checked ? { bbox: toBox(this.map.getBounds()), ...where } : where;
  }
}
