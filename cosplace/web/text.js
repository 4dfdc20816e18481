// Texts of the page: numbers and records in, plain sentences out.  Pure functions.
import { boxSizeM, distanceM } from "./positions.js";

const DIRECTIONS = ["north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"];
// Simple fractions for a confidence, in ascending order.
const FRACTIONS = [
  [1, 10],
  [1, 5],
  [1, 4],
  [1, 3],
  [2, 5],
  [1, 2],
  [3, 5],
  [2, 3],
  [3, 4],
  [4, 5],
  [5, 6],
  [7, 8],
  [9, 10],
  [19, 20],
  [49, 50],
  [99, 100],
];
export const numbers = new Intl.NumberFormat("en");

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Whether a record has a position. */
export const hasPosition = (record) => isNumber(record?.latitude) && isNumber(record?.longitude);

/** Where a result is drawn: its position, else its guess ({latitude, longitude, radius_m}), else null. */
export function placeOf(result) {
  if (hasPosition(result)) return result;
  return hasPosition(result.guess) ? result.guess : null;
}

/** Whether a result is only a guess: its position is uncertain, or nobody knows how certain. */
export const isGuess = (result) => result.verdict === "guess";

/** Whether the confidence is a probability, and not only the share of votes that agree. */
export const isCalibrated = (result) => result.calibrated !== false && isNumber(result.confidence);

/** 12 -> "12 photos". */
export const photoCount = (count) => `${numbers.format(count)} ${count === 1 ? "photo" : "photos"}`;

/** 4.2 -> "4 m", 1240 -> "1.2 km". */
export function meters(value) {
  if (value < 1) return "1 m";
  if (value < 999.5) return `${Math.round(value)} m`;
  return value < 9950 ? `${(value / 1000).toFixed(1)} km` : `${numbers.format(Math.round(value / 1000))} km`;
}

/** 0.687 -> "68%": rounded down and below 100%, so that it never promises too much. */
export const percent = (confidence) => `${Math.min(99, Math.floor(100 * confidence + 1e-9))}%`;

/** 45 -> "facing northeast"; headings are degrees clockwise from north. */
export function facing(heading) {
  if (!isNumber(heading)) return "";
  const turned = ((heading % 360) + 360) % 360;
  return `facing ${DIRECTIONS[Math.round(turned / 45) % 8]}`;
}

/** "37.74186, -122.40288", as other maps read it. */
export const coordinates = (record) => `${record.latitude.toFixed(5)}, ${record.longitude.toFixed(5)}`;

/** Seconds since 1970 -> "September 2014"; "" for an unknown time. */
export function month(time) {
  const date = isNumber(time) ? new Date(time * 1000) : null;
  if (!date || Number.isNaN(date.getTime())) return "";
  return new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" }).format(date);
}

/** The texts, one for each of sequence, area and dates, of those that a search, {bbox, after, before, sequence}, has. */
function ofFilters(where, sequence, area, dates) {
  const hasDates = where?.after || where?.before;
  return [where?.sequence !== undefined && sequence, where?.bbox && area, hasDates && dates].filter(Boolean);
}

/** Where photos were searched, as the end of a sentence; where: null for everywhere. */
const searched = (where) =>
  ofFilters(where, "in this sequence", "in this area", "from these dates").join(" ") || "in this index";

/** Whether nothing was searched: no indexed photo is of this place and time. */
const isEmpty = (result, where) => Boolean(where) && !result.neighbours?.length;

/**
 * The answer in one line: the words of cosplace/localization/verdicts.py.  where: the place and time that was searched.
 *
 * verdict: the server's: "found", "probable", "guess" or "none".
 */
export function headline(result, where = null) {
  const radius = result.radius_m;
  if (result.verdict === "none")
    return `${isEmpty(result, where) ? "No indexed photos" : "No match"} ${searched(where)}`;
  if (!isCalibrated(result)) return "Best guess, not calibrated";
  const sure = percent(result.confidence);
  if (result.verdict === "found") return `Found: ${isNumber(radius) ? `within ${meters(radius)}, ` : ""}${sure} sure`;
  if (result.verdict === "probable")
    return `Probably here (${sure} sure)${isNumber(radius) ? `. If right, within ${meters(radius)}` : ""}`;
  return `Not sure. Best guess, ${sure}`;
}

