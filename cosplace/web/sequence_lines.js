// The base map: lines along which the indexed photos were taken, in their order.  No outside requests.
/* global L */
import { ApiError, readLines } from "./api.js";
import { CanvasLayer, mercator } from "./canvas_layers.js";
import { toBox } from "./positions.js";

const LOAD_DELAY_MS = 200; // after the map has stopped
const WORLD_PX = 256;
const nearest = (x, center) => x - Math.round(x - center);

/** Width of a line in CSS pixels: about 7 m, between 2 and 20 pixels. */
const lineWidth = (zoom) => Math.max(2, Math.min(20, 2 ** (zoom - 15.5)));

export const SequenceLines = CanvasLayer.extend({
  options: { padding: 0.3, pane: "lines" },

  onAdd(map) {
    this.lines = [];
    this.loaded = null; // {bounds, zoom} of the last response
    CanvasLayer.prototype.onAdd.call(this, map);
    map.on("moveend", this.loadSoon, this);
    this.load();
  },

  /** Load the lines again, after a change of the index. */
  reload() {
    this.loaded = null;
    this._map.off("moveend", this.loadSoon, this).on("moveend", this.loadSoon, this);
    return this.load();
  },

  loadSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), LOAD_DELAY_MS);
  },

  /** Load the lines of the view.  An index without sequences is asked once. */
  async load() {
    const [view, zoom] = [this._map.getBounds(), this._map.getZoom()];
    if (this.loaded && this.loaded.zoom === zoom && this.loaded.bounds.contains(view)) return;
    this.loading?.abort();
    this.loading = new AbortController();
    const bounds = view.pad(0.5);
    try {
      const { total, lines } = await readLines(toBox(bounds), this.loading.signal);
      if (total === 0) this._map.off("moveend", this.loadSoon, this);
      this.loaded = { bounds, zoom };
      this.lines = lines.map((line) => {
        const points = [];
        for (let k = 0; k < line.length; k += 2) points.push(mercator(line[k], line[k + 1]));
        return points;
      });
      this._map.getContainer().dataset.lines = lines.length;
      this.redraw();
    } catch (error) {
      // The dots of the same view report a server that can't be reached.
      if (error.name !== "AbortError" && !(error instanceof ApiError)) throw error;
    }
  },

  paint(context) {
    const scale = WORLD_PX * 2 ** this._map.getZoom();
    const origin = this._map.getPixelOrigin().add(this._bounds.min);
    const [center] = mercator(this._map.getCenter().lng, 0);
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--street").trim();
    context.lineWidth = lineWidth(this._map.getZoom());
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    for (const points of this.lines) {
      const shift = nearest(points[0][0], center) - points[0][0]; // a line stays in one copy of the world
      points.forEach(([x, y], k) => {
        const across = nearest(x, points[0][0]) + shift;
        const at = [across * scale - origin.x, y * scale - origin.y];
        if (k === 0) context.moveTo(...at);
        else context.lineTo(...at);
      });
    }
    context.stroke();
  },
});
