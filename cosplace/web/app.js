// Start the page: the map, the panel, drag and drop, keyboard shortcuts.
/* global L */
import { AnswerLayer } from "./answer_layer.js";
import { Answers } from "./answers.js";
import { ApiError, readConfig } from "./api.js";
import { Dots, Grid } from "./canvas_layers.js";
import { byId } from "./dom.js";
import { IndexPhotos, toBox } from "./index_photos.js";
import { Panel } from "./panel.js";
import { boundsNear } from "./positions.js";
import { explanation, headline, photoCount } from "./text.js";

const MAX_ZOOM = 21;
const NOTICE_MS = 8000;
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

let noticeTimer = 0;
function showNotice(text) {
  const element = byId("notice");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (element.hidden = true), NOTICE_MS);
}

const announce = (text) => (byId("status").textContent = text);

function makeMap(config) {
  const map = L.map("map", {
    zoomControl: false,
    attributionControl: false,
    maxZoom: MAX_ZOOM,
    minZoom: 2,
    zoomSnap: config.tiles ? 1 : 0.25,
    zoomAnimation: !reducedMotion.matches,
    fadeAnimation: !reducedMotion.matches,
    markerZoomAnimation: !reducedMotion.matches,
    inertia: !reducedMotion.matches,
    worldCopyJump: true,
  });
  L.control.zoom({ position: "bottomright" }).addTo(map);
  // On a phone next to the zoom buttons, elsewhere above them, because the panel covers the left side.
  const corner = map.getSize().x < 700 ? "bottomleft" : "bottomright";
  L.control.scale({ position: corner, imperial: false, maxWidth: 120 }).addTo(map);
  for (const [name, order] of [
    ["grid", 250],
    ["dots", 350],
  ]) {
    const pane = map.createPane(name);
    pane.style.zIndex = order;
    pane.style.pointerEvents = "none";
  }
  if (config.tiles) {
    L.tileLayer(config.tiles, { maxZoom: MAX_ZOOM, maxNativeZoom: 19 }).addTo(map);
    addCredit(map, config.attribution);
  }
  return map;
}

// The attribution is shown as plain text; its markup is parsed but never run.
function addCredit(map, attribution) {
  const text = new DOMParser().parseFromString(attribution ?? "", "text/html").body.textContent.trim();
  if (!text) return;
  const control = L.control({ position: "bottomright" });
  control.onAdd = () => Object.assign(L.DomUtil.create("p", "credit"), { textContent: text });
  control.addTo(map);
}

/** Leaflet's padding for the part of the map that the panel covers. */
function padding() {
  const panel = byId("panel").getBoundingClientRect();
  const map = byId("map").getBoundingClientRect();
  const isBeside = panel.width < map.width; // else the panel is below the map
  const covered = isBeside ? 0 : Math.max(0, map.bottom - panel.top);
  return { paddingTopLeft: [(isBeside ? panel.right - map.left : 0) + 30, 50], paddingBottomRight: [50, 40 + covered] };
}

function listenForPhotos(answers) {
  const add = (files) => {
    const images = [...files].filter(
      (file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp)$/i.test(file.name),
    );
    if (images.length < files.length) showNotice("Only JPEG, PNG or WebP images can be located.");
    if (images.length > 0) answers.add(images);
  };
  for (const [button, input] of [
    ["choose", "files"],
    ["shoot", "camera"],
  ]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      add(target.files);
      target.value = ""; // so that the same photo can be chosen again
    });
  }
  const overlay = byId("drop-overlay");
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    overlay.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) overlay.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
  window.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length > 0) add(files);
  });
}

function listenForKeys({ map, indexPhotos, answers, showAll }) {
  const help = byId("help");
  byId("open-help").addEventListener("click", () => help.showModal());
  byId("theme").addEventListener("click", () => window.switchTheme());
  const clear = () => indexPhotos.close() || (answers.selected && (answers.select(null), showAll()));
  const keys = {
    "/": () => byId("files").click(),
    "?": () => help.showModal(),
    d: () => window.switchTheme(),
    f: showAll,
    Escape: clear,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const action = keys[event.key];
    if (action) {
      event.preventDefault();
      action();
    } else if (event.key === "Enter" && event.target === map.getContainer()) {
      event.preventDefault();
      if (!indexPhotos.openNear(map.getCenter(), 60)) announce("No photo near the center of the map.");
    }
  });
}

function start(config) {
  byId("count").textContent = `${config.count ? photoCount(config.count) : "No photos"} in this index`;
  byId("about").textContent = [config.model && `Model: ${config.model}.`, "Map: Leaflet."]
    .filter(Boolean)
    .join(" ");
  if (window.matchMedia("(pointer: coarse)").matches) byId("hint").textContent = "Choose a photo or take one.";
  if (config.count === 0) byId("hint").textContent = "This index has no photos yet, so no photo can be located.";

  const map = makeMap(config);
  const showAll = () => {
    if (!config.bounds) map.setView([20, 0], 2.5);
    else map.fitBounds(boundsNear(config.bounds, 0), { ...padding(), maxZoom: 19, animate: false });
  };
  showAll();
  const grid = config.tiles ? null : new Grid({ left: () => padding().paddingTopLeft[0] - 30 }).addTo(map);
  const dots = new Dots().addTo(map);
  const indexPhotos = new IndexPhotos(map, dots, byId("card"), { onError: showNotice });
  indexPhotos.load();

  const answers = new Answers({
    maxUploadMb: config.max_upload_mb,
    searchBox: () => (byId("visible-only").checked ? toBox(map.getBounds()) : null),
  });
  const answerLayer = new AnswerLayer(map, {
    onSelect: (entry) => answers.select(entry),
    onMatch: (rank) => answers.showMatch(rank),
  });
  const showAnswer = (entry) => answerLayer.show(entry, padding(), !reducedMotion.matches);
  const panel = new Panel(answers, {
    onLocate: showAnswer,
    onCopy: (text) =>
      navigator.clipboard?.writeText(text).then(
        () => announce(`Copied ${text}.`),
        () => showNotice(text),
      ),
  });
  const redraw = () => {
    panel.draw();
    answerLayer.draw(answers.entries, answers.selected, answers.rank);
  };
  answers.addEventListener("change", redraw);
  answers.addEventListener("select", () => showAnswer(answers.selected));
  answers.addEventListener("located", ({ detail: entry }) => {
    const inArea = entry.bbox !== null;
    const text = entry.error ?? `${headline(entry.result, inArea)}. ${explanation(entry.result, inArea)}`;
    announce(`${entry.name}: ${text}`);
    if (entry === answers.selected) showAnswer(entry);
  });
  window.addEventListener("theme", () => {
    answers.assignColors();
    grid?.redraw();
    dots.redraw();
    redraw();
  });
  new ResizeObserver(() => map.invalidateSize({ animate: false, pan: false })).observe(byId("map"));
  listenForPhotos(answers);
  listenForKeys({ map, indexPhotos, answers, showAll });
  byId("map").dataset.ready = "true";
  // For the browser console and the tests.
  window.cosplace = { map, dots, answers, indexPhotos };
}

readConfig().then(start, (error) => {
  byId("count").textContent = "";
  showNotice(error instanceof ApiError ? error.message : `The page cannot start: ${error.message}`);
});
