// Addresses: of this page with its view and an answer, and of other maps, which are opened only by a click.
import { isCalibrated, placeOf } from "./text.js";

const VERDICTS = ["found", "probable", "guess"];

/** The answer in a link: latitude, longitude, radius, confidence (empty if not calibrated), verdict. */
export function answerCode(result) {
  const place = placeOf(result);
  if (!place) return "";
  const radius = Number.isFinite(place.radius_m) ? place.radius_m.toFixed(1) : "";
  const confidence = isCalibrated(result) ? result.confidence.toFixed(4) : "";
  return [place.latitude.toFixed(6), place.longitude.toFixed(6), radius, confidence, result.verdict].join(",");
}

/** The result that an answer code stands for; null for any other text: links come from other people. */
export function parseAnswer(code) {
  const parts = String(code ?? "").split(",");
  if (parts.length !== 5 || !VERDICTS.includes(parts[4])) return null;
  const [latitude, longitude, radius, confidence] = parts.slice(0, 4).map((part) => (part === "" ? null : Number(part)));
  const isBetween = (value, low, high) => value !== null && value >= low && value <= high;
  if (!isBetween(latitude, -90, 90) || !isBetween(longitude, -180, 180)) return null;
  if (radius !== null && !isBetween(radius, 0, 1e7)) return null;
  if (confidence !== null && !isBetween(confidence, 0, 1)) return null;
  if (confidence === null && parts[4] !== "guess") return null;
  const result = { latitude, longitude, radius_m: radius, confidence, calibrated: confidence !== null };
  return { ...result, verdict: parts[4], unknown: false, reason: "", guess: null, neighbours: [] };
}

/** {view: {latitude, longitude, zoom}, photo: id, answer: code} -> "#map=…&photo=…&answer=…"; parts may be missing. */
export function formatAddress({ view, photo, answer }) {
  const parts = [];
  if (view) parts.push(`map=${+view.zoom.toFixed(2)}/${view.latitude.toFixed(6)}/${view.longitude.toFixed(6)}`);
  if (photo !== null && photo !== undefined) parts.push(`photo=${photo}`);
  if (answer) parts.push(`answer=${answer}`);
  return `#${parts.join("&")}`;
}

/** The parts of an address that are valid. */
export function parseAddress(hash) {
  const parts = Object.fromEntries(
    String(hash ?? "")
      .replace(/^#/, "")
      .split("&")
      .map((part) => [part.split("=")[0], part.slice(part.indexOf("=") + 1)]),
  );
  const [zoom, latitude, longitude] = (parts.map ?? "").split("/").map((part) => (part === "" ? NaN : Number(part)));
  const isView = zoom >= 0 && zoom <= 30 && Math.abs(latitude) <= 90 && Math.abs(longitude) <= 540;
  const answer = decodeURIComponentSafely(parts.answer);
  return {
    view: isView ? { zoom, latitude, longitude } : null,
    photo: /^\d{1,19}$/.test(parts.photo ?? "") ? parts.photo : null,
    answer: parseAnswer(answer) ? answer : null,
  };
}

// Some programs escape the commas of a link.
function decodeURIComponentSafely(text) {
  try {
    return decodeURIComponent(text ?? "");
  } catch {
    return "";
  }
}

/** Links to other maps: [{name, title, url}].  heading: of the best match, for the view from the street, or null. */
export function otherMaps({ latitude, longitude }, heading) {
  const [lat, lon] = [latitude.toFixed(6), longitude.toFixed(6)];
  const turn = Number.isFinite(heading) ? `&heading=${Math.round(((heading % 360) + 360) % 360)}` : "";
  const google = "https://www.google.com/maps";
  return [
    { name: "OpenStreetMap", url: `https://www.openstreetmap.org/?mlat=${lat}&mlon=${lon}#map=18/${lat}/${lon}` },
    { name: "Google Maps", url: `${google}/search/?api=1&query=${lat},${lon}` },
    { name: "Street View", url: `${google}/@?api=1&map_action=pano&viewpoint=${lat},${lon}${turn}` },
  ];
}
