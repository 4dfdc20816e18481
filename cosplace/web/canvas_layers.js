// Canvas layers under the markers: a grid of coordinates, its labels, and the indexed photos as dots or as a density.
//
// Based on Leaflet's Renderer, which keeps a canvas in position while the map is dragged and zoomed.
/* global L */
import { degrees } from "./text.js";

const HEADINGS_ZOOM = 19.5; // photos 5 m apart are then 25 px apart
const MAX_HEADINGS = 4000;
const MAX_CELLS = 2048; // of a density that are drawn, per side
const DENSITY_MIN = 60; // opacity of a cell with few photos, of 255
const WORLD_PX = 256; // width of the world at zoom 0

/** Longitude and latitude in degrees -> Web Mercator coordinates from 0 to 1. */
export function mercator(longitude, latitude) {
  const sine = Math.sin((Math.max(-85.05, Math.min(85.05, latitude)) * Math.PI) / 180);
  return [(longitude + 180) / 360, 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI)];
}

/** x in the copy of the world nearest to `center`: a view may cross the antimeridian. */
const nearest = (x, center) => x - Math.round(x - center);

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export const CanvasLayer = L.Renderer.extend({
  _initContainer() {
    this._container = L.DomUtil.create("canvas", "canvas-layer");
    this._context = this._container.getContext("2d");
  },
  _destroyContainer() {
    this._container.remove();
    delete this._container;
  },
  _update() {
    if (this._map._animatingZoom && this._bounds) return;
    L.Renderer.prototype._update.call(this);
    const size = this._bounds.getSize();
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.ceil(size.x * ratio), Math.ceil(size.y * ratio)];
    if (this._container.width !== width || this._container.height !== height) {
      this._container.width = width;
      this._container.height = height;
      this._container.style.width = `${size.x}px`;
      this._container.style.height = `${size.y}px`;
    }
    L.DomUtil.setPosition(this._container, this._bounds.min);
    this._context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this._context.clearRect(0, 0, size.x, size.y);
    this.paint(this._context, size, ratio);
  },
  redraw() {
    if (this._map) this._update();
  },
});

const GRID_PX = 100; // distance of two lines, at least

/** The lines of latitude and longitude at round degrees in view: {longitudes: [[degrees, x]], latitudes, decimals}. */
function gridLines(map, size) {
  const bounds = map.getBounds();
  const [step, decimals] = roundStep((GRID_PX * (bounds.getEast() - bounds.getWest())) / size.x);
  const lines = (from, to, position) => {
    const found = [];
    for (let k = Math.ceil(from / step); k * step <= to; k += 1)
      found.push([k * step, Math.round(position(k * step)) + 0.5]);
    return found;
  };
  const across = (longitude) => map.latLngToContainerPoint([bounds.getSouth(), longitude]).x;
  const down = (latitude) => map.latLngToContainerPoint([latitude, bounds.getWest()]).y;
  return {
    longitudes: lines(bounds.getWest(), bounds.getEast(), across),
    latitudes: lines(bounds.getSouth(), bounds.getNorth(), down),
    decimals,
  };
}

/** A layer of the size of the view, drawn again while it moves. */
const ViewLayer = CanvasLayer.extend({
  getEvents() {
    return { ...CanvasLayer.prototype.getEvents.call(this), move: this._update };
  },
});

/** Top of the buttons in the lower right corner of the map: y in CSS pixels. */
function topOfControls(map) {
  const corner = map._controlCorners.bottomright.getBoundingClientRect();
  return corner.top - map.getContainer().getBoundingClientRect().top;
}

