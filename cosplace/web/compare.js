// A dialog with the user's photo and a match, large and uncropped: side by side, or one over the other.
import { ApiError, imageUrl, readMatchingPoints } from "./api.js";
import { ICONS, icon, make, makeSvg, photo } from "./dom.js";
import { matchInfo } from "./text.js";

const PER_SIDE = 1000; // matching points are in thousandths of the width and the height
const SWIPE_PX = 50;
const SMALL_PX = 400; // sides of copies that look blurred here

export class Compare {
  constructor(answers, dialog, { canMatch }) {
    Object.assign(this, { answers, dialog, canMatch });
    this.mode = "sides";
    this.showsPoints = false;
    this.points = new WeakMap(); // entry -> Map of match id -> {found, points} or {error}
    this.build();
    dialog.addEventListener("keydown", (event) => this.handleKey(event));
    dialog.addEventListener("close", () => this.loading?.abort());
    new ResizeObserver(() => this.drawPoints()).observe(this.stage);
  }

  build() {
    const button = (label, path, onclick) =>
      make("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(path));
    this.title = make("h2", { id: "compare-title" });
    this.info = make("p", { class: "muted", role: "status" });
    this.sides = button("Side by side", ICONS.sides, () => this.setMode("sides"));
    this.overlay = button("One over the other", ICONS.overlay, () => this.setMode("overlay"));
    this.pointsButton = button("Matching points", ICONS.points, () => this.togglePoints());
    this.pointsButton.hidden = !this.canMatch;
    const tools = [
      button("Previous match (←)", ICONS.previous, () => this.step(-1)),
      button("Next match (→)", ICONS.next, () => this.step(1)),
      this.sides,
      this.overlay,
      this.pointsButton,
      button("Close", ICONS.close, () => this.dialog.close()),
    ];
    this.slider = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of your photo" });
    this.slider.addEventListener("input", () => this.moveBorder(this.slider.value));
    this.lines = makeSvg("svg", { class: "points", "aria-hidden": "true" });
    this.mine = make("figure", { class: "mine" });
    this.theirs = make("figure", { class: "theirs" });
    this.stage = make("div", { class: "stage" }, this.mine, this.theirs, this.lines);
    this.listenForPointers();
    this.dialog.replaceChildren(
      make("header", {}, make("div", { class: "titles" }, this.title, this.info), make("div", { class: "tools" }, ...tools)),
      this.stage,
      this.slider,
    );
    this.setMode(this.mode);
  }

  /** Show the selected photo and the current match. */
  open() {
    const entry = this.answers.selected;
    if (this.dialog.open || !entry?.url || !entry.result?.neighbours?.length) return;
    this.dialog.showModal();
    this.draw();
  }

  step(by) {
    this.answers.showMatch(this.answers.rank + by);
  }

  handleKey(event) {
    if (event.target === this.slider || (event.key !== "ArrowLeft" && event.key !== "ArrowRight")) return;
    event.preventDefault();
    this.step(event.key === "ArrowRight" ? 1 : -1);
  }

  /** Side by side, a swipe shows the next match; one over the other, the border follows the pointer. */
  listenForPointers() {
    let start = null;
    this.stage.addEventListener("pointerdown", (event) => {
      start = [event.clientX, event.clientY];
      if (this.mode !== "overlay") return;
      this.stage.setPointerCapture(event.pointerId);
      this.moveBorderTo(event.clientX);
    });
    this.stage.addEventListener("pointermove", ({ clientX }) => {
      if (start && this.mode === "overlay") this.moveBorderTo(clientX);
    });
    this.stage.addEventListener("pointercancel", () => (start = null));
    this.stage.addEventListener("pointerup", ({ pointerType, clientX, clientY }) => {
      const [across, down] = start ? [clientX - start[0], clientY - start[1]] : [0, 0];
      start = null;
      if (this.mode !== "sides" || pointerType !== "touch") return;
      if (Math.abs(across) > SWIPE_PX && Math.abs(across) > 2 * Math.abs(down)) this.step(across < 0 ? 1 : -1);
    });
  }

  moveBorderTo(clientX) {
    const { x, width } = this.stage.getBoundingClientRect();
    this.slider.value = (100 * (clientX - x)) / width;
    this.moveBorder(this.slider.value);
  }

  moveBorder(percent) {
    this.stage.style.setProperty("--share", `${percent}%`);
  }

  setMode(mode) {
    this.mode = mode;
    this.stage.dataset.mode = mode;
    this.moveBorder(this.slider.value);
    this.slider.hidden = mode !== "overlay";
    this.sides.setAttribute("aria-pressed", String(mode === "sides"));
    this.overlay.setAttribute("aria-pressed", String(mode === "overlay"));
    if (mode === "overlay") this.showsPoints = false;
    this.draw();
  }

  togglePoints() {
    this.showsPoints = !this.showsPoints;
    if (this.showsPoints && this.mode !== "sides") this.setMode("sides");
    else this.draw();
  }

  draw() {
    this.pointsButton.setAttribute("aria-pressed", String(this.showsPoints));
    const entry = this.answers.selected;
    const match = entry?.result?.neighbours?.[this.answers.rank];
    if (!this.dialog.open) return;
    if (!match || !entry.url) {
      this.dialog.close();
      return;
    }
    this.dialog.style.setProperty("--color", entry.color);
    const count = entry.result.neighbours.length;
    this.title.textContent = `Match ${this.answers.rank + 1} of ${count}`;
    this.show(this.mine, entry.url, "Your photo");
    this.show(this.theirs, imageUrl(match.id), `Match ${this.answers.rank + 1}`);
    this.info.textContent = matchInfo(match, entry.result) + this.pointsText(entry, match);
    if (this.showsPoints) this.loadPoints(entry, match);
    this.drawPoints();
  }

  show(figure, url, alt) {
    if (figure.dataset.url === url && figure.dataset.alt === alt) return;
    Object.assign(figure.dataset, { url, alt });
    const image = photo(url, alt);
    const caption = make("figcaption", {}, alt);
    image.addEventListener("load", () => {
      // The index stores small copies; say so where one is drawn larger than it is.
      const side = Math.max(image.naturalWidth, image.naturalHeight);
      if (figure === this.theirs && side < SMALL_PX) caption.textContent = `${alt}, stored at ${side} pixels`;
      this.drawPoints();
    });
    image.addEventListener("error", () => (caption.textContent = `${alt} can't be shown`));
    figure.replaceChildren(image, caption);
  }

  // --- matching points ------------------------------------------------------------------------------------------

  pointsText(entry, match) {
    if (!this.showsPoints) return "";
    const known = this.points.get(entry)?.get(match.id);
    if (!known) return " · comparing …";
    if (known.error) return ` · ${known.error}`;
    const text = ` · ${known.found} matching points`;
    return known.found < known.chance_below ? `${text}, which may be by chance` : text;
  }

  async loadPoints(entry, match) {
    const known = this.points.get(entry) ?? new Map();
    this.points.set(entry, known);
    if (known.has(match.id) || this.loadingId === match.id) return;
    this.loading?.abort();
    this.loading = new AbortController();
    this.loadingId = match.id;
    try {
      known.set(match.id, await readMatchingPoints(entry.file, match.id, this.loading.signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      known.set(match.id, { error: error.message, points: [] });
    } finally {
      if (this.loadingId === match.id) this.loadingId = null;
    }
    this.draw();
  }

  /** Lines between the points of the two photos, as they are drawn now. */
  drawPoints() {
    this.lines.replaceChildren();
    const entry = this.answers.selected;
    const match = entry?.result?.neighbours?.[this.answers.rank];
    const known = match && this.points.get(entry)?.get(match.id);
    if (!this.showsPoints || !this.dialog.open || !known) return;
    const [mine, theirs] = [this.contentBox(this.mine), this.contentBox(this.theirs)];
    if (!mine || !theirs) return;
    const at = (box, x, y) => [box.x + (x / PER_SIDE) * box.width, box.y + (y / PER_SIDE) * box.height];
    for (let k = 0; k + 3 < known.points.length; k += 4) {
      const [x1, y1] = at(mine, known.points[k], known.points[k + 1]);
      const [x2, y2] = at(theirs, known.points[k + 2], known.points[k + 3]);
      this.lines.append(
        makeSvg("line", { x1, y1, x2, y2, class: "halo" }),
        makeSvg("line", { x1, y1, x2, y2 }),
        makeSvg("circle", { cx: x1, cy: y1, r: 3.5 }),
        makeSvg("circle", { cx: x2, cy: y2, r: 3.5 }),
      );
    }
  }

  /** Where the photo itself is drawn in the stage, without the empty sides of its element; null until it is loaded. */
  contentBox(figure) {
    const image = figure.querySelector("img");
    if (!image?.naturalWidth) return null;
    const [outer, stage] = [image.getBoundingClientRect(), this.stage.getBoundingClientRect()];
    const scale = Math.min(outer.width / image.naturalWidth, outer.height / image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const x = outer.x - stage.x + (outer.width - width) / 2;
    const y = outer.y - stage.y + (outer.height - height) / 2;
    return { x, y, width, height };
  }
}
