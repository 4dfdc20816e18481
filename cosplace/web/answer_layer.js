// Answers on the map: a pin for each and, for the selected one, its radius, its matches and lines to them.
/* global L */
import { imageUrl } from "./api.js";
import { make, photo, wedge } from "./dom.js";
import { positionNear } from "./positions.js";
import { hasPosition, headline, isGuess, placeOf } from "./text.js";

const MAX_MATCHES = 12;
const MIN_RADIUS_M = 20;
const UNKNOWN_RADIUS_M = 30; // shown around the first match
const MATCH_PX = 20; // marks of matches that are closer are one mark
const PIN_PX = 14;
const MAX_EXIF_M = 1000; // EXIF positions farther away do not enlarge the view
const NEAR_RADII = 3; // matches farther away are drawn, but do not enlarge the view

const position = (record) => [record.latitude, record.longitude]; // for distances

/** Put records whose marks would overlap, within `distance` pixels, into groups.  toPoint: record -> {x, y} or null. */
export function groupByPixels(records, toPoint, distance) {
  const groups = [];
  records.forEach((record, number) => {
    const point = toPoint(record);
    if (!point) return;
    const group = groups.find(({ at }) => Math.hypot(at.x - point.x, at.y - point.y) < distance);
    if (group) group.numbers.push(number);
    else groups.push({ at: point, first: record, numbers: [number] });
  });
  return groups;
}

export class AnswerLayer {
  constructor(map, { onSelect, onMatch }) {
    Object.assign(this, { map, onSelect, onMatch });
    this.group = L.layerGroup().addTo(map);
    this.drawn = null; // the arguments of the last draw()
    map.on("zoomend", () => this.drawn && this.draw(...this.drawn)); // other marks overlap now
    // The view may have moved to another copy of the world.
    map.on("moveend", () => {
      if (this.drawn && this.longitudes(this.drawn[0]) !== this.drawnAt) this.draw(...this.drawn);
    });
  }

  /** Where the answers are drawn, as text to compare. */
  longitudes(entries) {
    const anchors = entries.map(({ result }) => result && this.anchor(result));
    return anchors.map((anchor) => (anchor ? this.at(anchor)[1] : "")).join(" ");
  }

  /** What decides the copy of the world that a result is drawn in: its place, else the best match with a position. */
  anchor(result) {
    return placeOf(result) ?? result.neighbours?.find(hasPosition);
  }

  /** A position in the copy of the world in view. */
  at(record) {
    return positionNear(record, this.map.getCenter().lng);
  }

  draw(entries, selected, rank) {
    this.group.clearLayers();
    this.drawn = [entries, selected, rank];
    this.drawnAt = this.longitudes(entries);
    const placed = entries.filter(({ result }) => result && placeOf(result));
    const ordered = [...placed.filter((entry) => entry === selected), ...placed.filter((entry) => entry !== selected)];
    for (const { numbers } of groupByPixels(ordered, ({ result }) => this.pixel(placeOf(result)), PIN_PX))
      this.drawPin(numbers.map((number) => ordered[number]), selected);
    if (selected?.result) this.drawMatches(selected, rank);
  }

  add(layer) {
    return layer.addTo(this.group);
  }

  /** Where a record is on the screen. */
  pixel(record) {
    return this.map.latLngToLayerPoint(this.at(record));
  }

  /** A pin for entries at one spot; a click selects the next of them. */
  drawPin(entries, selected) {
    const [entry] = entries;
    const isSelected = entry === selected;
    const others = entries.length > 1 ? `+${entries.length - 1}` : "";
    const kinds = ["pin", isSelected && "selected", isGuess(entry.result) && "guess"].filter(Boolean).join(" ");
    const pin = make("div", { class: kinds }, make("span", {}, entry.letter + others));
    pin.style.setProperty("--color", entry.color);
    const label = entries.map((one) => `Photo ${one.letter}: ${headline(one.result)}`).join("; ");
    const marker = L.marker(this.at(placeOf(entry.result)), {
      icon: L.divIcon({ className: "pin-icon", html: pin, iconSize: [0, 0] }),
      alt: label,
      title: entries.map(({ name }) => name).join(", "),
      zIndexOffset: isSelected ? 1000 : 600,
    });
    this.add(marker.on("click", () => this.onSelect(isSelected && others ? entries[1] : entry)));
    marker.getElement()?.setAttribute("aria-label", label);
  }

