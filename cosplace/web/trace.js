// The answers on the map: a pin for each, and for the chosen one its radius, its neighbours and the lines to them.
/* global L */
import { imageAddress } from "./api.js";
import { make, picture, wedge } from "./dom.js";
import { answer, hasPlace, isFound } from "./words.js";

const MOST_NEIGHBOURS = 12;
const NEAR_RADII = 3; // neighbours farther off are drawn, but do not shrink the view

const place = (record) => [record.latitude, record.longitude];

/** Neighbours on one spot share one mark: [{neighbour, ranks}], best first. */
export function spots(neighbours) {
  const found = new Map();
  neighbours.slice(0, MOST_NEIGHBOURS).forEach((neighbour, k) => {
    if (!hasPlace(neighbour)) return;
    const key = `${neighbour.latitude.toFixed(5)} ${neighbour.longitude.toFixed(5)}`;
    const spot = found.get(key) ?? { neighbour, ranks: [] };
    spot.ranks.push(k);
    found.set(key, spot);
  });
  return [...found.values()];
}

export class Trace {
  constructor(map, { onChoose, onNeighbour }) {
    Object.assign(this, { map, onChoose, onNeighbour });
    this.group = L.layerGroup().addTo(map);
  }

  draw(entries, chosen, rank) {
    this.group.clearLayers();
    for (const entry of entries) {
      const result = entry.result;
      if (result && isFound(result)) this.pin(entry, entry === chosen);
    }
    if (chosen?.result) this.evidence(chosen, rank);
  }

  add(layer) {
    return layer.addTo(this.group);
  }

  pin(entry, isChosen) {
    const head = make("div", { class: isChosen ? "pin chosen" : "pin" }, make("span", {}, entry.letter));
    head.style.setProperty("--own", entry.colour);
    const icon = L.divIcon({ className: "pin-icon", html: head, iconSize: [0, 0] });
    const label = `Photo ${entry.letter}: ${answer(entry.result)}`;
    const marker = L.marker(place(entry.result), {
      icon,
      alt: label,
      title: entry.name,
      zIndexOffset: isChosen ? 1000 : 600,
    });
    this.add(marker.on("click", () => this.onChoose(entry)));
    marker.getElement()?.setAttribute("aria-label", label);
  }

  evidence(entry, rank) {
    const { result, colour } = entry;
    const found = isFound(result);
    if (found && Number.isFinite(result.radius_m)) {
      const look = {
        color: colour,
        weight: 2,
        fillColor: colour,
        fillOpacity: 0.12,
        interactive: false,
        className: "radius",
      };
      this.add(L.circle(place(result), { ...look, radius: result.radius_m }));
    }
    const neighbours = result.neighbours ?? [];
    for (const { neighbour, ranks } of spots(neighbours)) {
      const isShown = ranks.includes(rank);
      if (found) {
        const isFar =
          this.map.distance(place(neighbour), place(result)) > NEAR_RADII * Math.max(20, result.radius_m ?? 0);
        const look = isShown
          ? { weight: 3, opacity: 0.95 }
          : { weight: 1.5, opacity: isFar ? 0.25 : 0.6, dashArray: "2 6" };
        const line = [place(result), place(neighbour)];
        this.add(L.polyline(line, { ...look, color: colour, lineCap: "round", interactive: false, className: "line" }));
      }
      this.mark(entry, isShown ? neighbours[rank] : neighbour, ranks, isShown);
    }
  }

  mark(entry, neighbour, ranks, isShown) {
    const label =
      ranks
        .slice(0, 3)
        .map((rank) => rank + 1)
        .join(" ") + (ranks.length > 3 ? " …" : "");
    const spot = make("div", { class: isShown ? "near chosen" : "near" }, make("span", {}, label));
    spot.style.setProperty("--own", entry.colour);
    if (isShown && Number.isFinite(neighbour.heading)) spot.prepend(wedge(neighbour.heading));
    const icon = L.divIcon({ className: "near-icon", html: spot, iconSize: [0, 0] });
    const words = `Known photo ${label}`;
    const marker = L.marker(place(neighbour), { icon, alt: words, zIndexOffset: isShown ? 400 : 200 - ranks[0] });
    const preview = () => make("div", { class: "preview" }, picture(imageAddress(neighbour.id), words));
    marker.bindTooltip(preview, { direction: "top", offset: [0, -14], className: "bubble", opacity: 1 });
    this.add(marker.on("click", () => this.onNeighbour(ranks[0])));
    marker.getElement()?.setAttribute("aria-label", words);
  }

  /** Bring the answer and the neighbours that agree with it into view. */
  show(entry, padding, smooth) {
    const result = entry?.result;
    if (!result) return;
    const found = isFound(result);
    const placed = (result.neighbours ?? []).slice(0, MOST_NEIGHBOURS).filter(hasPlace);
    if (!found && placed.length === 0) return;
    const centre = found ? result : placed[0];
    const radius = Math.max(20, found && Number.isFinite(result.radius_m) ? result.radius_m : 30);
    const bounds = L.latLng(place(centre)).toBounds(2.6 * radius);
    for (const neighbour of placed) {
      if (!found || this.map.distance(place(neighbour), place(centre)) <= NEAR_RADII * radius)
        bounds.extend(place(neighbour));
    }
    const move = smooth ? this.map.flyToBounds : this.map.fitBounds;
    move.call(this.map, bounds, { ...padding, maxZoom: 20, duration: 0.7 });
  }
}
