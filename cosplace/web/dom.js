// Create elements.  Texts become text nodes only, because file names and messages come from other people.

const SVG = "http://www.w3.org/2000/svg";

/** make("p", { class: "muted", onclick: f }, "text", child): an element with attributes, listeners and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** The same for SVG elements. */
export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** An image that turns pale when the browser cannot show it, for example HEIC. */
export function photo(url, alt) {
  const image = make("img", { src: url, alt, decoding: "async", draggable: "false" });
  image.addEventListener("error", () => image.classList.add("blank"));
  return image;
}

/** A line icon for a button. */
export const icon = (path) =>
  makeSvg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, makeSvg("path", { d: path }));

export const ICONS = {
  close: "M7 7l10 10M17 7 7 17",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  locate: "M12 3v4M12 17v4M3 12h4M17 12h4M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8",
  previous: "M14 6l-6 6 6 6",
  sides: "M4 5h7v14H4zM13 5h7v14h-7z",
  overlay: "M4 5h16v14H4zM12 3v18M9 12l-2-2M9 12H5M15 12l2-2M15 12h4",
  points: "M5 7l14 4M5 14l14 4M5 7h.01M19 11h.01M5 14h.01M19 18h.01",
  next: "M10 6l6 6-6 6",
};

let numWedges = 0;

/** A camera's field of view: a wedge of 60 degrees that fades with distance.  heading: degrees clockwise from north. */
export function wedge(heading, radius = 46) {
  const size = 2 * radius;
  const name = `wedge-${(numWedges += 1)}`;
  const [x, y] = [radius * Math.sin(Math.PI / 6), radius * Math.cos(Math.PI / 6)];
  const fade = makeSvg(
    "radialGradient",
    { id: name, gradientUnits: "userSpaceOnUse", cx: radius, cy: radius, r: radius },
    makeSvg("stop", { offset: "0", "stop-opacity": ".75" }),
    makeSvg("stop", { offset: "1", "stop-opacity": ".08" }),
  );
  const arc = `A${radius} ${radius} 0 0 1 ${radius + x} ${radius - y}`;
  const path = `M${radius} ${radius}L${radius - x} ${radius - y}${arc}Z`;
  const cone = makeSvg("path", { d: path, fill: `url(#${name})`, transform: `rotate(${heading} ${radius} ${radius})` });
  const attributes = { class: "wedge", viewBox: `0 0 ${size} ${size}`, width: size, height: size };
  return makeSvg("svg", { ...attributes, "aria-hidden": "true", "data-heading": heading }, fade, cone);
}
