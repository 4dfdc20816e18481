// Start the page: the map, the panel, drag and drop, keyboard shortcuts.
/* global L */
import { answerCode, formatAddress, parseAddress, parseAnswer } from "./address.js";
import { AnswerLayer } from "./answer_layer.js";
import { Answers } from "./answers.js";
import { ApiError, readConfig } from "./api.js";
import { Dots, Grid } from "./canvas_layers.js";
import { addLocateMeButton, addStreetMapButton, addTiles } from "./controls.js";
import { Compare } from "./compare.js";
import { byId, make } from "./dom.js";
import { download, geojson, gpx, sidecar } from "./downloads.js";
import { Filters } from "./filters.js";
import { describeIndex, showSamples } from "./first_run.js";
import { HEIC_TYPES, isPhoto } from "./formats.js";
import { watchIndex } from "./index_changes.js";
import { IndexPhotos } from "./index_photos.js";
import { Panel } from "./panel.js";
import { boundsNear } from "./positions.js";
import { SequenceLines } from "./sequence_lines.js";
import { watchSheet } from "./sheet.js";
import { explanation, headline } from "./text.js";

const MAX_ZOOM = 21;
const NOTICE_MS = 8000;
const EXTRA_S = 10; // that the page waits for an answer, longer than the server takes at most
const ADDRESS_DELAY_MS = 250; // browsers limit how often the address may change
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

let noticeTimer = 0;
/** Show a text for a few seconds; with something to retry, until the user does. */
function showNotice(text, retry = null) {
  const element = byId("notice");
  const hide = () => (element.hidden = true);
  const act = () => {
    hide();
    retry();
  };
  const button = retry && make("button", { type: "button", class: "chip", onclick: act }, "Retry");
  element.replaceChildren(...[make("span", {}, text), button].filter(Boolean));
  element.hidden = false;
  clearTimeout(noticeTimer);
  if (!retry) noticeTimer = setTimeout(hide, NOTICE_MS);
}

const announce = (text) => (byId("status").textContent = text);

