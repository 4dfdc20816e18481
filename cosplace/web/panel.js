// The panel: the list of the user's photos and, below it, the answer for the selected one.
import { otherMaps } from "./address.js";
import { imageUrl } from "./api.js";
import { hasSidecar } from "./downloads.js";
import { ICONS, byId, icon, make, photo } from "./dom.js";
import { coordinates, exifNote, explanation, headline, isCalibrated, matchInfo, note, placeOf, summary } from "./text.js";

const MAX_MATCHES = 12;
const PART_SEARCHED = "Only a part of the index was searched, so the confidence may be too high.";
const NEW_TAB = { target: "_blank", rel: "noopener noreferrer" };

export class Panel {
  /** onLocate(entry), onCopy(text), onShare(entry), onSave(kind, entry), onCompare(), onOpenMatch(): of the buttons. */
  constructor(answers, actions) {
    Object.assign(this, { answers, actions });
    this.list = byId("answers");
    this.detail = byId("detail");
    this.rows = new Map(); // entry -> its row, so that images are not loaded again
    this.list.addEventListener("keydown", (event) => this.handleListKey(event));
    this.detail.addEventListener("keydown", (event) => this.handleDetailKey(event));
  }

  draw() {
    const { entries, selected } = this.answers;
    byId("panel").classList.toggle("busy", entries.length > 0);
    byId("list").hidden = entries.length === 0;
    for (const [entry, row] of this.rows) {
      if (!entries.includes(entry)) {
        row.remove();
        this.rows.delete(entry);
      }
    }
    for (const entry of entries) this.drawRow(entry, entry === selected);
    this.drawProgress();
    this.drawDetail(selected);
  }

  drawProgress() {
    const { done, count } = this.answers.progress;
    byId("progress").hidden = done === count;
    const bar = byId("bar");
    // With one photo there is no fraction to show: the bar is indeterminate.
    if (count > 1) Object.assign(bar, { max: count, value: done });
    else bar.removeAttribute("value");
    byId("done").textContent = count > 1 ? `${done} of ${count} photos located` : "";
  }

  drawRow(entry, isSelected) {
    const row = this.rows.get(entry) ?? this.addRow(entry);
    if (row.dataset.url !== entry.url) {
      row.dataset.url = entry.url;
      row.querySelector(".row").firstChild.replaceWith(thumbnail(entry.url));
    }
    row.style.setProperty("--color", entry.color);
    row.dataset.state = entry.state;
    row.classList.toggle("selected", isSelected);
    const button = row.querySelector(".row");
    if (isSelected) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    // The list is one tab stop; arrow keys move inside it.
    button.tabIndex = isSelected ? 0 : -1;
    row.querySelector(".summary").textContent = rowText(entry);
  }

  addRow(entry) {
    const button = make(
      "button",
      { type: "button", class: "row", onclick: () => this.answers.select(entry) },
      thumbnail(entry.url),
      make("span", { class: "badge", "aria-hidden": "true" }, entry.letter),
      make(
        "span",
        { class: "texts" },
        make("span", { class: "summary" }),
        make("span", { class: "muted file" }, entry.name),
      ),
    );
    const remove = iconButton(`Remove ${entry.name}`, "Remove (Del)", ICONS.close, () => this.remove(entry));
    const row = make("li", { "data-url": entry.url }, button, remove);
    this.rows.set(entry, row);
    this.list.append(row);
    return row;
  }

  remove(entry) {
    const hadFocus = this.list.contains(document.activeElement);
    this.answers.remove(entry);
    if (hadFocus) (this.rows.get(this.answers.selected)?.querySelector(".row") ?? byId("choose")).focus();
  }

  handleListKey(event) {
    const { entries, selected } = this.answers;
    const moves = { ArrowDown: 1, ArrowUp: -1, Home: -entries.length, End: entries.length };
    if (event.key in moves) {
      event.preventDefault();
      const position = Math.max(0, Math.min(entries.length - 1, entries.indexOf(selected) + moves[event.key]));
      this.answers.select(entries[position]);
      this.rows.get(entries[position]).querySelector(".row").focus();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      if (selected) this.remove(selected);
    } else this.handleDetailKey(event);
  }

  handleDetailKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    this.answers.showMatch(this.answers.rank + (event.key === "ArrowRight" ? 1 : -1));
  }

  drawDetail(entry) {
    // Rebuilt only when its content changes, so that focus and images stay.
    const retriable = entry?.state === "failed" ? this.answers.retriable.length : "";
    const { number, state, busy, color, url } = entry ?? {};
    const key = entry ? `${number} ${state} ${busy ?? ""} ${color} ${url} ${retriable}` : "";
    if (key !== this.detail.dataset.key) {
      this.detail.dataset.key = key;
      this.detail.replaceChildren(...this.detailParts(entry));
      this.detail.style.setProperty("--color", entry?.color ?? "");
      this.detail.hidden = !entry || this.detail.childElementCount === 0;
    }
    if (entry?.result) this.drawMatch(entry);
  }

  detailParts(entry) {
    if (!entry) return [];
    const image = entry.url ? figure(entry.url, "Your photo", entry.name) : null;
    if (entry.state === "failed") {
      return [
        make("h2", { class: "answer" }, entry.errorTitle),
        make("p", { class: "error" }, entry.error),
        make("div", { class: "chips" }, ...this.waysAfterError(entry)),
        make("div", { class: "pair one" }, image),
      ];
    }
    if (!entry.result) {
      image?.classList.add("locating");
      return [make("h2", { class: "answer muted" }, rowText(entry)), make("div", { class: "pair one" }, image)];
    }
    return this.answerParts(entry, image);
  }

  waysAfterError(entry) {
    if (!entry.canRetry) return [chip("Choose another photo", "Choose another photo (/)", () => byId("files").click())];
    const retry = chip("Retry", "Send the photo again", () => this.retry(entry));
    const all = this.answers.retriable;
    if (all.length === 1) return [retry];
    return [retry, chip(`Retry all ${all.length}`, "Send all these photos again", () => this.retry(...all))];
  }

  retry(...entries) {
    const hadFocus = this.detail.contains(document.activeElement);
    this.answers.retry(...entries); // its button is gone
    if (hadFocus) this.rows.get(this.answers.selected)?.querySelector(".row").focus({ preventScroll: true });
  }

  answerParts(entry, image) {
    const { result } = entry;
    const place = placeOf(result);
    const matches = (result.neighbours ?? []).slice(0, MAX_MATCHES);
    const [more, exif] = [note(result), exifNote(result)];
    const parts = [
      make("h2", { class: `answer ${result.verdict}` }, headline(result, entry.where)),
      entry.shared ? make("p", { class: "muted" }, "From a link. It has the answer, but not the photo.") : null,
      make("p", { class: "explanation" }, explanation(result, entry.where)),
      place && isCalibrated(result) ? meter(result.confidence) : null,
      more ? make("p", { class: "muted" }, more) : null,
      entry.where && place && isCalibrated(result) ? make("p", { class: "muted" }, PART_SEARCHED) : null,
      entry.isIndexed ? make("p", { class: "muted" }, "This photo is in the index, so it finds itself.") : null,
      exif ? make("p", { class: "muted exif-note" }, exif) : null,
      place ? this.positionPart(entry, place) : null,
    ];
    if (matches.length > 0) {
      const pair = make("div", { class: "pair" }, image, make("figure", { class: "match-photo" }, make("figcaption")));
      const compare = chip("Compare", "Compare the photos in full size (c)", this.actions.onCompare);
      const openMatch = chip("Open", "Open the match on the map, to walk along its sequence (o)", this.actions.onOpenMatch);
      parts.push(
        place ? null : make("h3", {}, "Most similar photos"),
        pair,
        make("div", { class: "match-line" }, make("p", { class: "muted match-info" }), openMatch, image ? compare : null),
        this.matchStrip(matches, result),
      );
    } else if (image) parts.push(make("div", { class: "pair one" }, image));
    if (place) parts.push(...this.nextParts(entry, place));
    return parts.filter(Boolean);
  }

  /** Links to other maps, and ways to keep the answer. */
  nextParts(entry, place) {
    const heading = entry.result.neighbours?.[this.answers.rank]?.heading;
    const links = otherMaps(place, heading).map(({ name, url }) =>
      make("a", { class: "chip", href: url, title: `Open ${name} in a new tab`, "data-map": name, ...NEW_TAB }, name),
    );
    const { onSave, onShare } = this.actions;
    const buttons = [
      chip("Copy link", "Copy a link to this answer", () => onShare(entry)),
      chip("GeoJSON", "Save all answers as GeoJSON", () => onSave("geojson", entry)),
      chip("GPX", "Save all answers as GPX", () => onSave("gpx", entry)),
      hasSidecar(entry.result) && !entry.shared
        ? chip("XMP", "Save an XMP sidecar for this photo, marked as an estimate", () => onSave("xmp", entry))
        : null,
    ];
    return [
      make("div", { class: "chips", role: "group", "aria-label": "Other maps" }, ...links),
      make("div", { class: "chips", role: "group", "aria-label": "Share and save" }, ...buttons),
    ];
  }

  positionPart(entry, place) {
    const text = coordinates(place);
    return make(
      "p",
      { class: "position" },
      make("span", { class: "coordinates" }, text),
      iconButton("Copy the coordinates", "Copy", ICONS.copy, () => this.actions.onCopy(text)),
      iconButton("Show the answer on the map", "Show on the map", ICONS.locate, () => this.actions.onLocate(entry)),
    );
  }

  matchStrip(matches, result) {
    const strip = make("ul", { class: "strip", "aria-label": "Most similar photos" });
    matches.forEach((match, rank) => {
      const info = matchInfo(match, result);
      const label = `Match ${rank + 1}: ${info}`;
      const button = make(
        "button",
        { type: "button", "aria-label": label, title: info, onclick: () => this.answers.showMatch(rank) },
        photo(imageUrl(match.id), ""),
        make("span", { "aria-hidden": "true" }, String(rank + 1)),
      );
      strip.append(make("li", {}, button));
    });
    return strip;
  }

  /** Show the match of the current rank next to the photo. */
  drawMatch(entry) {
    const { rank } = this.answers;
    const match = entry.result.neighbours?.[rank];
    const element = this.detail.querySelector(".match-photo");
    if (!match || !element) return;
    if (element.dataset.id !== String(match.id)) {
      element.dataset.id = match.id;
      const label = `Match ${rank + 1}`;
      element.replaceChildren(photo(imageUrl(match.id), label), make("figcaption", {}, label));
    }
    this.detail.querySelector(".match-info").textContent = matchInfo(match, entry.result);
    [...this.detail.querySelectorAll(".strip button")].forEach((button, k) => {
      button.setAttribute("aria-pressed", String(k === rank));
    });
    const street = this.detail.querySelector('[data-map="Street View"]');
    if (street) street.href = otherMaps(placeOf(entry.result), match.heading).at(-1).url;
    scrollStripTo(this.detail.querySelector(".strip"), rank);
  }
}

