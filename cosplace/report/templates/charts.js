// The charts of a page, drawn with uPlot from the JSON next to each of them (charts.py).
//
// A curve looks like its line in the legend, which has its color, width and dashes from the stylesheet.
(() => {
  const FONT = 13; // CSS pixels, as are all other sizes
  const CHARACTER = 7.4; // width, a generous mean
  const STRIP = 7; // height
  const PRINTED = 460; // width before it is fitted to the paper; with three times as many pixels
  const MAX_POINTS = 25; // more would hide the line

  const root = document.documentElement;
  const themeColor = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const faded = (color, alpha) => color.replace(")", `, ${alpha})`); // of rgb(1, 2, 3)
  const all = (_, splits) => splits;

  function styleOf(item) {
    const line = item.querySelector("path"), style = getComputedStyle(line);
    return {
      color: style.stroke,
      width: parseFloat(style.strokeWidth),
      dash: style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(parseFloat),
      alpha: Number(style.opacity),
      is: (name) => line.classList.contains(name),
    };
  }

  // An axis with the ticks of the data, but no texts that would touch.  size: fits a size to the scale of the drawing.
  function axisOf({ title, low, high, ticks }, scale, size) {
    const isX = scale === "x", color = themeColor("--soft"), line = { stroke: color, width: size(1.2) };
    const font = `${size(FONT)}px ${getComputedStyle(document.body).fontFamily}`;
    const longest = Math.max(0, ...ticks.map(([, text]) => text.length));
    return {
      scale,
      font,
      labelFont: font,
      label: title || null,
      labelSize: size(22),
      labelGap: 0,
      stroke: color,
      size: size(isX ? 26 : longest * CHARACTER + 10),
      gap: size(isX ? 4 : 7),
      splits: () => ticks.map(([value]) => value),
      filter: all,
      incrs: [Math.ceil(high - low) + 5], // one that always fits, as the ticks are given
      space: () => 1,
      values: (plot) => {
        let end = -Infinity;
        return ticks.map(([value, text]) => {
          const middle = plot.valToPos(value, scale), half = size(text.length * CHARACTER) / 2;
          if (isX && middle - half < end) return null;
          end = middle + half;
          return text;
        });
      },
      border: { show: isX, ...line },
      ticks: { show: isX, size: size(5), filter: all, ...line },
      grid: { show: !isX, stroke: themeColor("--rule"), width: size(1) },
    };
  }

  // The curves as uPlot needs them: all points in one list by rising x, and two invisible curves for each band.
  function seriesOf(curves, size) {
    const points = curves.flatMap((curve) => curve.xs.map((x, place) => ({ x, curve, place })));
    points.sort((a, b) => a.x - b.x);
    const table = [points.map((point) => point.x)], series = [{}], bands = [], linear = uPlot.paths.linear();
    const paths = (plot, place) => linear(plot, place, 0, points.length - 1); // also several points at the end of x
    function add(curve, name, look) {
      series.push({ width: 0, spanGaps: true, points: { show: false }, paths, ...look });
      table.push(points.map((point) => (point.curve === curve ? curve[name][point.place] : null)));
    }
    for (const curve of curves.filter((one) => one.lows && !one.radii)) {
      bands.push({ series: [series.length, series.length + 1], fill: faded(curve.color, 0.16) });
      add(curve, "highs");
      add(curve, "lows");
    }
    for (const curve of curves) {
      const { color, width, dash, alpha, radii, xs } = curve;
      const hasPoints = xs.length <= MAX_POINTS && (curve.is("line") || curve.is("strong"));
      const look = { stroke: color, width: size(width), dash: dash.map((value) => size(value) * uPlot.pxRatio), alpha };
      const places = points.flatMap((point, place) => (point.curve === curve ? place : []));
      if (hasPoints) look.points = { show: true, size: size(7), width: 0, fill: color, filter: () => places };
      if (radii) Object.assign(look, { width: 0, points: { show: (plot) => drawDots(plot, curve, size) } });
      if (curve.is("bar")) {
        Object.assign(look, { width: 0, fill: color, paths: uPlot.paths.bars({ size: [1], gap: size(1) }) });
      }
      add(curve, "ys", look);
    }
    return { table, series, bands };
  }

  // Dots of different sizes, with lines for their intervals.
  function drawDots(plot, { xs, ys, lows, highs, radii, color }, size) {
    const { ctx } = plot, pixels = (value) => size(value) * uPlot.pxRatio;
    ctx.save();
    ctx.fillStyle = ctx.strokeStyle = color;
    ctx.globalAlpha = 0.8;
    ctx.lineWidth = pixels(2);
    ctx.setLineDash([]);
    xs.forEach((x, place) => {
      const across = plot.valToPos(x, "x", true), down = (y) => plot.valToPos(y, "y", true);
      ctx.beginPath();
      if (lows) {
        ctx.moveTo(across, down(lows[place]));
        ctx.lineTo(across, down(highs[place]));
        ctx.stroke();
        ctx.beginPath();
      }
      ctx.arc(across, down(ys[place]), pixels(radii[place]), 0, 2 * Math.PI);
      ctx.fill();
    });
    ctx.restore();
    return false;
  }

  // The groups of the epochs, and the text above the marked value.
  function drawNotes(plot, { strip, threshold }, size) {
    const { ctx, bbox } = plot, pixels = (value) => size(value) * uPlot.pxRatio;
    const across = (x) => plot.valToPos(x, "x", true);
    ctx.save();
    for (const [start, end, color] of strip) {
      ctx.fillStyle = color;
      ctx.fillRect(across(start), bbox.top + bbox.height - pixels(STRIP), across(end) - across(start), pixels(STRIP));
    }
    if (threshold) {
      const [value, text] = threshold;
      ctx.fillStyle = themeColor("--soft");
      ctx.font = plot.axes[0].font[0];
      ctx.textAlign = "center";
      ctx.textBaseline = "bottom";
      const last = ctx.canvas.width - ctx.measureText(text).width / 2;
      ctx.fillText(text, Math.min(across(value), last), bbox.top - pixels(4));
    }
    ctx.restore();
  }

  function setUp(chart) {
    const data = JSON.parse(chart.querySelector("script").textContent);
    const box = chart.querySelector(".plot"), legend = chart.querySelector(".curves");
    const tip = Object.assign(document.createElement("div"), { className: "tip" });
    let plot = null, drawnWidth = 0;
    legend.hidden = legend.querySelectorAll("li:not([hidden])").length < 2;
    for (const row of chart.querySelectorAll("tbody tr")) { // for the list that the table is on a phone
      [...row.cells].forEach((cell, column) => { cell.dataset.label = data.columns[column]; });
    }
    chart.querySelector("table").classList.add("listed");

    function nearestRow(left) {
      const distance = ([x]) => Math.abs(plot.valToPos(x, "x") - left);
      return data.rows.reduce((best, row) => (distance(row) < distance(best) ? row : best));
    }

    function showTip() {
      const { left, top } = plot.cursor;
      tip.hidden = left < 0;
      if (tip.hidden) return;
      const [, texts] = nearestRow(left);
      const lines = data.columns.map((name, column) => texts[column] && `${name}: ${texts[column]}`);
      tip.textContent = lines.filter(Boolean).join("\n");
      const middle = plot.over.offsetLeft + left, above = plot.over.offsetTop + top - tip.offsetHeight - 14;
      const room = box.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(middle - tip.offsetWidth / 2, room))}px`;
      tip.style.top = `${Math.max(above, 4 - box.getBoundingClientRect().top)}px`; // on the screen
    }

    function draw(width, scale = 1) {
      const size = (value) => value * scale;
      const curves = data.series.map((one, place) => ({ ...one, ...styleOf(legend.children[place]) }));
      curves.sort((a, b) => a.width - b.width); // the thickest is drawn last
      const { table, series, bands } = seriesOf(curves, size);
      const lastTick = data.x.ticks.at(-1)?.[1] ?? "";
      plot?.destroy();
      plot = new uPlot({
        width: size(width),
        height: size(Math.max(240, Math.round(width * 0.68))),
        padding: [size(data.threshold ? 24 : 14), size((lastTick.length * CHARACTER) / 2 + 6), 0, 0],
        scales: {
          x: { time: false, distr: data.x.logarithmic ? 3 : 1, range: [data.x.low, data.x.high] },
          y: { range: [data.y.low, data.y.high] },
        },
        axes: [axisOf(data.x, "x", size), axisOf(data.y, "y", size)],
        series,
        bands,
        legend: { show: false },
        cursor: {
          y: false,
          points: { show: false },
          drag: { x: false, y: false },
          move: (one, left, top) => (left < 0 ? [left, top] : [one.valToPos(nearestRow(left)[0], "x"), top]),
        },
        hooks: { drawAxes: [(one) => drawNotes(one, data, size)], setCursor: [showTip] },
      }, table, box);
      for (const name of ["pointerdown", "pointermove"]) {
        plot.over.addEventListener(name, ({ pointerType, offsetX, offsetY }) => {
          if (pointerType !== "mouse") plot.setCursor({ left: offsetX, top: offsetY });
        });
      }
      box.append(tip);
      tip.hidden = true;
    }

    function drawOnScreen() {
      if (root.classList.contains("printing")) return; // sizes and colors may change then
      drawnWidth = box.clientWidth;
      if (drawnWidth) draw(drawnWidth);
    }

    new ResizeObserver(() => { if (box.clientWidth !== drawnWidth) drawOnScreen(); }).observe(box);
    function drawForPrint() {
      draw(PRINTED, 3);
      plot.batch(() => {}); // now: without this, uPlot draws after the event
    }

    return { drawOnScreen, drawForPrint };
  }

  const charts = [...document.querySelectorAll(".chart")].map(setUp);
  const redraw = () => { for (const chart of charts) chart.drawOnScreen(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    root.classList.add("printing"); // light colors, before the page has its printed styles
    for (const chart of charts) chart.drawForPrint();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    requestAnimationFrame(redraw); // when the page has its width on the screen again
  });
})();
