"use strict";
// The map of queries: a canvas with zoom, movement and selection, by mouse, touch and keyboard.
//
// data: see query_data.py; positions are in decimeters.  box: the element with the static map, which stays for print.
// onSelect: called with the number of a query.  Returns { select(query), zoomTo(query) }.
function queryMap(data, box, onSelect) {
  const { at, outcome } = data.queries;
  const numQueries = outcome.length;
  const places = data.images.at;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const view = { x: 0, y: 0, scale: 1 }; // position in the middle; pixels per decimeter
  const bounds = boundsOf([data.database, at]);
  let width = 0, height = 0, fitted = 1, selected = -1, waiting = false;

  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", box.dataset.label + ". Arrow keys select a query, plus and minus zoom.");
  const buttons = document.createElement("div");
  buttons.className = "map-buttons";
  for (const [text, label, act] of [
    ["+", "Zoom in", () => zoom(1.6)],
    ["\u2212", "Zoom out", () => zoom(1 / 1.6)],
    ["\u2922", "Show everything", () => fit()],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.title = label;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => { act(); draw(); });
    buttons.append(button);
  }
  const frame = document.createElement("div");
  frame.className = "map-frame";
  frame.append(canvas, buttons);
  box.append(frame);
  box.classList.add("live");

  function boundsOf(lists) {
    const found = [Infinity, Infinity, -Infinity, -Infinity];
    for (const list of lists) {
      list.forEach((value, i) => {
        found[i % 2] = Math.min(found[i % 2], value);
        found[2 + (i % 2)] = Math.max(found[2 + (i % 2)], value);
      });
    }
    return found;
  }

  // --- view ---

  function fit([west, south, east, north] = bounds) {
    const margin = 0.05 * Math.max(east - west, north - south) + 50;
    view.x = (west + east) / 2;
    view.y = (south + north) / 2;
    view.scale = Math.min(width / (east - west + 2 * margin), height / (north - south + 2 * margin));
  }

  function zoom(factor, x = width / 2, y = height / 2) {
    const scale = Math.min(Math.max(view.scale * factor, fitted / 2), Math.max(5, fitted * 4));
    // The position below (x, y) stays there.
    view.x += (x - width / 2) * (1 / view.scale - 1 / scale);
    view.y -= (y - height / 2) * (1 / view.scale - 1 / scale);
    view.scale = scale;
  }

  function move(right, down) {
    view.x -= right / view.scale;
    view.y += down / view.scale;
  }

  const across = (x) => (x - view.x) * view.scale + width / 2;
  const down = (y) => (view.y - y) * view.scale + height / 2;

  function resize() {
    const [west, south, east, north] = bounds;
    const aspect = Math.min(Math.max((north - south + 200) / (east - west + 200), 0.5), 1);
    const first = width === 0;
    width = frame.clientWidth;
    height = Math.round(Math.min(width * aspect, 560));
    if (!width) return; // hidden, as in print
    canvas.style.height = `${height}px`;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    const zoomed = view.scale / fitted;
    const { x, y } = view;
    fit();
    fitted = view.scale;
    if (!first && zoomed !== 1) Object.assign(view, { x, y, scale: fitted * zoomed });
    draw();
  }

  function zoomTo(query) {
    const around = [at[2 * query], at[2 * query + 1]];
    for (const place of [...data.queries.predictions[query].slice(0, data.numShown), data.queries.expected[query]]) {
      if (place >= 0) around.push(places[2 * place], places[2 * place + 1]);
    }
    fit(boundsOf([around]));
  }

  // --- drawing ---

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawNow(); });
  }

  function drawNow() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, width, height);
    drawDatabase(color("--s5"));
    const zoomed = Math.sqrt(view.scale / fitted);
    const radius = Math.min(7, (numQueries < 500 ? 5 : numQueries < 3000 ? 4 : 3) * Math.max(1, zoomed));
    const colors = [color("--outcome0"), color("--outcome1"), color("--outcome2")];
    colors.forEach((one, kind) => drawQueries(kind, one, radius)); // failures on top
    if (selected >= 0) drawSelected(radius, color);
    drawScale(color("--soft"));
  }

  function drawDatabase(color) {
    const size = view.scale > 3 * fitted ? 4 : 2.5;
    context.globalAlpha = 0.55;
    context.fillStyle = color;
    const dots = data.database;
    for (let i = 0; i < dots.length; i += 2) {
      context.fillRect(across(dots[i]) - size / 2, down(dots[i + 1]) - size / 2, size, size);
    }
    context.globalAlpha = 1;
  }

  function drawQueries(kind, color, r) {
    context.beginPath();
    for (let i = 0; i < numQueries; i++) {
      if (outcome[i] !== kind) continue;
      const x = across(at[2 * i]), y = down(at[2 * i + 1]);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      context.moveTo(x + r, y + (kind === 2 ? r : 0));
      if (kind === 2) {
        context.lineTo(x - r, y - r);
        context.moveTo(x + r, y - r);
        context.lineTo(x - r, y + r);
      } else context.arc(x, y, r, 0, 7);
    }
    context.fillStyle = context.strokeStyle = color;
    context.lineWidth = Math.max(1.5, r * 0.5);
    if (kind === 0) context.fill();
    else context.stroke();
  }

  function drawSelected(radius, color) {
    const { predictions, correct, expected } = data.queries;
    const x = across(at[2 * selected]), y = down(at[2 * selected + 1]);
    const toPlace = (place, colorName, dashes) => {
      const px = across(places[2 * place]), py = down(places[2 * place + 1]);
      context.strokeStyle = context.fillStyle = color(colorName);
      context.lineWidth = 2;
      context.setLineDash(dashes);
      context.stroke(new Path2D(`M${x} ${y}L${px} ${py}`));
      context.setLineDash([]);
      return [px, py];
    };
    context.font = "600 12px system-ui, sans-serif";
    predictions[selected].slice(0, data.numShown).forEach((place, rank) => {
      if (place < 0) return;
      const isCorrect = correct[selected][rank];
      const [px, py] = toPlace(place, isCorrect ? "--correct" : "--incorrect", isCorrect ? [] : [6, 4]);
      context.fillRect(px - 4, py - 4, 8, 8);
      context.fillText(String(rank + 1), px + 7, py - 5);
    });
    if (expected[selected] >= 0) {
      const [px, py] = toPlace(expected[selected], "--ink", [2, 4]);
      context.strokeRect(px - 6, py - 6, 12, 12);
    }
    context.strokeStyle = color("--ink");
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, radius + 5, 0, 7);
    context.stroke();
  }

  function drawScale(color) {
    const meters = width / view.scale / 10 / 6; // at most a sixth of the width
    const power = 10 ** Math.floor(Math.log10(meters));
    const length = [5, 2, 1].map((factor) => factor * power).find((value) => value <= meters);
    const pixels = length * 10 * view.scale;
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = 2;
    context.stroke(new Path2D(`M12 ${height - 18}v6h${pixels}v-6`));
    context.font = "13px system-ui, sans-serif";
    const text = length >= 1000 ? `${length / 1000} km` : `${length} m`;
    context.fillText(data.areMeters ? text : `${length.toLocaleString("en-US")} units`, 20 + pixels, height - 11);
  }

  // --- selection ---

  function select(query) {
    selected = query;
    const [east, north] = [at[2 * query], at[2 * query + 1]];
    const isOutside = Math.abs(across(east) * 2 - width) > width || Math.abs(down(north) * 2 - height) > height;
    if (isOutside) Object.assign(view, { x: east, y: north });
    draw();
  }

  // Queries within a number of pixels, the nearest first.
  function near(x, y, limit) {
    const found = [];
    for (let i = 0; i < numQueries; i++) {
      const distance = Math.hypot(across(at[2 * i]) - x, down(at[2 * i + 1]) - y);
      if (distance < limit) found.push([distance, i]);
    }
    return found.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, query]) => query);
  }

  function pick(x, y, limit) {
    const found = near(x, y, limit);
    // Another click at the same place selects the next query there.
    if (found.length) onSelect(found[(found.indexOf(selected) + 1) % found.length]);
  }

  function selectToward(right, below) {
    const from = selected;
    const x = from < 0 ? width / 2 : across(at[2 * from]), y = from < 0 ? height / 2 : down(at[2 * from + 1]);
    let best = -1, least = Infinity;
    for (let i = 0; i < numQueries; i++) {
      const dx = across(at[2 * i]) - x, dy = down(at[2 * i + 1]) - y, distance = Math.hypot(dx, dy);
      const isAhead = from < 0 || dx * right + dy * below > 0.6 * distance;
      if (isAhead && distance < least) [best, least] = [i, distance];
    }
    if (best >= 0) onSelect(best);
  }

  // --- input ---

  const pointers = new Map();
  let hasMoved = false;
  const placeOf = (event) => {
    const frameBox = canvas.getBoundingClientRect();
    return [event.clientX - frameBox.left, event.clientY - frameBox.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, placeOf(event));
    canvas.setPointerCapture(event.pointerId);
    hasMoved = pointers.size > 1;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = placeOf(event), before = pointers.get(event.pointerId);
    if (!before) {
      canvas.style.cursor = near(x, y, 12).length ? "pointer" : "grab";
      return;
    }
    if (!hasMoved && Math.hypot(x - before[0], y - before[1]) < 5) return;
    hasMoved = true;
    if (pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoom(distance([x, y]) / distance(before), (x + other[0]) / 2, (y + other[1]) / 2);
      move((x - before[0]) / 2, (y - before[1]) / 2);
    } else {
      move(x - before[0], y - before[1]);
    }
    pointers.set(event.pointerId, [x, y]);
    draw();
  });
  const release = (event) => {
    const wasDown = pointers.delete(event.pointerId);
    if (!wasDown || hasMoved || event.type === "pointercancel") return;
    pick(...placeOf(event), event.pointerType === "mouse" ? 12 : 22);
  };
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, release);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...placeOf(event));
    draw();
  }, { passive: false });
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) move(-60 * arrow[0], -60 * arrow[1]);
    else if (arrow) selectToward(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
    draw();
  });

  new ResizeObserver(resize).observe(frame);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  resize();
  return { select, zoomTo };
}