function makeMap() {
  const map = L.map("map", {
    zoomControl: false,
    attributionControl: false,
    maxZoom: MAX_ZOOM,
    minZoom: 2,
    zoomSnap: 0.25,
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
    ["lines", 300],
    ["dots", 350],
    ["labels", 360],
  ]) {
    const pane = map.createPane(name);
    pane.style.zIndex = order;
    pane.style.pointerEvents = "none";
  }
  return map;
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
  // Without a server that converts them, phones give JPEG, with the position.
  if (answers.onServer) byId("files").accept += `,${HEIC_TYPES}`;
  const add = (files) => {
    const others = [...files].filter((file) => !isPhoto(file));
    const are = others.length > 1 ? `and ${others.length - 1} more are not photos` : "is not a photo";
    if (others.length > 0) showNotice(`${others[0].name} ${are}. Choose JPEG, PNG, WebP or HEIC images.`);
    const photos = [...files].filter(isPhoto);
    if (photos.length > 0) answers.add(photos);
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

/** Copy a text; where that is not allowed, show it. */
const copy = (text, what) =>
  navigator.clipboard
    ? navigator.clipboard.writeText(text).then(
        () => showNotice(`Copied ${what}.`),
        () => showNotice(text),
      )
    : showNotice(text);

function saveFile(kind, entry, entries) {
  if (kind === "geojson") download("answers.geojson", "application/geo+json", geojson(entries));
  else if (kind === "gpx") download("answers.gpx", "application/gpx+xml", gpx(entries));
  else {
    const name = `${entry.name}.xmp`;
    download(name, "application/rdf+xml", sidecar(entry.result));
    showNotice(`Put ${name} next to the photo, unless it already has a sidecar.`);
  }
}

/** Keep the address of the page up to date: the view, the open photo of the index, the selected answer. */
function followAddress({ map, indexPhotos, answers, showAnswer }) {
  let timer = 0;
  const view = () => {
    const { lat, lng } = map.getCenter().wrap();
    return { latitude: lat, longitude: lng, zoom: map.getZoom() };
  };
  const selectedCode = () => (answers.selected?.result ? answerCode(answers.selected.result) : "");
  const write = () => {
    const address = formatAddress({ view: view(), photo: indexPhotos.openId, answer: selectedCode() });
    history.replaceState(null, "", address);
  };
  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(write, ADDRESS_DELAY_MS);
  };
  /** Show what an address says.  An answer that this page does not have is added, as one from a link. */
  const open = (address) => {
    if (address.answer) {
      const known = answers.entries.find(({ result }) => result && answerCode(result) === address.answer);
      answers.select(known ?? answers.addShared(parseAnswer(address.answer)));
      if (!address.view) showAnswer(answers.selected);
    }
    if (address.view) map.setView([address.view.latitude, address.view.longitude], address.view.zoom, { animate: false });
    if (address.photo) indexPhotos.openById(address.photo);
  };
  map.on("moveend", changed);
  answers.addEventListener("change", changed);
  window.addEventListener("hashchange", () => open(parseAddress(window.location.hash)));
  return {
    changed,
    open,
    /** A link to an answer, in the current view, with the match that is shown. */
    linkTo(entry) {
      const photo = entry.result.neighbours?.[answers.rank]?.id;
      const hash = formatAddress({ view: view(), photo, answer: answerCode(entry.result) });
      return new URL(hash, window.location.href).href;
    },
  };
}

function listenForKeys({ map, indexPhotos, answers, showAll, compare, openMatch }) {
  const help = byId("help");
  byId("open-help").addEventListener("click", () => help.showModal());
  byId("theme").addEventListener("click", () => window.switchTheme());
  const clear = () => indexPhotos.close() || (answers.selected && (answers.select(null), showAll()));
  const keys = {
    "/": () => byId("files").click(),
    "?": () => help.showModal(),
    d: () => window.switchTheme(),
    f: showAll,
    c: () => compare.open(),
    o: openMatch,
    Escape: clear,
  };
  const { dataset } = document.documentElement;
  document.addEventListener("pointerdown", () => (dataset.input = "pointer"), true);
  document.addEventListener("keydown", () => (dataset.input = "keyboard"), true);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
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
  describeIndex(config, window.innerWidth <= 700);
  byId("calibration").hidden = !config.calibrated;
  byId("about").textContent = [config.model && `Model: ${config.model}.`, "Map: Leaflet."]
    .filter(Boolean)
    .join(" ");

  const grid = new Grid({ left: () => padding().paddingTopLeft[0] - 30 });
  const map = makeMap();
  let { bounds } = config;
  const showAll = () => {
    if (!bounds) map.setView([20, 0], 2.5);
    else map.fitBounds(boundsNear(bounds, 0), { ...padding(), maxZoom: 19, animate: false });
  };
  const linked = parseAddress(window.location.hash);
  let address = null;
  showAll();
  if (config.tiles) addTiles(map, { url: config.tiles, attribution: config.attribution }, grid, showNotice);
  else grid.addTo(map);
  if (config.offered_tiles) addStreetMapButton(map, config.offered_tiles, grid, showNotice);
  addLocateMeButton(map, showNotice);
  grid.redraw(); // its labels leave out the place of the buttons
  const lines = new SequenceLines().addTo(map);
  const dots = new Dots().addTo(map);
  const filters = new Filters(map, config.times, () => indexPhotos.load());
  const indexPhotos = new IndexPhotos(map, dots, byId("card"), {
    filters,
    onError: showNotice,
    onMissing: (sentence) => checkIndex(sentence),
    onChange: () => address?.changed(),
  });

  const checkIndex = watchIndex(config, (now, sentence) => {
    describeIndex(now, window.innerWidth <= 700);
    bounds = now.bounds;
    if (now.times) filters.setTimes(now.times);
    indexPhotos.reload();
    lines.reload();
    showNotice(sentence);
  });

  const answers = new Answers({
    maxUploadMb: config.max_upload_mb,
    limitS: (config.time_limit_s ?? 30) + EXTRA_S,
    onServer: config.can_convert_heic === true,
    where: () => filters.search(),
  });
  const answerLayer = new AnswerLayer(map, {
    onSelect: (entry) => answers.select(entry),
    onMatch: (rank) => answers.showMatch(rank),
  });
  const showAnswer = (entry) => answerLayer.show(entry, padding(), !reducedMotion.matches);
  const compare = new Compare(answers, byId("compare"), { canMatch: config.can_match === true });
  const openMatch = () => {
    const match = answers.selected?.result?.neighbours?.[answers.rank];
    if (match) indexPhotos.openMatch(match.id);
  };
  const panel = new Panel(answers, {
    onLocate: showAnswer,
    onCopy: (text) => copy(text, text),
    onShare: (entry) => copy(address.linkTo(entry), "a link to this answer"),
    onSave: (kind, entry) => saveFile(kind, entry, answers.entries),
    onCompare: () => compare.open(),
    onOpenMatch: openMatch,
  });
  const redraw = () => {
    panel.draw();
    answerLayer.draw(answers.entries, answers.selected, answers.rank);
    compare.draw();
  };
  answers.addEventListener("change", redraw);
  address = followAddress({ map, indexPhotos, answers, showAnswer });
  const restored = answers.restore();
  if (restored) answers.select(restored);
  else if (answers.entries.length > 0) redraw();
  address.open(linked);
  if (restored && !linked.view) showAnswer(restored);
  indexPhotos.load();
  answers.addEventListener("select", () => showAnswer(answers.selected));
  answers.addEventListener("located", ({ detail: entry }) => {
    const { result, where } = entry;
    const [title, text] = result
      ? [headline(result, where), explanation(result, where)]
      : [entry.errorTitle, entry.error];
    announce(`${entry.name}: ${title}. ${text}`);
    if (entry === answers.selected) showAnswer(entry);
  });
  window.addEventListener("theme", () => {
    answers.assignColors();
    grid.redraw();
    lines.redraw();
    dots.redraw();
    redraw();
  });
  new ResizeObserver(() => map.invalidateSize({ animate: false, pan: false })).observe(byId("map"));
  listenForPhotos(answers);
  watchSheet();
  showSamples(
    config.samples,
    (file, isIndexed) => answers.add([file], { isIndexed }),
    (error) => showNotice(error.message),
  );
  listenForKeys({ map, indexPhotos, answers, showAll, compare, openMatch });
  byId("map").dataset.ready = "true";
  // For the browser console and the tests.
  window.cosplace = { map, dots, answers, indexPhotos, compare, filters, checkIndex };
}

readConfig().then(start, (error) => {
  byId("count").textContent = "";
  const text = error instanceof ApiError ? error.message : `The page cannot start: ${error.message}`;
  showNotice(text, () => window.location.reload());
});
