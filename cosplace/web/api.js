// The server's answers.  Addresses are relative, so the page also works behind a prefix.

const BUSY = 429;
const MOST_TRIES = 8;

/** What the server said, word for word. */
export class ApiError extends Error {}

async function complaint(response) {
  const body = await response.json().catch(() => null);
  const detail = body?.detail ?? body?.error;
  if (typeof detail === "string" && detail) return detail;
  // FastAPI lists what is wrong with each parameter.
  if (Array.isArray(detail)) return detail.map((entry) => entry?.msg ?? String(entry)).join("; ");
  return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

async function send(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
}

async function json(address, options) {
  const response = await send(address, options);
  if (!response.ok) throw new ApiError(await complaint(response));
  return response.json();
}

export const readConfig = () => json("config.json");

export const readPhoto = (id, signal) => json(`photos/${encodeURIComponent(id)}`, { signal });

export const imageAddress = (id) => `photos/${encodeURIComponent(id)}/image`;

/** Points, or clusters where there are too many, inside [west, south, east, north]. */
export function readPoints(bbox, limit, signal) {
  const query = new URLSearchParams({ bbox: bbox.map((value) => value.toFixed(7)).join(","), limit });
  return json(`photos?${query}`, { signal });
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, 1000 * seconds);
    signal.addEventListener("abort", stop, { once: true });
  });

/**
 * Where one photo was taken. A busy server is asked again when it says so.
 *
 * bbox: [west, south, east, north] to search in, or null. onBusy(seconds) is told of each wait.
 */
export async function locate(file, bbox, signal, onBusy) {
  const address = bbox ? `locate?${new URLSearchParams({ bbox: bbox.join(",") })}` : "locate";
  for (let tries = 1; ; tries += 1) {
    const body = new FormData();
    body.append("files", file, file.name || "pasted photo");
    const response = await send(address, { method: "POST", body, signal });
    if (response.status === BUSY && tries < MOST_TRIES) {
      const seconds = Math.min(30, Math.max(1, Number(response.headers.get("Retry-After")) || tries));
      onBusy(seconds);
      await pause(seconds, signal);
      continue;
    }
    if (!response.ok) throw new ApiError(await complaint(response));
    const result = (await response.json()).results?.[0];
    if (!result) throw new ApiError("The server gave no answer for this photo.");
    if (result.error) throw new ApiError(String(result.error));
    return result;
  }
}