/** Labels of the grid, above the dots, with an edge in the color of the background. */
const GridLabels = ViewLayer.extend({
  options: { padding: 0, pane: "labels", left: () => 0 },
  paint(context, size) {
    const { longitudes, latitudes, decimals } = gridLines(this._map, size);
    const left = this.options.left();
    const bottom = topOfControls(this._map);
    context.strokeStyle = color("--background");
    context.fillStyle = color("--grid-text");
    context.lineWidth = 4;
    context.lineJoin = "round";
    context.font = "11px " + getComputedStyle(document.body).fontFamily;
    const label = (text, x, y) => {
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    for (const [value, x] of longitudes) if (x > left) label(degrees(value, "longitude", decimals), x + 6, 16);
    for (const [value, y] of latitudes) {
      const text = degrees(value, "latitude", decimals);
      if (y > 40 && y < bottom) label(text, size.x - 6 - context.measureText(text).width, y - 5);
    }
  },
});

/** Lines of latitude and longitude at round degrees, with labels.  `left()`: pixels covered by the panel. */
export const Grid = ViewLayer.extend({
  options: { padding: 0, pane: "grid", left: () => 0 },
  onAdd(map) {
    ViewLayer.prototype.onAdd.call(this, map);
    this.labels = new GridLabels({ left: this.options.left }).addTo(map);
  },
  onRemove(map) {
    this.labels.remove();
    ViewLayer.prototype.onRemove.call(this, map);
  },
  redraw() {
    ViewLayer.prototype.redraw.call(this);
    if (this._map) this.labels.redraw();
  },
  paint(context, size) {
    const { longitudes, latitudes } = gridLines(this._map, size);
    context.strokeStyle = color("--grid");
    context.lineWidth = 1;
    context.beginPath();
    for (const [, x] of longitudes) {
      context.moveTo(x, 0);
      context.lineTo(x, size.y);
    }
    for (const [, y] of latitudes) {
      context.moveTo(0, y);
      context.lineTo(size.x, y);
    }
    context.stroke();
  },
});

/** The next round number (1, 2 or 5 times a power of ten) from `target` on, and its number of decimals. */
export function roundStep(target) {
  const power = 10 ** Math.floor(Math.log10(target));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= target * (1 - 1e-9));
  return [step, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}

/** Radius of a dot in CSS pixels. */
export function dotRadius(zoom) {
  const stops = [
    [12, 1],
    [15, 1.4],
    [17, 2.4],
    [19, 4.5],
    [21, 6],
  ];
  if (zoom <= stops[0][0]) return stops[0][1];
  for (let k = 1; k < stops.length; k += 1) {
    const [[lowZoom, low], [highZoom, high]] = [stops[k - 1], stops[k]];
    if (zoom <= highZoom) return low + ((high - low) * (zoom - lowZoom)) / (highZoom - lowZoom);
  }
  return stops.at(-1)[1];
}

/** A dot with a soft edge: alpha 0..255 on a square of odd side, in device pixels. */
function dotPixels(radius) {
  const half = Math.ceil(radius);
  const side = 2 * half + 1;
  const alphas = new Uint8Array(side * side);
  for (let y = -half; y <= half; y += 1) {
    for (let x = -half; x <= half; x += 1) {
      const inside = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
      alphas[(y + half) * side + x + half] = 255 * inside;
    }
  }
  return { alphas, half, side };
}

/** "#rrggbb" -> a little-endian pixel with alpha 0. */
const pixel = (hex) => {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return (blue << 16) | (green << 8) | red;
};

/** The indexed photos.  100,000 dots are written into the pixels of one image in a few milliseconds. */
export const Dots = CanvasLayer.extend({
  options: { padding: 0.3, pane: "dots" },
  getEvents() {
    return { ...CanvasLayer.prototype.getEvents.call(this), move: this._moved };
  },
  // The canvas is larger than the view: it is redrawn only when the view leaves it.
  _moved() {
    const corner = this._map.containerPointToLayerPoint([0, 0]);
    const view = L.bounds(corner, corner.add(this._map.getSize()));
    if (this._map.getZoom() === this._zoom && !this._bounds.contains(view)) this._update();
  },

  /**
   * points: [{id, latitude, longitude, heading}].
   * density: null, or {level, cells}: the world is 2 ** level cells wide; cells is [x, y, count, x, y, count, ...].
   */
  setPhotos(points, density) {
    const xs = new Float64Array(points.length);
    const ys = new Float64Array(points.length);
    points.forEach((point, k) => ([xs[k], ys[k]] = mercator(point.longitude, point.latitude)));
    this.photos = { points, density, xs, ys };
    this.redraw();
  },

  /** From Mercator coordinates to CSS pixels of the canvas: x * scale - left, y * scale - top. */
  _project() {
    const scale = WORLD_PX * 2 ** this._map.getZoom();
    const origin = this._map.getPixelOrigin().add(this._bounds.min);
    const [center] = mercator(this._map.getCenter().lng, 0);
    return { scale, left: origin.x, top: origin.y, center };
  },

  /** Indices of the points within `radius` CSS pixels of a position, nearest first. */
  near(latlng, radius) {
    if (!this.photos) return [];
    const { xs, ys } = this.photos;
    const scale = WORLD_PX * 2 ** this._map.getZoom();
    const [x, y] = mercator(latlng.lng, latlng.lat);
    const limit = radius / scale;
    const found = [];
    for (let k = 0; k < xs.length; k += 1) {
      const [across, down] = [Math.abs(nearest(xs[k], x) - x), Math.abs(ys[k] - y)];
      if (across <= limit && down <= limit) {
        const distance = Math.hypot(across, down) * scale;
        if (distance <= radius) found.push([distance, k]);
      }
    }
    return found.sort((one, other) => one[0] - other[0]).map(([, k]) => k);
  },

  /** Whether photos are within `radius` CSS pixels of a position where only their density is drawn. */
  isDense(latlng, radius) {
    const density = this.photos?.density;
    if (!density) return false;
    const { level, cells } = density;
    const count = 2 ** level;
    const [x, y] = mercator(latlng.lng, latlng.lat).map((value) => value * count);
    const reach = (radius / (WORLD_PX * 2 ** this._map.getZoom())) * count + 0.5;
    for (let k = 0; k < cells.length; k += 3) {
      const across = (nearest((cells[k] + 0.5) / count, x / count) - x / count) * count;
      if (Math.abs(across) <= reach && Math.abs(cells[k + 1] + 0.5 - y) <= reach) return true;
    }
    return false;
  },

  paint(context, size, ratio) {
    const started = performance.now();
    if (this.photos) {
      const visible = this._drawDots(context, size, ratio);
      if (visible.length > 0 && this._map.getZoom() >= HEADINGS_ZOOM && visible.length < MAX_HEADINGS)
        this._drawHeadings(context, visible);
      if (this.photos.density) this._drawDensity(context, size);
    }
    this.paintMs = performance.now() - started;
  },

  _drawDots(context, size, ratio) {
    const { xs, ys } = this.photos;
    const { scale, left, top, center } = this._project();
    const [width, height] = [this._container.width, this._container.height];
    const { alphas, half, side } = dotPixels(dotRadius(this._map.getZoom()) * ratio);
    const image = context.createImageData(width, height);
    const base = pixel(color("--dot"));
    const pixels = new Uint32Array(image.data.buffer);
    // At a low zoom many photos share a pixel.  Each adds to its opacity, so dense areas stand out.
    const opacity = this._map.getZoom() < 16 ? 0.62 : 0.9;
    const visible = [];
    let [lastX, lastY] = [-1, -1];
    for (let k = 0; k < xs.length; k += 1) {
      const x = Math.round((nearest(xs[k], center) * scale - left) * ratio);
      const y = Math.round((ys[k] * scale - top) * ratio);
      if (x < half || y < half || x >= width - half || y >= height - half) continue;
      visible.push(k);
      if (x === lastX && y === lastY) continue; // the views of one panorama are consecutive
      [lastX, lastY] = [x, y];
      for (let row = 0; row < side; row += 1) {
        let at = (y + row - half) * width + x - half;
        for (let column = 0; column < side; column += 1, at += 1) {
          const add = alphas[row * side + column] * opacity;
          if (add > 0) {
            const alpha = pixels[at] >>> 24;
            pixels[at] = base | (Math.min(255, alpha + add * (1 - alpha / 255)) << 24);
          }
        }
      }
    }
    context.putImageData(image, 0, 0);
    return visible;
  },

  // At a high zoom a short line shows the heading of each photo.
  _drawHeadings(context, visible) {
    const { xs, ys, points } = this.photos;
    const { scale, left, top, center } = this._project();
    const radius = dotRadius(this._map.getZoom());
    context.strokeStyle = color("--dot");
    context.lineWidth = 1.5;
    context.lineCap = "round";
    context.beginPath();
    for (const k of visible) {
      if (!Number.isFinite(points[k].heading)) continue;
      const turn = (points[k].heading * Math.PI) / 180;
      const [east, north] = [Math.sin(turn), Math.cos(turn)];
      const x = nearest(xs[k], center) * scale - left;
      const y = ys[k] * scale - top;
      context.moveTo(x + (radius + 2) * east, y - (radius + 2) * north);
      context.lineTo(x + (radius + 6) * east, y - (radius + 6) * north);
    }
    context.stroke();
  },

  /** The density of the photos: one pixel per cell, drawn at the size of a cell, with soft borders. */
  _drawDensity(context, size) {
    const { level, cells } = this.photos.density;
    const { scale, left, top, center } = this._project();
    const count = 2 ** level;
    const side = scale / count; // of a cell, in CSS pixels
    const [firstColumn, firstRow] = [Math.floor(left / side) - 1, Math.floor(top / side) - 1];
    const [columns, rows] = [Math.ceil(size.x / side) + 3, Math.ceil(size.y / side) + 3];
    if (columns > MAX_CELLS || rows > MAX_CELLS) return; // the cells of a closer view, until those of this one arrive
    const bitmap = document.createElement("canvas");
    Object.assign(bitmap, { width: columns, height: rows });
    const pen = bitmap.getContext("2d");
    const image = pen.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const base = pixel(color("--density"));
    let most = 1;
    for (let k = 2; k < cells.length; k += 3) most = Math.max(most, cells[k]);
    for (let k = 0; k < cells.length; k += 3) {
      const column = Math.floor(nearest((cells[k] + 0.5) / count, center) * count) - firstColumn;
      const row = cells[k + 1] - firstRow;
      if (column < 0 || row < 0 || column >= columns || row >= rows) continue;
      const share = Math.log1p(cells[k + 2]) / Math.log1p(most);
      pixels[row * columns + column] = base | (Math.round(DENSITY_MIN + (255 - DENSITY_MIN) * share) << 24);
    }
    pen.putImageData(image, 0, 0);
    const [x, y] = [firstColumn * side - left, firstRow * side - top];
    context.drawImage(bitmap, x, y, columns * side, rows * side);
  },
});
