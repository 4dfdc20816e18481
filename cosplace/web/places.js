// The known photos on the map: fetched for the view, and a card for the one that is clicked.
/* global L */
import { ApiError, imageAddress, readPhoto, readPoints } from "./api.js";
import { SIGNS, make, picture, sign, wedge } from "./dom.js";
import { coordinates, fileName, looking, month, photos } from "./words.js";

const MOST_POINTS = 100000;
const MOST_POINTS_PHONE = 20000;
const SETTLE_MS = 150;
const TOGETHER_M = 3; // photos of one panorama stand on one spot, give or take rounding

export class Places {
  constructor(map, dots, card, { onFail, onOpen }) {
    Object.assign(this, { map, dots, card, onFail, onOpen });
    this.loaded = null; // what the last answer covers
    this.marker = null;
    map.on("moveend", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), SETTLE_MS);
    });
    map.on("click", (event) => this.click(event.latlng, event.originalEvent));
    map.on("mousemove", (event) => this.hover(event.latlng));
  }

  /** Fetch what the view needs; a newer view stops an older fetch. */
  async load() {
    const view = this.map.getBounds();
    const zoom = this.map.getZoom();
    const { loaded } = this;
    if (loaded?.bounds.contains(view) && (loaded.complete || loaded.zoom === zoom)) return;
    this.fetching?.abort();
    this.fetching = new AbortController();
    const bounds = view.pad(0.5);
    const limit = this.map.getSize().x < 700 ? MOST_POINTS_PHONE : MOST_POINTS;
    try {
      const found = await readPoints(box(bounds), limit, this.fetching.signal);
      const [points, clusters] = [found.points ?? [], found.clusters ?? []];
      this.loaded = { bounds, zoom, complete: clusters.length === 0 && points.length >= found.total };
      this.dots.setPlaces(points, clusters);
      this.map.getContainer().dataset.points = points.length;
      this.map.getContainer().dataset.clusters = clusters.length;
    } catch (error) {
      if (error instanceof ApiError) this.onFail(error.message);
      else if (error.name !== "AbortError") throw error;
    }
  }

  hover(latlng) {
    const found = this.dots.clusterAt(latlng) || this.dots.near(latlng, 8).length > 0;
    this.map.getContainer().classList.toggle("over", Boolean(found));
  }

  click(latlng, source) {
    const cluster = this.dots.clusterAt(latlng);
    if (cluster?.bbox) {
      const [west, south, east, north] = cluster.bbox;
      this.map.fitBounds(
        [
          [south, west],
          [north, east],
        ],
        { padding: [60, 60], maxZoom: this.map.getZoom() + 4 },
      );
      return;
    }
    const reach = source?.pointerType === "touch" ? 22 : 10;
    this.openNear(latlng, reach);
  }

  /** Open the photo nearest to a place; where too many lie under the finger, come closer first. */
  openNear(latlng, reach) {
    const found = this.dots.near(latlng, reach).map((k) => this.dots.places.points[k]);
    if (found.length === 0) return false;
    const spread = Math.max(...found.map((point) => this.map.distance(place(point), place(found[0]))));
    if (found.length > 60 && spread > 2 * TOGETHER_M && this.map.getZoom() < this.map.getMaxZoom() - 1) {
      this.map.setView(latlng, Math.min(this.map.getMaxZoom() - 1, this.map.getZoom() + 3));
      return true;
    }
    const here = found.filter((point) => this.map.distance(place(point), place(found[0])) <= TOGETHER_M);
    here.sort((one, other) => (one.heading ?? 0) - (other.heading ?? 0));
    this.open(here, here.indexOf(found[0]));
    return true;
  }

  /** Show one of the photos that stand on one spot. */
  async open(here, number) {
    const point = here[number];
    this.reading?.abort();
    this.reading = new AbortController();
    this.here = here;
    this.number = number;
    this.point(point);
    const wasOpen = !this.card.hidden;
    this.show(point, {}, here, number, wasOpen);
    try {
      const record = await readPhoto(point.id, this.reading.signal);
      this.show({ ...point, ...record }, record, here, number, wasOpen);
    } catch (error) {
      if (error instanceof ApiError) this.onFail(error.message);
      else if (error.name !== "AbortError") throw error;
    }
  }

  step(by) {
    const count = this.here?.length ?? 0;
    if (count > 1) this.open(this.here, (this.number + by + count) % count);
  }

  show(photo, record, here, number, wasOpen) {
    const kept = this.card.querySelector("img")?.getAttribute("src") === imageAddress(photo.id);
    const image = kept ? this.card.querySelector("img") : picture(imageAddress(photo.id), "The known photo");
    const focused = document.activeElement?.dataset?.role;
    const turn = (by, label, path) =>
      make(
        "button",
        { type: "button", class: "icon", "data-role": label, "aria-label": label, onclick: () => this.step(by) },
        sign(path),
      );
    const steps =
      here.length > 1
        ? make(
            "div",
            { class: "steps" },
            turn(-1, "Photo before", SIGNS.before),
            make("span", { class: "quiet" }, `${number + 1} of ${here.length} here`),
            turn(1, "Photo after", SIGNS.after),
          )
        : null;
    const close = make(
      "button",
      {
        type: "button",
        class: "icon close",
        "data-role": "close",
        "aria-label": "Close photo",
        onclick: () => this.close(),
      },
      sign(SIGNS.close),
    );
    const facts = [looking(photo.heading), month(record.time)].filter(Boolean).join(" · ");
    this.card.replaceChildren(
      image,
      close,
      make(
        "div",
        { class: "facts" },
        make("p", { class: "looking" }, facts || "Direction not known"),
        make("p", { class: "quiet" }, coordinates(photo)),
        make("p", { class: "quiet file", title: record.path ?? "" }, fileName(record.path)),
        steps,
      ),
    );
    this.card.hidden = false;
    this.onOpen?.();
    const target = wasOpen && focused ? this.card.querySelector(`[data-role="${focused}"]`) : null;
    target?.focus();
  }

  /** A wedge at the photo's place, turned to its heading. */
  point(photo) {
    this.marker?.remove();
    const spot = make("div", { class: "spot" }, make("span", { class: "ring" }));
    if (Number.isFinite(photo.heading)) spot.prepend(wedge(photo.heading, 56));
    const icon = L.divIcon({ className: "spot-icon", html: spot, iconSize: [0, 0] });
    this.marker = L.marker(place(photo), { icon, interactive: false, keyboard: false, zIndexOffset: 500 }).addTo(
      this.map,
    );
  }

  close() {
    if (this.card.hidden) return false;
    const within = this.card.contains(document.activeElement);
    this.reading?.abort();
    this.marker?.remove();
    this.card.hidden = true;
    this.card.replaceChildren();
    if (within) this.map.getContainer().focus({ preventScroll: true });
    return true;
  }
}

const place = (record) => [record.latitude, record.longitude];

/** [west, south, east, north] of Leaflet's bounds; west is larger than east where they cross the date line. */
export function box(bounds) {
  const [west, east] = [bounds.getWest(), bounds.getEast()];
  const wrap = (longitude) => ((((longitude + 180) % 360) + 360) % 360) - 180;
  const sides = east - west >= 360 ? [-180, 180] : [wrap(west), wrap(east)];
  return [sides[0], Math.max(-90, bounds.getSouth()), sides[1], Math.min(90, bounds.getNorth())];
}

/** "120 photos known", "No photos yet". */
export const known = (count) => (count > 0 ? `${photos(count)} known` : "No photos known yet");
