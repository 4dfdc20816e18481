// The indexed photos on the map: loaded for the view, and a card for the one that is clicked.
/* global L */
import { ApiError, imageUrl, readPhoto, readPoints } from "./api.js";
import { ICONS, icon, make, photo, wedge } from "./dom.js";
import { boundsNear, positionNear } from "./positions.js";
import { coordinates, facing, fileName, month } from "./text.js";

const MAX_POINTS = 100000;
const MAX_POINTS_PHONE = 20000;
const LOAD_DELAY_MS = 150; // after the map has stopped
const SAME_SPOT_M = 3; // the views of one panorama have the same position, up to rounding

export class IndexPhotos {
  constructor(map, dots, card, { onError, onChange }) {
    Object.assign(this, { map, dots, card, onError, onChange });
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
    if (loaded?.bounds.contains(view) && (loaded.complete || loaded.zoom === zoom)) return;
    this.loading?.abort();
    this.loading = new AbortController();
    const bounds = view.pad(0.5);
    const limit = this.map.getSize().x < 700 ? MAX_POINTS_PHONE : MAX_POINTS;
    try {
      const response = await readPoints(toBox(bounds), limit, this.loading.signal);
      const [points, clusters] = [response.points ?? [], response.clusters ?? []];
      this.loaded = { bounds, zoom, complete: clusters.length === 0 && points.length >= response.total };
      this.dots.setPhotos(points, clusters);
      this.map.getContainer().dataset.points = points.length;
      this.map.getContainer().dataset.clusters = clusters.length;
    } catch (error) {
      this.handleError(error);
    }
  }

  handleError(error) {
    if (error instanceof ApiError) this.onError(error.message);
    else if (error.name !== "AbortError") throw error;
  }

  updateCursor(latlng) {
    const isClickable = this.dots.clusterAt(latlng) || this.dots.near(latlng, 8).length > 0;
    this.map.getContainer().classList.toggle("clickable", Boolean(isClickable));
  }

  handleClick(latlng, event) {
    const cluster = this.dots.clusterAt(latlng);
    if (cluster?.bbox) {
      this.map.fitBounds(boundsNear(cluster.bbox, latlng.lng), { padding: [60, 60], maxZoom: this.map.getZoom() + 4 });
      return;
    }
    this.openNear(latlng, event?.pointerType === "touch" ? 22 : 10);
  }

  /** Open the photo nearest to a position, within `radius` pixels.  Where photos are too dense, zoom in first. */
  openNear(latlng, radius) {
    const found = this.dots.near(latlng, radius).map((k) => this.dots.photos.points[k]);
    if (found.length === 0) return false;
    const distance = (point) => this.map.distance(position(point), position(found[0]));
    const spread = Math.max(...found.map(distance));
    if (found.length > 60 && spread > 2 * SAME_SPOT_M && this.map.getZoom() < this.map.getMaxZoom() - 1) {
      this.map.setView(latlng, Math.min(this.map.getMaxZoom() - 1, this.map.getZoom() + 3));
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
    const wasOpen = !this.card.hidden;
    this.drawCard(point, wasOpen);
    this.onChange();
    try {
      const record = await readPhoto(point.id, this.reading.signal);
      this.drawCard({ ...point, ...record }, wasOpen);
    } catch (error) {
      this.handleError(error);
    }
  }

  /** Open a photo by its id, which may be outside the view. */
  async openById(id) {
    try {
      const record = await readPhoto(id, new AbortController().signal);
      this.open([record], 0);
    } catch (error) {
      this.handleError(error);
    }
  }

  /** The id of the photo that is open, or null. */
  get openId() {
    return this.card.hidden ? null : this.views[this.number].id;
  }

  step(by) {
    const count = this.views?.length ?? 0;
    if (count > 1) this.open(this.views, (this.number + by + count) % count);
  }

  drawCard(record, wasOpen) {
    const url = imageUrl(record.id);
    const oldImage = this.card.querySelector("img");
    const image = oldImage?.getAttribute("src") === url ? oldImage : photo(url, "Indexed photo");
    const focusedRole = document.activeElement?.dataset?.role;
    const button = (label, path, onclick, kind = "icon") =>
      make(
        "button",
        { type: "button", class: kind, "data-role": label, "aria-label": label, title: label, onclick },
        icon(path),
      );
    const steps = make(
      "div",
      { class: "steps" },
      button("Previous photo", ICONS.previous, () => this.step(-1)),
      make("span", { class: "muted" }, `View ${this.number + 1} of ${this.views.length} at this spot`),
      button("Next photo", ICONS.next, () => this.step(1)),
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
      ),
    );
    this.card.hidden = false;
    if (wasOpen && focusedRole) this.card.querySelector(`[data-role="${focusedRole}"]`)?.focus();
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

/** Leaflet's bounds -> [west, south, east, north]; west is larger than east across the antimeridian. */
export function toBox(bounds) {
  const [west, east] = [bounds.getWest(), bounds.getEast()];
  const wrap = (longitude) => ((((longitude + 180) % 360) + 360) % 360) - 180;
  const sides = east - west >= 360 ? [-180, 180] : [wrap(west), wrap(east)];
  return [sides[0], Math.max(-90, bounds.getSouth()), sides[1], Math.min(90, bounds.getNorth())];
}
