// The page's words: numbers and records in, plain sentences out.  Pure.

const WINDS = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west"];
const count = new Intl.NumberFormat("en");

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Whether a record says where it is. */
export const hasPlace = (record) => isNumber(record?.latitude) && isNumber(record?.longitude);

/** Whether there is an answer to stand by. */
export const isFound = (result) => !result.unknown && hasPlace(result);

/** 12 -> "12 photos". */
export const photos = (number) => `${count.format(number)} ${number === 1 ? "photo" : "photos"}`;

/** 4.2 -> "4 m", 1240 -> "1.2 km". */
export function metres(value) {
  if (value < 1) return "1 m";
  if (value < 999.5) return `${Math.round(value)} m`;
  return value < 9950 ? `${(value / 1000).toFixed(1)} km` : `${count.format(Math.round(value / 1000))} km`;
}

/** 45 -> "looking north-east"; headings are degrees clockwise from north. */
export function looking(heading) {
  if (!isNumber(heading)) return "";
  const turned = ((heading % 360) + 360) % 360;
  return `looking ${WINDS[Math.round(turned / 45) % 8]}`;
}

/** 37.74186, -122.40288 as people paste it. */
export const coordinates = (record) => `${record.latitude.toFixed(5)}, ${record.longitude.toFixed(5)}`;

/** Seconds since 1970 -> "September 2014", or "" for an unknown time. */
export function month(time) {
  const date = isNumber(time) ? new Date(time * 1000) : null;
  if (!date || Number.isNaN(date.getTime())) return "";
  return new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" }).format(date);
}

/** The answer itself, in one short sentence. */
export function answer(result) {
  if (!isFound(result)) return "I do not know this place.";
  return isNumber(result.radius_m) ? `Here, within ${metres(result.radius_m)}.` : "Here.";
}

/** Whether the confidence is a promise: an index without calibration gives no radius, and only counts votes. */
export const isCalibrated = (result) => isNumber(result.radius_m) && isNumber(result.confidence);

/** How far to believe it. A calibrated confidence is a share of answers, so it is said as one. */
export function belief(result) {
  if (!isFound(result)) return reason(result) || "No known photo is alike enough.";
  if (!isCalibrated(result)) return "How often such answers are right is not known.";
  // Rounded down: a promise may be kept better than said, never worse.
  const right = Math.floor(100 * result.confidence + 1e-9);
  if (right >= 100) return "More than 99 in 100 such answers are right.";
  if (right < 1) return "Fewer than 1 in 100 such answers are right.";
  return `${right} in 100 such answers ${right === 1 ? "is" : "are"} right.`;
}

/** Why there is no answer, or what to mind about one: the API's own words as a sentence, or "". */
export function reason(result) {
  const text = (result.reason ?? "").trim();
  if (!text) return "";
  const sentence = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}

/** The same for a row of the list. */
export function brief(result) {
  if (!isFound(result)) return "Place not known";
  return isNumber(result.radius_m) ? `Within ${metres(result.radius_m)}` : "Found";
}

/** What a neighbour has to say: how near the answer (where there is one), how alike, where it looks. */
export function evidence(neighbour, found) {
  const said = [];
  if (!hasPlace(neighbour)) said.push("place not known");
  else if (found && isNumber(neighbour.distance_m)) said.push(`${metres(neighbour.distance_m)} from the answer`);
  if (isNumber(neighbour.similarity)) said.push(`similarity ${neighbour.similarity.toFixed(2)}`);
  if (isNumber(neighbour.heading)) said.push(looking(neighbour.heading));
  return said.join(" · ");
}

/** The file's own name: what stands after the last slash. */
export const fileName = (path) =>
  String(path ?? "")
    .split(/[\\/]/)
    .pop();

/** A: first photo ... Z, AA. */
export function letter(number) {
  const rest = Math.floor(number / 26);
  return (rest > 0 ? letter(rest - 1) : "") + String.fromCharCode(65 + (number % 26));
}

/** Degrees on the map's grid: 37.742, "latitude" -> "37.742° N". */
export function degrees(value, axis, decimals) {
  const end = axis === "latitude" ? (value < 0 ? "S" : "N") : value < 0 ? "W" : "E";
  return `${Math.abs(value).toFixed(decimals)}° ${end}`;
}
