// Elements made from records.  Texts go in as text nodes only: file names and messages come from others.

const SVG = "http://www.w3.org/2000/svg";

/** make("p", { class: "quiet", onclick: f }, "text", child): an element with its attributes and children. */
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

/** The same for a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A photo that says so when the browser cannot show it (HEIC in most, or one that is gone). */
export function picture(address, words) {
  const image = make("img", { src: address, alt: words, decoding: "async", draggable: "false" });
  image.addEventListener("error", () => image.classList.add("blank"));
  return image;
}

/** A small line drawing for a button. */
export const sign = (path) => draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: path }));

export const SIGNS = {
  close: "M7 7l10 10M17 7 7 17",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  find: "M12 3v4M12 17v4M3 12h4M17 12h4M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8",
  before: "M14 6l-6 6 6 6",
  after: "M10 6l6 6-6 6",
};

let wedges = 0;

/**
 * What a camera sees: a wedge of 60 degrees that fades with distance, turned to its heading (degrees from north).
 */
export function wedge(heading, radius = 46) {
  const size = 2 * radius;
  const name = `wedge-${(wedges += 1)}`;
  const [x, y] = [radius * Math.sin(Math.PI / 6), radius * Math.cos(Math.PI / 6)];
  const fade = draw(
    "radialGradient",
    { id: name, gradientUnits: "userSpaceOnUse", cx: radius, cy: radius, r: radius },
    draw("stop", { offset: "0", "stop-opacity": ".75" }),
    draw("stop", { offset: "1", "stop-opacity": ".08" }),
  );
  const arc = `A${radius} ${radius} 0 0 1 ${radius + x} ${radius - y}`;
  const path = `M${radius} ${radius}L${radius - x} ${radius - y}${arc}Z`;
  const cone = draw("path", { d: path, fill: `url(#${name})`, transform: `rotate(${heading} ${radius} ${radius})` });
  const attributes = { class: "wedge", viewBox: `0 0 ${size} ${size}`, width: size, height: size };
  return draw("svg", { ...attributes, "aria-hidden": "true", "data-heading": heading }, fade, cone);
}
