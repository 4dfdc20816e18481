// What the page shows before the first photo: the name and size of the area, and sample photos.
import { readSample, sampleUrl } from "./api.js";
import { byId, make, photo } from "./dom.js";
import { maxPoints } from "./index_photos.js";
import { extent, photoCount } from "./text.js";

const isTouch = () => window.matchMedia("(pointer: coarse)").matches;

/** "my-city · 2,834 photos · 3.2 km × 2.9 km", and what the dots are. */
export function describeIndex({ count, bounds, name }, isNarrow) {
  const size = count && bounds ? extent(bounds) : "";
  const parts = [name, count ? photoCount(count) : "no photos", size].filter(Boolean);
  const spans = parts.map((part) => make("span", { class: part === name ? null : "unbroken" }, part));
  byId("count").replaceChildren(...spans.flatMap((span, number) => (number ? [" · ", span] : [span])));
  const isDense = count > maxPoints(isNarrow);
  const photos = isDense
    ? "The color shows where there are photos with a known position. Zoom in to see each as a dot."
    : "Each dot on the map is a photo with a known position.";
  const next = isTouch() ? "Choose a photo or take one" : "Drop photos here or paste one";
  byId("hint").textContent =
    count === 0
      ? "This index has no photos yet, so no photo can be located."
      : `${photos} ${next} to find where it was taken.`;
  byId("legend").classList.toggle("dense", isDense);
  byId("legend-dots").textContent = isDense ? "indexed photos: the stronger the color, the more" : "indexed photo";
  byId("legend").hidden = count === 0;
}

/** Buttons for photos to try.  onPick(file, isIndexed), onError(error). */
export function showSamples(samples, onPick, onError) {
  if (!samples?.length) return;
  const areIndexed = samples.every(({ photo }) => photo !== null);
  byId("samples-title").textContent = areIndexed
    ? "Or try a photo of this index. Each finds itself:"
    : "Or try one of these:";
  const items = samples.map(({ photo: id }, number) => {
    const pick = () => readSample(number).then((file) => onPick(file, id !== null), onError);
    const attributes = { type: "button", "aria-label": `Locate sample photo ${number + 1}`, onclick: pick };
    return make("li", {}, make("button", attributes, photo(sampleUrl(number), "")));
  });
  byId("sample-list").replaceChildren(...items);
  byId("samples").hidden = false;
}
