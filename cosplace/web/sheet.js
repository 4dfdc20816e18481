// On a phone the panel is a sheet below the map: its upper edge is dragged, or moved by a click or the arrow keys.
import { byId } from "./dom.js";

const HEIGHTS = [0.22, 0.62, 0.92]; // shares of the window
const DEFAULT = 1; // or less, if there is less to show
const CLICK_PX = 6; // a movement up to this length is a click

/** Let the user choose the height of the panel.  The style sheet uses it on narrow screens only. */
export function watchSheet() {
  const [panel, handle] = [byId("panel"), byId("sheet-handle")];
  let start = null; // {y, height} when a finger or the mouse goes down
  let step = DEFAULT;

  const setHeight = (share) => panel.style.setProperty("--sheet", `${100 * share}%`);
  const snap = (number) => {
    step = Math.max(0, Math.min(HEIGHTS.length - 1, number));
    if (step === DEFAULT) panel.style.removeProperty("--sheet");
    else setHeight(HEIGHTS[step]);
    handle.setAttribute("aria-valuenow", step + 1);
    handle.setAttribute("aria-valuetext", ["small", "medium", "large"][step]);
  };
  const nearestStep = (share) => {
    const distances = HEIGHTS.map((height) => Math.abs(height - share));
    return distances.indexOf(Math.min(...distances));
  };

  handle.addEventListener("pointerdown", (event) => {
    start = { y: event.clientY, height: panel.offsetHeight };
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener("pointermove", (event) => {
    if (!start) return;
    const share = (start.height + start.y - event.clientY) / window.innerHeight;
    setHeight(Math.max(HEIGHTS[0], Math.min(HEIGHTS.at(-1), share)));
  });
  handle.addEventListener("pointercancel", () => {
    start = null;
    snap(step);
  });
  handle.addEventListener("pointerup", (event) => {
    if (!start) return;
    const moved = start.y - event.clientY;
    // A click enlarges the sheet step by step, and then makes it small again.
    if (Math.abs(moved) <= CLICK_PX) snap((step + 1) % HEIGHTS.length);
    else snap(nearestStep((start.height + moved) / window.innerHeight));
    start = null;
  });
  handle.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: 1, ArrowDown: -1, Home: -HEIGHTS.length, End: HEIGHTS.length };
    if (!(event.key in moves)) return;
    event.preventDefault();
    snap(step + moves[event.key]);
  });
  snap(DEFAULT);
}
