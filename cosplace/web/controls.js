// Buttons on the map: the user's own position, and map tiles that are loaded only after a click.
/* global L */
import { make } from "./dom.js";
import { positionNear } from "./positions.js";

const KEY = "street map"; // in localStorage: "on" after a click
const POSITION_TIMEOUT_MS = 10000;
const MAX_ZOOM = 21;

function mapButton(text, title, onclick) {
  const button = make("button", { type: "button", class: "map-button", title }, text);
  const control = L.control({ position: "bottomright" });
  control.onAdd = () => {
    L.DomEvent.disableClickPropagation(button);
    button.addEventListener("click", () => onclick(button));
    return button;
  };
  return { control, button };
}

/** Map tiles.  While none of them can be loaded, the grid is shown.  Returns a function that removes them. */
export function addTiles(map, { url, attribution }, grid, onError) {
  let hasFailed = false;
  // OpenStreetMap requires the origin of the page, which the rest of the page does not send.
  const options = { maxZoom: MAX_ZOOM, maxNativeZoom: 19, referrerPolicy: "strict-origin-when-cross-origin" };
  const layer = L.tileLayer(url, options)
    .on("tileload", () => grid.remove())
    .on("tileerror", () => {
      if (hasFailed) return;
      hasFailed = true;
      grid.addTo(map);
      onError("The map tiles can't be loaded. A grid is shown instead.");
    })
    .addTo(map);
  const credit = addCredit(map, attribution);
  const { zoomSnap } = map.options;
  map.options.zoomSnap = 1;
  return () => {
    layer.off().remove();
    credit?.remove();
    map.options.zoomSnap = zoomSnap;
    grid.addTo(map);
  };
}

// The attribution is shown as plain text; its markup is parsed but never run.
function addCredit(map, attribution) {
  const text = new DOMParser().parseFromString(attribution ?? "", "text/html").body.textContent.trim();
  if (!text) return null;
  const control = L.control({ position: "bottomright" });
  control.onAdd = () => Object.assign(L.DomUtil.create("p", "credit"), { textContent: text });
  return control.addTo(map);
}

/** A button that turns the street map of another server on and off.  It is off until the user clicks. */
export function addStreetMapButton(map, tiles, grid, onMessage) {
  let remove = null;
  const turn = (button, isOn) => {
    if (isOn) remove = addTiles(map, tiles, grid, onMessage);
    else remove();
    if (!isOn) remove = null;
    button.setAttribute("aria-pressed", String(isOn));
    try {
      if (isOn) localStorage.setItem(KEY, "on");
      else localStorage.removeItem(KEY);
    } catch {
      // storage is blocked: the choice lasts until the page is closed
    }
  };
  const { control, button } = mapButton("Street map", `Load a street map from ${tiles.name}`, () => {
    turn(button, remove === null);
    if (remove)
      onMessage(`The street map comes from ${tiles.name}, which sees the area you view. Click again to turn it off.`);
  });
  button.setAttribute("aria-pressed", "false");
  control.addTo(map);
  let isOn = false;
  try {
    isOn = localStorage.getItem(KEY) === "on";
  } catch {
    // storage is blocked
  }
  if (isOn) turn(button, true);
}

/** A button that shows where the user is.  The position stays in the browser. */
export function addLocateMeButton(map, onMessage) {
  if (!navigator.geolocation || !window.isSecureContext) return;
  let mark = null;
  const show = ({ coords }) => {
    const at = positionNear(coords, map.getCenter().lng);
    mark?.remove();
    const style = { className: "me", weight: 2, fillOpacity: 0.15, interactive: false };
    mark = L.layerGroup([
      L.circle(at, { ...style, radius: coords.accuracy || 0 }),
      L.circleMarker(at, { ...style, className: "me dot", radius: 7, fillOpacity: 1 }),
    ]).addTo(map);
    map.setView(at, Math.max(map.getZoom(), 17));
  };
  const fail = ({ code }) =>
    onMessage(
      code === 1
        ? "This page may not use your position. Allow it in the settings of the browser."
        : "Your position is not available now. Try again in a moment.",
    );
  const options = { enableHighAccuracy: true, timeout: POSITION_TIMEOUT_MS };
  const { control } = mapButton("My position", "Show where you are; your position is not sent to any server", () =>
    navigator.geolocation.getCurrentPosition(show, fail, options),
  );
  control.addTo(map);
}
