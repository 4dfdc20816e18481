// Requests to the server.  URLs are relative, so the page also works behind a path prefix.

const TOO_MANY_REQUESTS = 429;
const MAX_ATTEMPTS = 8;
const READ_LIMIT_S = 60; // for everything that is not the search for a photo
const REFUSED = [400, 413, 415, 422]; // the same request would fail again
const MISSING = 404;
const TOO_LARGE = 413;
const TIMEOUTS = [408, 504];

/**
 * An error with a message for the user, in most cases the server's own.  status: of the response, 0 without one.
 *
 * title, advice: the message in two parts, where the title stands above; by default the title follows from the status.
 */
export class ApiError extends Error {
  constructor(message, status = 0, { title = titleOf(status), advice = message } = {}) {
    super(message);
    Object.assign(this, { status, title, advice });
  }

  /** Whether the same request may succeed later. */
  get canRetry() {
    return !REFUSED.includes(this.status);
  }

  get isMissing() {
    return this.status === MISSING;
  }
}

/** An error whose message is its title and its advice. */
const titled = (title, advice, status = 0) => new ApiError(`${title}. ${advice}`, status, { title, advice });

/** What failed, in a few words: the photo, or the server. */
function titleOf(status) {
  if (status === TOO_MANY_REQUESTS) return "The server is busy";
  if (TIMEOUTS.includes(status)) return "No answer in time";
  if (status === TOO_LARGE) return "The photo is too large";
  return status >= 500 ? "The server had an error" : "Couldn't process this photo";
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const detail = body?.detail ?? body?.error;
  if (typeof detail === "string" && detail) return new ApiError(detail, response.status);
  const status = `The server returned status ${response.status} ${response.statusText}`.trim();
  return new ApiError(`${status}. Retry in a moment.`, response.status);
}

async function send(url, { signal, limitS = READ_LIMIT_S, ...options } = {}) {
  const signals = [AbortSignal.timeout(1000 * limitS), signal].filter(Boolean);
  try {
    return await fetch(url, { ...options, signal: AbortSignal.any(signals) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError")
      throw titled(`No answer within ${limitS} s`, "The server may be busy; retry in a moment.");
    throw titled("Can't reach the server", "Check the connection and that the server is running, then retry.");
  }
}

async function readJson(url, options) {
  const response = await send(url, options);
  if (!response.ok) throw await failure(response);
  return response.json();
}

export const readConfig = () => readJson("config.json");

export const readPhoto = (id, signal) => readJson(`photos/${encodeURIComponent(id)}`, { signal });

export const imageUrl = (id) => `photos/${encodeURIComponent(id)}/image`;

const DENSITY_CELLS = 1024; // along the longer side of a view

/** Parameters of a request for photos: {bbox, after, before, sequence}; parts may be missing, null is everywhere. */
function whereQuery(where) {
  const query = new URLSearchParams();
  if (where?.bbox) query.set("bbox", where.bbox.map((value) => value.toFixed(7)).join(","));
  for (const name of ["after", "before", "sequence"]) if (where?.[name] !== undefined) query.set(name, where[name]);
  return query;
}

/** The indexed photos of a place and time: points, or their density where there are more than `limit`. */
export function readPoints(where, limit, signal) {
  const query = whereQuery(where);
  query.set("limit", limit);
  query.set("cells", DENSITY_CELLS);
  return readJson(`photos?${query}`, { signal });
}

/** Some of the indexed photos of a place and time, spread evenly, and their number: {total, points}. */
export function readSomePoints(where, count, signal) {
  const query = whereQuery(where);
  query.set("sample", count);
  return readJson(`photos?${query}`, { signal });
}

/** The lines of the sequences of indexed photos in a box: {total, lines}. */
export function readLines(bbox, signal) {
  return readJson(`lines?${whereQuery({ bbox })}`, { signal });
}

export const sampleUrl = (number) => `samples/${number}`;

/** A photo to try, as a file. */
export async function readSample(number) {
  const response = await send(sampleUrl(number));
  if (!response.ok) throw await failure(response);
  return new File([await response.blob()], `sample-${number + 1}.jpg`, { type: "image/jpeg" });
}

/** The points of a photo and of an indexed photo that match: {found, chance_below, points: [x, y, x, y, ...]}. */
export function readMatchingPoints(file, id, signal) {
  const body = new FormData();
  body.append("files", file, file.name || "photo");
  return readJson(`photos/${encodeURIComponent(id)}/matches`, { method: "POST", body, signal });
}

const wait = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, 1000 * seconds);
    signal.addEventListener("abort", abort, { once: true });
  });

/**
 * Send a photo.  While the server is busy, the request is repeated after the time that the server names.
 *
 * limitS: seconds to wait for an answer.  onBusy(seconds): called before each wait.
 */
async function sendPhoto(url, file, { signal, limitS, onBusy }) {
  for (let attempt = 1; ; attempt += 1) {
    const body = new FormData();
    body.append("files", file, file.name || "pasted photo");
    const response = await send(url, { method: "POST", body, signal, limitS });
    if (response.status === TOO_MANY_REQUESTS) {
      if (attempt === MAX_ATTEMPTS) {
        const advice = `It was busy at each of ${MAX_ATTEMPTS} attempts. Retry in a minute.`;
        throw titled("The server is busy", advice, TOO_MANY_REQUESTS);
      }
      const seconds = Math.min(30, Math.max(1, Number(response.headers.get("Retry-After")) || attempt));
      onBusy(seconds);
      await wait(seconds, signal);
      continue;
    }
    if (!response.ok) throw await failure(response);
    return response;
  }
}

/** Locate one photo.  where: search only some photos, {bbox, after, before, sequence}; null: all. */
export async function locate(file, where, options) {
  const response = await sendPhoto(where ? `locate?${whereQuery(where)}` : "locate", file, options);
  const result = (await response.json()).results?.[0];
  if (!result) throw new ApiError("The server returned no answer for this photo.");
  if (result.error) throw new ApiError(String(result.error), REFUSED[0]);
  return result;
}

/** A HEIC photo as JPEG with its EXIF data, converted by the server. */
export const convertHeic = async (file, options) => (await sendPhoto("jpeg", file, options)).blob();
