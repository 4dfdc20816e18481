// The index may change while the page is open: its number of photos is asked for now and then.
import { ApiError, readConfig } from "./api.js";
import { numbers, photoCount } from "./text.js";

const CHECK_MS = 60000;

// Ids are never reused: the last one changes when photos are added, the count when photos are removed.
const fingerprint = ({ count, last_id }) => `${count} ${last_id}`;

/** What changed, in one sentence. */
export function describeChange(before, now) {
  if (now.count === before.count) return `The index has other photos now: ${photoCount(now.count)}.`;
  const change = now.count - before.count;
  const difference = `${numbers.format(Math.abs(change))} ${change > 0 ? "more" : "fewer"}`;
  return `The index has changed: ${photoCount(now.count)}, ${difference}.`;
}

/**
 * Call onChange(config, sentence) after each change of the index.
 *
 * Returns a function that checks now; it takes a sentence about what was noticed, to put before that of the change.
 */
export function watchIndex(config, onChange) {
  let known = config;
  const check = async (noticed = "") => {
    if (document.hidden) return;
    try {
      const now = await readConfig();
      if (fingerprint(now) === fingerprint(known)) return;
      const sentence = describeChange(known, now);
      known = now;
      onChange(now, `${noticed} ${sentence}`.trim());
    } catch (error) {
      // What the user does next reports a server that can't be reached.
      if (!(error instanceof ApiError)) throw error;
    }
  };
  setInterval(check, CHECK_MS);
  document.addEventListener("visibilitychange", () => check());
  return check;
}