  drawMatches(entry, rank) {
    const { result, color } = entry;
    const place = placeOf(result);
    if (place && Number.isFinite(place.radius_m)) {
      // A guess has a dashed circle and a hollow pin.
      const [dashArray, fillOpacity] = isGuess(result) ? ["7 7", 0.04] : [null, 0.12];
      const style = { color, weight: 2, fillColor: color, fillOpacity, dashArray, interactive: false };
      this.add(L.circle(this.at(place), { ...style, radius: place.radius_m, className: "radius" }));
    }
    const matches = (result.neighbours ?? []).slice(0, MAX_MATCHES);
    if (hasPosition(result.exif)) this.drawExif(entry, place);
    const anchor = this.anchor(result);
    if (!anchor) return;
    const longitude = this.at(anchor)[1]; // a line to a match is as short as on the ground
    const toPoint = (match) => (hasPosition(match) ? this.pixel(match) : null);
    for (const { first: match, numbers: ranks } of groupByPixels(matches, toPoint, MATCH_PX)) {
      const isShown = ranks.includes(rank);
      if (place) {
        const distance = this.map.distance(position(match), position(place));
        const isFar = distance > NEAR_RADII * Math.max(MIN_RADIUS_M, place.radius_m ?? 0);
        const style = isShown
          ? { weight: 3, opacity: 0.95 }
          : { weight: 1.5, opacity: isFar ? 0.25 : 0.6, dashArray: "2 6" };
        const options = { ...style, color, lineCap: "round", interactive: false, className: "line" };
        this.add(L.polyline([this.at(place), positionNear(match, longitude)], options));
      }
      this.drawMatch(entry, isShown ? matches[rank] : match, ranks, isShown, longitude);
    }
  }

  /** The position in the photo's EXIF data, with a line to the answer. */
  drawExif({ result: { exif }, color }, place) {
    const longitude = place ? this.at(place)[1] : this.map.getCenter().lng;
    const at = positionNear(exif, longitude);
    const line = { color, weight: 2, opacity: 0.8, dashArray: "1 5", interactive: false, className: "exif-line" };
    if (place) this.add(L.polyline([this.at(place), at], line));
    const element = make("div", { class: "exif" }, make("span", {}, "EXIF"));
    element.style.setProperty("--color", color);
    const icon = L.divIcon({ className: "match-icon", html: element, iconSize: [0, 0] });
    this.add(L.marker(at, { icon, interactive: false, keyboard: false, zIndexOffset: 500 }));
  }

  drawMatch(entry, match, ranks, isShown, longitude) {
    const numbers = ranks.slice(0, 3).map((rank) => rank + 1);
    const text = numbers.join(" ") + (ranks.length > 3 ? " …" : "");
    const label = `Match ${text}`;
    const element = make("div", { class: isShown ? "match selected" : "match" }, make("span", {}, text));
    element.style.setProperty("--color", entry.color);
    if (isShown && Number.isFinite(match.heading)) element.prepend(wedge(match.heading));
    const icon = L.divIcon({ className: "match-icon", html: element, iconSize: [0, 0] });
    const options = { icon, alt: label, zIndexOffset: isShown ? 400 : 200 - ranks[0] };
    const marker = L.marker(positionNear(match, longitude), options);
    const preview = () => make("div", { class: "preview" }, photo(imageUrl(match.id), label));
    marker.bindTooltip(preview, { direction: "top", offset: [0, -14], className: "bubble", opacity: 1 });
    this.add(marker.on("click", () => this.onMatch(ranks[0])));
    marker.getElement()?.setAttribute("aria-label", label);
  }

  /** Move the map to an answer and the matches that agree with it. */
  show(entry, padding, animate) {
    const result = entry?.result;
    if (!result) return;
    const place = placeOf(result);
    const matches = (result.neighbours ?? []).slice(0, MAX_MATCHES).filter(hasPosition);
    const center = place ?? matches[0] ?? (hasPosition(result.exif) ? result.exif : null);
    if (!center) return;
    const hasRadius = Number.isFinite(place?.radius_m);
    const radius = Math.max(MIN_RADIUS_M, hasRadius ? place.radius_m : UNKNOWN_RADIUS_M);
    const middle = this.at(center);
    const bounds = L.latLng(middle).toBounds(2.6 * radius);
    for (const match of matches) {
      if (!place || this.map.distance(position(match), position(center)) <= NEAR_RADII * radius)
        bounds.extend(positionNear(match, middle[1]));
    }
    if (hasPosition(result.exif) && this.map.distance(position(result.exif), position(center)) <= MAX_EXIF_M)
      bounds.extend(positionNear(result.exif, middle[1]));
    const move = animate ? this.map.flyToBounds : this.map.fitBounds;
    move.call(this.map, bounds, { ...padding, maxZoom: 20, duration: 0.7 });
  }
}
