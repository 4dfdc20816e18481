// The indexed photos on the map: loaded for the view, and a card for the one that is clicked.
/* global L */
import { ApiError, imageUrl, readPhoto, readPoints, readSomePoints } from "./api.js";
import { ICONS, icon, make, photo, wedge } from "./dom.js";
import { boundsNear, distanceM, positionNear, toBox } from "./positions.js";
import { coordinates, facing, fileName, month, photoCount } from "./text.js";

const MAX_POINTS = 100000;
const MAX_POINTS_PHONE = 20000;
const LOAD_DELAY_MS = 150; // after the map has stopped
const NUM_THUMBNAILS = 12; // of photos that are close together
const CLICK_PX = 16; // photos this near to a click are meant, where only a density is shown
const MAX_TOLD_APART = 60; // photos under the pointer, at several spots: more are shown as a group
const REMOVED = "This photo is no longer in the index.";
const SAME_SPOT_M = 3; // the views of one panorama have the same position, up to rounding

/** The number of photos that are drawn one by one; more are drawn as a density. */
export const maxPoints = (isNarrow) => (isNarrow ? MAX_POINTS_PHONE : MAX_POINTS);

export class IndexPhotos {
  /**
   * filters: what the photos that are shown are restricted to.  onError(text, retry): retry may be null.
   * onMissing(sentence): a photo is no longer in the index.
   */
  constructor(map, dots, card, { filters, onError, onMissing, onChange }) {
    Object.assign(this, { map, dots, card, filters, onError, onMissing, onChange });
    card.addEventListener("keydown", (event) => this.handleKey(event));
    this.loaded = null; // the view that the last response covers
    this.marker = null;
    map.on("moveend", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), LOAD_DELAY_MS);
    });
    map.on("click", (event) => this.handleClick(event.latlng, event.originalEvent));
    map.on("mousemove", (event) => this.updateCursor(event.latlng));
  }

  /** Load the photos of the view.  A newer view aborts the request of an older one. */
  async load() {
    const view = this.map.getBounds();
    const zoom = this.map.getZoom();
    const { loaded } = this;
    const restriction = this.filters.dots();
    const where = { bbox: toBox(view.pad(0.5)), ...restriction };
    const key = JSON.stringify(restriction);
    if (loaded?.key === key && loaded.bounds.contains(view) && (loaded.complete || loaded.zoom === zoom)) return;
    this.loading?.abort();
    this.loading = new AbortController();
    const bounds = view.pad(0.5);
    const limit = maxPoints(this.map.getSize().x < 700);
    try {
      const { points, density = null, total } = await readPoints(where, limit, this.loading.signal);
      this.loaded = { bounds, zoom, key, complete: density === null };
      this.dots.setPhotos(points, density);
      Object.assign(this.map.getContainer().dataset, { points: points.length, density: density ? total : 0 });
      if (restriction && total === 0) this.onError("No photos in view meet the filter.");
    } catch (error) {
      this.handleError(error, () => this.load());
    }
  }

  /** Load the photos of the view again, after a change of the index. */
  reload() {
    this.loaded = null;
    return this.load();
  }

  /** Show an error.  retry: what the user may want to do again. */
  handleError(error, retry = null) {
    if (!(error instanceof ApiError)) {
      if (error.name !== "AbortError") throw error;
    } else if (error.isMissing) {
      this.close();
      this.onError(REMOVED);
      this.onMissing(REMOVED);
    } else this.onError(error.message, error.canRetry ? retry : null);
  }

  updateCursor(latlng) {
    const isClickable = this.dots.isDense(latlng, CLICK_PX) || this.dots.near(latlng, 8).length > 0;
    this.map.getContainer().classList.toggle("clickable", isClickable);
  }

  handleClick(latlng, event) {
    if (this.dots.isDense(latlng, CLICK_PX)) this.openGroup(latlng);
    else this.openNear(latlng, event?.pointerType === "touch" ? 22 : 10);
  }

  /** Show thumbnails of the photos within `radius` pixels of a position, where they are too many to tell apart. */
  async openGroup(latlng, radius = CLICK_PX) {
    const at = this.map.latLngToContainerPoint(latlng);
    const corners = [at.subtract([radius, radius]), at.add([radius, radius])];
    const bounds = L.latLngBounds(corners.map((corner) => this.map.containerPointToLatLng(corner)));
    this.close();
    this.reading = new AbortController();
    try {
      const where = { bbox: toBox(bounds), ...this.filters.dots() };
      const { total, points } = await readSomePoints(where, NUM_THUMBNAILS, this.reading.signal);
      if (total > 0) this.drawGroup(total, points, bounds);
    } catch (error) {
      this.handleError(error, () => this.openGroup(latlng, radius));
    }
  }

  drawGroup(total, points, bounds) {
    const zoomIn = () => {
      this.close();
      this.map.fitBounds(bounds, { maxZoom: this.map.getZoom() + 4 });
    };
    const items = points.map((point, number) => {
      const label = `Open photo ${number + 1} of ${points.length}`;
      const button = make("button", { type: "button", "aria-label": label, onclick: () => this.open([point], 0) });
      button.append(photo(imageUrl(point.id), ""));
      return make("li", {}, button);
    });
    const shown = points.length < total ? `${points.length} of them, spread evenly` : "";
    this.card.replaceChildren(
      make(
        "div",
        { class: "info group" },
        make("p", { class: "title" }, `${photoCount(total)} here`),
        shown ? make("p", { class: "muted" }, shown) : "",
        make("ul", { class: "thumbnails" }, ...items),
        make("button", { type: "button", class: "chip", onclick: zoomIn }, "Zoom in"),
      ),
      cardButton("Close photo", ICONS.close, () => this.close(), "icon close"),
    );
    this.views = null;
    this.card.hidden = false;
  }

  /** Open the photo nearest to a position, within `radius` pixels; where there are too many, thumbnails of some. */
  openNear(latlng, radius) {
    const found = this.dots.near(latlng, radius).map((k) => this.dots.photos.points[k]);
    if (found.length === 0) return false;
    const distance = (point) => this.map.distance(position(point), position(found[0]));
    const spread = Math.max(...found.map(distance));
    if (found.length > MAX_TOLD_APART && spread > 2 * SAME_SPOT_M && this.map.getZoom() < this.map.getMaxZoom() - 1) {
      this.openGroup(latlng, radius);
      return true;
    }
    const views = found.filter((point) => distance(point) <= SAME_SPOT_M);
    views.sort((one, other) => (one.heading ?? 0) - (other.heading ?? 0));
    this.open(views, views.indexOf(found[0]));
    return true;
  }

  /** Open one of the views at a spot. */
  async open(views, number) {
    const point = views[number];
    this.reading?.abort();
    this.reading = new AbortController();
    Object.assign(this, { views, number });
    this.drawMarker(point);
    this.drawCard(point);
    this.onChange();
    try {
      const record = await readPhoto(point.id, this.reading.signal);
      this.record = record;
      this.drawCard({ ...point, ...record });
    } catch (error) {
      this.handleError(error, () => this.open(views, number));
    }
  }

  /** Open a photo by its id, which may be outside the view. */
  async openById(id) {
    try {
      const record = await readPhoto(id, new AbortController().signal);
      const views = this.viewsOf(record);
      this.open(views, views.findIndex((view) => view.id === record.id));
      return record;
    } catch (error) {
      this.handleError(error, () => this.openById(id));
    }
    return null;
  }

  /** The loaded photos at the spot of a record, with itself, by heading. */
  viewsOf(record) {
    const points = this.dots.photos?.points ?? [];
    const views = points.filter((point) => distanceM(point, record) <= SAME_SPOT_M);
    if (!views.some((view) => view.id === record.id)) return [record];
    return views.map((view) => (view.id === record.id ? record : view)).sort((one, other) => (one.heading ?? 0) - (other.heading ?? 0));
  }

  /** Open a match of an answer, with the focus on its card: arrow keys then walk along its sequence. */
  async openMatch(id) {
    await this.walk(id);
    if (this.openId === id) this.card.focus({ preventScroll: true });
  }

  /** Open a photo of the sequence, and keep it in view. */
  async walk(id) {
    const record = id === null || id === undefined ? null : await this.openById(id);
    if (!record) return;
    const at = positionNear(record, this.map.getCenter().lng);
    const card = this.card.getBoundingClientRect();
    // On a phone the card covers the upper part of the map, elsewhere the panel covers the left part.
    const isNarrow = this.map.getSize().x < 700;
    const paddingTopLeft = isNarrow ? [60, card.bottom + 40] : [440, 60];
    this.map.panInside(at, { paddingTopLeft, paddingBottomRight: [isNarrow ? 60 : card.width + 60, 60] });
  }

  handleKey(event) {
    const actions = {
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      ArrowUp: () => this.walk(this.record?.next),
      ArrowDown: () => this.walk(this.record?.previous),
    };
    if (!(event.key in actions) || !this.views) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** The id of the photo that is open, or null. */
  get openId() {
    return this.card.hidden || !this.views ? null : this.views[this.number].id;
  }

  step(by) {
    const count = this.views?.length ?? 0;
    if (count > 1) this.open(this.views, (this.number + by + count) % count);
  }

  /** Draw the card of a photo.  A button of the card that has the focus keeps it. */
  drawCard(record) {
    const url = imageUrl(record.id);
    const oldImage = this.card.querySelector("img");
    const image = oldImage?.getAttribute("src") === url ? oldImage : photo(url, "Indexed photo");
    const focusedRole = this.card.contains(document.activeElement) ? document.activeElement.dataset.role : null;
    const button = cardButton;
    const steps = make(
      "div",
      { class: "steps" },
      button("Previous photo", ICONS.previous, () => this.step(-1)),
      make("span", { class: "muted" }, `View ${this.number + 1} of ${this.views.length} at this spot`),
      button("Next photo", ICONS.next, () => this.step(1)),
    );
    const { previous, next } = record;
    const isSequence = Number.isInteger(previous) || Number.isInteger(next);
    const walk = (text, id) => make("button", {
      type: "button", class: "chip", "data-role": text, disabled: !Number.isInteger(id), onclick: () => this.walk(id),
    }, text);
    const sequence = make(
      "div",
      { class: "steps", role: "group", "aria-label": "Sequence" },
      walk("← Back", previous),
      this.sequenceButton(record),
      walk("Ahead →", next),
    );
    const title = [facing(record.heading), month(record.time)].filter(Boolean).join(" · ");
    this.card.replaceChildren(
      image,
      button("Close photo", ICONS.close, () => this.close(), "icon close"),
      make(
        "div",
        { class: "info" },
        make("p", { class: "title" }, title || "Heading unknown"),
        make("p", { class: "muted" }, coordinates(record)),
        make("p", { class: "muted file", title: record.name ?? "" }, fileName(record.name)),
        this.views.length > 1 ? steps : null,
        isSequence ? sequence : null,
      ),
    );
    this.card.hidden = false;
    if (focusedRole) this.card.querySelector(`[data-role="${focusedRole}"]`)?.focus();
  }

  /** A button that shows and searches only the sequence of a photo, or all sequences again. */
  sequenceButton(record) {
    const isOn = this.filters.sequenceOf !== null;
    const text = isOn ? "All sequences" : "Only this sequence";
    const onclick = () => {
      this.filters.setSequence(isOn ? null : record);
      this.drawCard(record);
    };
    const title = isOn ? "Show and search all photos again" : "Show and search only the photos of this sequence";
    return make("button", { type: "button", class: "chip", title, "data-role": "sequence filter", onclick }, text);
  }

  /** A ring at the photo's position, with a wedge for its heading. */
  drawMarker(record) {
    this.marker?.remove();
    const spot = make("div", { class: "spot" }, make("span", { class: "ring" }));
    if (Number.isFinite(record.heading)) spot.prepend(wedge(record.heading, 56));
    const html = L.divIcon({ className: "spot-icon", html: spot, iconSize: [0, 0] });
    const options = { icon: html, interactive: false, keyboard: false, zIndexOffset: 500 };
    this.marker = L.marker(positionNear(record, this.map.getCenter().lng), options).addTo(this.map);
  }

  close() {
    if (this.card.hidden) return false;
    const hadFocus = this.card.contains(document.activeElement);
    this.reading?.abort();
    this.marker?.remove();
    this.card.hidden = true;
    this.card.replaceChildren();
    this.onChange();
    if (hadFocus) this.map.getContainer().focus({ preventScroll: true });
    return true;
  }
}

const position = (record) => [record.latitude, record.longitude];

function cardButton(label, path, onclick, kind = "icon") {
  const attributes = { type: "button", class: kind, "data-role": label, "aria-label": label, title: label, onclick };
  return make("button", attributes, icon(path));
}
