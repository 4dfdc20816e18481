// The page: map, panel and keys put together.
/* global L */
import { ApiError, readConfig } from "./api.js";
import { Answers } from "./answers.js";
import { byId } from "./dom.js";
import { Panel } from "./panel.js";
import { Places, box, known } from "./places.js";
import { Dots, Graticule } from "./sheets.js";
import { Trace } from "./trace.js";
import { answer, belief } from "./words.js";

const MAX_ZOOM = 21;
const NOTICE_MS = 8000;
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

let hiding = 0;
function notice(text) {
  const element = byId("notice");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (element.hidden = true), NOTICE_MS);
}

const status = (text) => (byId("status").textContent = text);

function makeMap(config) {
  const map = L.map("map", {
    zoomControl: false,
    attributionControl: false,
    maxZoom: MAX_ZOOM,
    minZoom: 2,
    zoomSnap: config.tiles ? 1 : 0.25,
    zoomAnimation: !calm.matches,
    fadeAnimation: !calm.matches,
    markerZoomAnimation: !calm.matches,
    inertia: !calm.matches,
    worldCopyJump: true,
  });
  L.control.zoom({ position: "bottomright" }).addTo(map);
  // Beside the buttons on a phone, above them elsewhere: there the panel covers the left.
  const corner = map.getSize().x < 700 ? "bottomleft" : "bottomright";
  L.control.scale({ position: corner, imperial: false, maxWidth: 120 }).addTo(map);
  for (const [name, order] of [
    ["graticule", 250],
    ["dots", 350],
  ]) {
    const pane = map.createPane(name);
    pane.style.zIndex = order;
    pane.style.pointerEvents = "none";
  }
  if (config.tiles) {
    L.tileLayer(config.tiles, { maxZoom: MAX_ZOOM, maxNativeZoom: 19 }).addTo(map);
    credit(map, config.attribution);
  }
  return map;
}

// The owner of the tiles is named in plain text: whatever markup the attribution holds is read, never run.
function credit(map, attribution) {
  const text = new DOMParser().parseFromString(attribution ?? "", "text/html").body.textContent.trim();
  if (!text) return;
  const control = L.control({ position: "bottomright" });
  control.onAdd = () => Object.assign(L.DomUtil.create("p", "credit"), { textContent: text });
  control.addTo(map);
}

/** The part of the map that the panel leaves free, as Leaflet's padding. */
function padding() {
  const panel = byId("panel").getBoundingClientRect();
  const map = byId("map").getBoundingClientRect();
  const beside = panel.width < map.width; // else it is a sheet below
  const under = beside ? 0 : Math.max(0, map.bottom - panel.top);
  return { paddingTopLeft: [(beside ? panel.right - map.left : 0) + 30, 50], paddingBottomRight: [50, 40 + under] };
}

function takePhotos(answers) {
  const take = (files) => {
    const images = [...files].filter(
      (file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp)$/i.test(file.name),
    );
    if (images.length < files.length) notice("Only photos can be located: JPEG, PNG or WebP files.");
    if (images.length > 0) answers.add(images);
  };
  for (const [button, input] of [
    ["choose", "files"],
    ["shoot", "camera"],
  ]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      take(target.files);
      target.value = ""; // so that the same photo can be chosen again
    });
  }
  const veil = byId("veil");
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    veil.hidden = false;
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  window.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  window.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (files.length > 0) take(files);
  });
}

function listenToKeys({ map, places, answers, showAll }) {
  const help = byId("help");
  byId("ask").addEventListener("click", () => help.showModal());
  byId("theme").addEventListener("click", () => window.switchTheme());
  const clear = () => places.close() || (answers.chosen && (answers.choose(null), showAll()));
  const keys = {
    "/": () => byId("files").click(),
    "?": () => help.showModal(),
    d: () => window.switchTheme(),
    f: showAll,
    Escape: clear,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      act();
    } else if (event.key === "Enter" && event.target === map.getContainer()) {
      event.preventDefault();
      if (!places.openNear(map.getCenter(), 60)) status("No known photo near the middle of the map.");
    }
  });
}

function start(config) {
  byId("count").textContent = known(config.count);
  byId("about").textContent = [config.model && `Model: ${config.model}.`, "Map drawn with Leaflet."]
    .filter(Boolean)
    .join(" ");
  if (window.matchMedia("(pointer: coarse)").matches) byId("hint").textContent = "Choose a photo or take one.";
  if (config.count === 0) byId("hint").textContent = "This index holds no photos yet, so no place can be found.";

  const map = makeMap(config);
  const showAll = () => {
    if (!config.bounds) map.setView([20, 0], 2.5);
    else {
      const [west, south, east, north] = config.bounds;
      map.fitBounds(
        [
          [south, west],
          [north, east],
        ],
        { ...padding(), maxZoom: 19, animate: false },
      );
    }
  };
  showAll();
  const grid = config.tiles ? null : new Graticule({ left: () => padding().paddingTopLeft[0] - 30 }).addTo(map);
  const dots = new Dots().addTo(map);
  const places = new Places(map, dots, byId("card"), { onFail: notice });
  places.load();

  const answers = new Answers({
    maxUploadMb: config.max_upload_mb,
    searchBox: () => (byId("only").checked ? box(map.getBounds()) : null),
  });
  const trace = new Trace(map, {
    onChoose: (entry) => answers.choose(entry),
    onNeighbour: (rank) => answers.showNeighbour(rank),
  });
  const find = (entry) => trace.show(entry, padding(), !calm.matches);
  const panel = new Panel(answers, {
    onFind: find,
    onCopy: (text) =>
      navigator.clipboard?.writeText(text).then(
        () => status(`Copied ${text}.`),
        () => notice(text),
      ),
  });
  const redraw = () => {
    panel.draw();
    trace.draw(answers.entries, answers.chosen, answers.rank);
  };
  answers.addEventListener("change", redraw);
  answers.addEventListener("choose", () => find(answers.chosen));
  answers.addEventListener("located", ({ detail }) => {
    status(
      detail.error
        ? `${detail.name}: ${detail.error}`
        : `${detail.name}: ${answer(detail.result)} ${belief(detail.result)}`,
    );
    if (detail === answers.chosen) find(detail);
  });
  window.addEventListener("theme", () => {
    answers.paint();
    grid?.redraw();
    dots.redraw();
    redraw();
  });
  new ResizeObserver(() => map.invalidateSize({ animate: false, pan: false })).observe(byId("map"));
  takePhotos(answers);
  listenToKeys({ map, places, answers, showAll });
  byId("map").dataset.ready = "true";
  // For the console and for the page's own tests.
  window.cosplace = { map, dots, answers, places };
}

readConfig().then(start, (error) => {
  byId("count").textContent = "";
  notice(error instanceof ApiError ? error.message : `The page could not start: ${error.message}`);
});