/** What the confidence means, or why there is no answer. */
export function explanation(result, where = null) {
  if (result.verdict === "none") {
    if (isEmpty(result, where))
      return `Nothing was compared. Search ${ofFilters(where, "all sequences", "a larger area", "all dates").join(", or ")}.`;
    return reason(result) || "No indexed photo is similar enough.";
  }
  const { confidence } = result;
  if (!isCalibrated(result)) {
    const votes = isNumber(confidence) ? ` ${percent(confidence)} of the votes agree.` : "";
    return `This index is not calibrated, so there is no confidence.${votes}`;
  }
  if (confidence < 0.1) return "Fewer than 1 in 10 answers like this are right.";
  if (confidence > 0.995) return "More than 99 in 100 answers like this are right.";
  const [count, total] = FRACTIONS.findLast(([count, total]) => count / total <= confidence + 1e-9); // rounded down
  return `About ${count} in ${total} answers like this ${count === 1 ? "is" : "are"} right.`;
}

/** What else there is to say: why a guess is not an answer, and the server's note on an answer; or "". */
export function note(result) {
  if (result.verdict === "none" || (!isCalibrated(result) && !result.unknown)) return ""; // in the explanation
  const radius = result.guess?.radius_m;
  const within = result.unknown && isNumber(radius) ? `If right, within ${meters(radius)}.` : "";
  return [within, reason(result)].filter(Boolean).join(" ");
}

/** The reason that the server gives for an unknown position, or its note on an answer, as a sentence; or "". */
export function reason(result) {
  const text = (result.reason ?? "").trim();
  if (!text) return "";
  const sentence = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}

/** The answer in a few words, for the list: the first sentence of a probable answer, else the headline. */
export const summary = (result, where = null) => headline(result, where).replace(/\. If right.*/, "");

/** Distance from the answer or the guess (if there is one), similarity and heading of a match. */
export function matchInfo(match, result) {
  const parts = [];
  const from = isGuess(result) ? "guess" : "answer";
  if (!hasPosition(match)) parts.push("no position");
  else if (placeOf(result) && isNumber(match.distance_m)) parts.push(`${meters(match.distance_m)} from the ${from}`);
  if (isNumber(match.similarity)) parts.push(`similarity ${match.similarity.toFixed(2)}`);
  if (isNumber(match.heading)) parts.push(facing(match.heading));
  return parts.join(" · ");
}

/** Where the camera says that the photo was taken, compared with the answer; or "". */
export function exifNote(result) {
  if (!hasPosition(result.exif)) return "";
  const place = placeOf(result);
  if (!place) return "The map shows the position in the photo's EXIF data.";
  const { distance_m: known, agrees } = result.exif;
  const away = meters(isNumber(known) ? known : distanceM(result.exif, place));
  const verdict = agrees === true ? ": they agree" : agrees === false ? ": they disagree" : "";
  return `The position in its EXIF data is ${away} from the ${isGuess(result) ? "guess" : "answer"}${verdict}.`;
}

/** The size of [west, south, east, north]: "3.2 km × 980 m"; "" for one position. */
export function extent(bounds) {
  const [width, height] = boxSizeM(bounds);
  return width < 1 && height < 1 ? "" : `${meters(width)} × ${meters(height)}`;
}

/** The last part of a path. */
export const fileName = (path) =>
  String(path ?? "")
    .split(/[\\/]/)
    .pop();

/** 0 -> "A", 25 -> "Z", 26 -> "AA". */
export function letter(number) {
  const rest = Math.floor(number / 26);
  return (rest > 0 ? letter(rest - 1) : "") + String.fromCharCode(65 + (number % 26));
}

/** Label of a grid line: 37.742, "latitude" -> "37.742° N"; 180.01, "longitude" -> "179.99° W". */
export function degrees(degree, axis, decimals) {
  const value = axis === "latitude" ? degree : degree - 360 * Math.round(degree / 360);
  const side = axis === "latitude" ? (value < 0 ? "S" : "N") : value < 0 ? "W" : "E";
  return `${Math.abs(value).toFixed(decimals)}° ${side}`;
}