/** A photo with a caption; nothing if the browser cannot show the photo. */
function figure(url, caption, name) {
  const image = photo(url, caption);
  const element = make("figure", { title: name }, image, make("figcaption", {}, caption));
  image.addEventListener("error", () => element.remove());
  return element;
}

/** The photo of a row; an icon without a photo, or if the browser cannot show it. */
function thumbnail(url) {
  const missing = make("span", { class: "no-photo" }, icon(ICONS.locate));
  if (!url) return missing;
  const image = photo(url, "");
  image.addEventListener("error", () => image.replaceWith(missing));
  return image;
}

function meter(confidence) {
  const bar = make("span");
  bar.style.width = `${100 * Math.max(0, Math.min(1, confidence))}%`;
  return make("div", { class: "meter", "aria-hidden": "true" }, bar);
}

function iconButton(label, title, path, onclick) {
  return make("button", { type: "button", class: "icon", "aria-label": label, title, onclick }, icon(path));
}

/** A small button with a text. */
function chip(text, title, onclick) {
  return make("button", { type: "button", class: "chip", title, onclick }, text);
}

// Not scrollIntoView: it would also scroll the panel.
function scrollStripTo(strip, rank) {
  const item = strip.children[rank];
  if (!item) return;
  const left = item.offsetLeft - strip.offsetLeft;
  if (left < strip.scrollLeft) strip.scrollLeft = left - 8;
  else if (left + item.offsetWidth > strip.scrollLeft + strip.clientWidth)
    strip.scrollLeft = left + item.offsetWidth + 8 - strip.clientWidth;
}

function rowText(entry) {
  if (entry.state === "failed") return entry.errorTitle;
  if (entry.result) return summary(entry.result, entry.where);
  return `${entry.busy || (entry.state === "waiting" ? "Waiting" : "Locating")} …`;
}
