// Two canvases under the map's markers: a graticule in place of streets, and the known photos as dots.
//
// Built on Leaflet's own Renderer, which keeps a canvas in place while the map is dragged and zoomed.
/* global L */
import { degrees } from "./words.js";

const HEADINGS_ZOOM = 19.5; // cameras 5 m apart then stand 25 px apart
const MOST_HEADINGS = 4000;
const CLUSTER_PX = 76; // two clusters stand about so far apart on the screen
const WORLD_PX = 256; // the Mercator square at zoom 0

/** Longitude and latitude in degrees -> the unit square of Web Mercator. */
export function mercator(longitude, latitude) {
  const sine = Math.sin((Math.max(-85.05, Math.min(85.05, latitude)) * Math.PI) / 180);
  return [(longitude + 180) / 360, 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI)];
}

/** The same place in the copy of the world that lies nearest: a view may cross the date line. */
const nearest = (x, middle) => x - Math.round(x - middle);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const Sheet = L.Renderer.extend({
  _initContainer() {
    this._container = L.DomUtil.create("canvas", "sheet");
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

const LINE_PX = 100;
const CONTROLS_PX = 130; // the zoom buttons and the scale, lower right

/** Lines of latitude and longitude at round degrees, named at the edges; `left()`: pixels that the panel covers. */
export const Graticule = Sheet.extend({
  options: { padding: 0, pane: "graticule", left: () => 0 },
  getEvents() {
    return { ...Sheet.prototype.getEvents.call(this), move: this._update };
  },
  paint(context, size) {
    const map = this._map;
    const bounds = map.getBounds();
    const [step, decimals] = roundStep((LINE_PX * (bounds.getEast() - bounds.getWest())) / size.x);
    context.strokeStyle = colour("--grid");
    context.fillStyle = colour("--grid-text");
    context.lineWidth = 1;
    context.font = "11px " + getComputedStyle(document.body).fontFamily;
    const left = this.options.left();
    const lines = (from, to, position, line) => {
      for (let k = Math.ceil(from / step); k * step <= to; k += 1) line(k * step, Math.round(position(k * step)) + 0.5);
    };
    context.beginPath();
    const across = (longitude) => map.latLngToContainerPoint([bounds.getSouth(), longitude]).x;
    const down = (latitude) => map.latLngToContainerPoint([latitude, bounds.getWest()]).y;
    lines(bounds.getWest(), bounds.getEast(), across, (value, x) => {
      context.moveTo(x, 0);
      context.lineTo(x, size.y);
      if (x > left) context.fillText(degrees(value, "longitude", decimals), x + 6, 16);
    });
    lines(bounds.getSouth(), bounds.getNorth(), down, (value, y) => {
      context.moveTo(0, y);
      context.lineTo(size.x, y);
      const text = degrees(value, "latitude", decimals);
      if (y > 40 && y < size.y - CONTROLS_PX)
        context.fillText(text, size.x - 6 - context.measureText(text).width, y - 5);
    });
    context.stroke();
  },
});

/** The round number of degrees (1, 2 or 5 times a power of ten) nearest above, and its decimals. */
export function roundStep(target) {
  const power = 10 ** Math.floor(Math.log10(target));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= target * (1 - 1e-9));
  return [step, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}

/** A dot's radius in CSS pixels: fine dust over a city, buttons in a street. */
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

/** A round dot with a soft edge: alpha 0..255 on a square of odd side, device pixels. */
function stamp(radius) {
  const reach = Math.ceil(radius);
  const side = 2 * reach + 1;
  const alphas = new Uint8Array(side * side);
  for (let y = -reach; y <= reach; y += 1) {
    for (let x = -reach; x <= reach; x += 1) {
      const inside = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
      alphas[(y + reach) * side + x + reach] = 255 * inside;
    }
  }
  return { alphas, reach, side };
}

/** "#rrggbb" -> one little-endian pixel with alpha 0. */
const pixel = (hex) => {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return (blue << 16) | (green << 8) | red;
};

/** The known photos. 100,000 are stamped into the pixels of one image in a few milliseconds. */
export const Dots = Sheet.extend({
  options: { padding: 0.3, pane: "dots" },
  getEvents() {
    return { ...Sheet.prototype.getEvents.call(this), move: this._moved };
  },
  // The canvas is larger than the view, so a drag costs nothing until it leaves the canvas.
  _moved() {
    const corner = this._map.containerPointToLayerPoint([0, 0]);
    const view = L.bounds(corner, corner.add(this._map.getSize()));
    if (this._map.getZoom() === this._zoom && !this._bounds.contains(view)) this._update();
  },

  /** points: [{id, latitude, longitude, heading}]; clusters: [{latitude, longitude, count, bbox}]. */
  setPlaces(points, clusters) {
    const xs = new Float64Array(points.length);
    const ys = new Float64Array(points.length);
    points.forEach((point, k) => ([xs[k], ys[k]] = mercator(point.longitude, point.latitude)));
    this.places = { points, clusters, xs, ys };
    this.redraw();
  },

  /** Unit square -> CSS pixels of the canvas: x * scale - left, y * scale - top. */
  _project() {
    const scale = WORLD_PX * 2 ** this._map.getZoom();
    const origin = this._map.getPixelOrigin().add(this._bounds.min);
    const [middle] = mercator(this._map.getCenter().lng, 0);
    return { scale, left: origin.x, top: origin.y, middle };
  },

  /** The points within `reach` CSS pixels of a place on the screen, nearest first: indices. */
  near(latlng, reach) {
    if (!this.places) return [];
    const { xs, ys } = this.places;
    const scale = WORLD_PX * 2 ** this._map.getZoom();
    const [x, y] = mercator(latlng.lng, latlng.lat);
    const limit = reach / scale;
    const found = [];
    for (let k = 0; k < xs.length; k += 1) {
      const [across, down] = [Math.abs(nearest(xs[k], x) - x), Math.abs(ys[k] - y)];
      if (across <= limit && down <= limit) {
        const distance = Math.hypot(across, down) * scale;
        if (distance <= reach) found.push([distance, k]);
      }
    }
    return found.sort((one, other) => one[0] - other[0]).map(([, k]) => k);
  },

  /** The cluster under a place on the screen, if any. */
  clusterAt(latlng) {
    const at = this._map.latLngToLayerPoint(latlng);
    return this._clusters().find(
      (cluster) =>
        this._map.latLngToLayerPoint([cluster.latitude, cluster.longitude]).distanceTo(at) <= clusterRadius(cluster),
    );
  },

  paint(context, size, ratio) {
    const began = performance.now();
    if (this.places) {
      const seen = this._stampDots(context, size, ratio);
      if (seen.length > 0 && this._map.getZoom() >= HEADINGS_ZOOM && seen.length < MOST_HEADINGS)
        this._drawHeadings(context, seen);
      this._drawClusters(context);
    }
    this.paintMs = performance.now() - began;
  },

  _stampDots(context, size, ratio) {
    const { xs, ys } = this.places;
    const { scale, left, top, middle } = this._project();
    const [width, height] = [this._container.width, this._container.height];
    const { alphas, reach, side } = stamp(dotRadius(this._map.getZoom()) * ratio);
    const image = context.createImageData(width, height);
    const base = pixel(colour("--dot"));
    const pixels = new Uint32Array(image.data.buffer);
    // Over a city many photos share a pixel: each one adds to it, so busy streets stand out.
    const share = this._map.getZoom() < 16 ? 0.62 : 0.9;
    const seen = [];
    let [lastX, lastY] = [-1, -1];
    for (let k = 0; k < xs.length; k += 1) {
      const x = Math.round((nearest(xs[k], middle) * scale - left) * ratio);
      const y = Math.round((ys[k] * scale - top) * ratio);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      seen.push(k);
      if (x === lastX && y === lastY) continue; // the views of one panorama follow each other
      [lastX, lastY] = [x, y];
      for (let row = 0; row < side; row += 1) {
        let at = (y + row - reach) * width + x - reach;
        for (let column = 0; column < side; column += 1, at += 1) {
          const add = alphas[row * side + column] * share;
          if (add > 0) {
            const alpha = pixels[at] >>> 24;
            pixels[at] = base | (Math.min(255, alpha + add * (1 - alpha / 255)) << 24);
          }
        }
      }
    }
    context.putImageData(image, 0, 0);
    return seen;
  },

  // Close up, a short line says where each photo looks; twelve on one spot make a small sun.
  _drawHeadings(context, seen) {
    const { xs, ys, points } = this.places;
    const { scale, left, top, middle } = this._project();
    const radius = dotRadius(this._map.getZoom());
    context.strokeStyle = colour("--dot");
    context.lineWidth = 1.5;
    context.lineCap = "round";
    context.beginPath();
    for (const k of seen) {
      if (!Number.isFinite(points[k].heading)) continue;
      const turn = (points[k].heading * Math.PI) / 180;
      const [east, north] = [Math.sin(turn), Math.cos(turn)];
      const x = nearest(xs[k], middle) * scale - left;
      const y = ys[k] * scale - top;
      context.moveTo(x + (radius + 2) * east, y - (radius + 2) * north);
      context.lineTo(x + (radius + 6) * east, y - (radius + 6) * north);
    }
    context.stroke();
  },

  /** The server's clusters, joined until each has room on this zoom. */
  _clusters() {
    const zoom = this._map.getZoom();
    if (!this.places) return [];
    if (this.places.joinedAt !== zoom) {
      this.places.joined = joinClusters(this.places.clusters, CLUSTER_PX / (WORLD_PX * 2 ** zoom));
      this.places.joinedAt = zoom;
    }
    return this.places.joined;
  },

  _drawClusters(context) {
    context.font = "600 12px " + getComputedStyle(document.body).fontFamily;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
    for (const cluster of this._clusters()) {
      const at = this._map.latLngToLayerPoint([cluster.latitude, cluster.longitude]).subtract(this._bounds.min);
      context.beginPath();
      context.arc(at.x, at.y, clusterRadius(cluster), 0, 2 * Math.PI);
      context.fillStyle = colour("--cluster");
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = colour("--cluster-edge");
      context.stroke();
      context.fillStyle = colour("--cluster-text");
      context.fillText(short.format(cluster.count), at.x, at.y + 0.5);
    }
  },
});

/** Clusters in one cell of a grid become one, at the middle of their photos. side: of a cell, in the unit square. */
export function joinClusters(clusters, side) {
  const cells = new Map();
  for (const cluster of clusters) {
    const [x, y] = mercator(cluster.longitude, cluster.latitude);
    const key = `${Math.floor(x / side)} ${Math.floor(y / side)}`;
    const cell = cells.get(key);
    if (!cell) {
      cells.set(key, { ...cluster });
      continue;
    }
    const count = cell.count + cluster.count;
    for (const axis of ["latitude", "longitude"]) {
      cell[axis] = (cell[axis] * cell.count + cluster[axis] * cluster.count) / count;
    }
    const [one, other] = [cell.bbox, cluster.bbox];
    cell.bbox = [
      Math.min(one[0], other[0]),
      Math.min(one[1], other[1]),
      Math.max(one[2], other[2]),
      Math.max(one[3], other[3]),
    ];
    cell.count = count;
  }
  return [...cells.values()];
}

/** CSS pixels: ten photos 13, a thousand 22, a million 34. */
export const clusterRadius = (cluster) => 9 + 4.2 * Math.log10(Math.max(10, cluster.count));
