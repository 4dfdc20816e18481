// Answers that survive a reload: kept in this tab (sessionStorage) until it is closed, with small copies of the photos.

const MAX_SIDE = 640; // pixels
const QUALITY = 0.8;
const KEY = `answers ${window.location.pathname}`;

/** A small copy of a photo as a data URL; "" if the browser cannot show the photo. */
export async function smallCopy(file) {
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
    return canvas.toDataURL("image/jpeg", QUALITY);
  } catch {
    return "";
  }
}

/** Keep the entries that have an answer.  If there is too little space, the oldest copies of photos are left out. */
export function saveAnswers(entries, selected) {
  const kept = entries
    .filter(({ result }) => result)
    .map(({ number, name, where, isIndexed, result, shared, copy }) => {
      return { number, name, where, isIndexed, result, shared, copy: copy ?? "" };
    });
  const content = { selected: selected?.number ?? null, entries: kept };
  for (let numLeft = kept.length; ; numLeft -= 1) {
    try {
      if (kept.length > 0) sessionStorage.setItem(KEY, JSON.stringify(content));
      else sessionStorage.removeItem(KEY);
      return;
    } catch {
      // storage is full or blocked
      if (numLeft === 0) return;
      kept[kept.length - numLeft].copy = "";
    }
  }
}

/** The saved entries, and the number of the selected one. */
export function readAnswers() {
  try {
    const { selected, entries } = JSON.parse(sessionStorage.getItem(KEY) ?? "null") ?? {};
    return { selected: selected ?? null, entries: Array.isArray(entries) ? entries : [] };
  } catch {
    return { selected: null, entries: [] };
  }
}

/** The bytes of a data URL. */
export function toBlob(dataUrl) {
  const bytes = Uint8Array.from(atob(dataUrl.slice(dataUrl.indexOf(",") + 1)), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/jpeg" });
}
