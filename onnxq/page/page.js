"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  const LEVELS = [10, 20, 30, 40]; // dB: an error of 30, 10, 3 and 1 per cent
  const FIRST = 20;
  const PAGE = 100;
  const byId = (id) => document.getElementById(id);
  const narrow = window.matchMedia("(max-width: 720px)");

  // -- small tools ---------------------------------------------------------------------------------------

  const number = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
  const floatKind = (kind) => /^(float|bfloat)|weight$|^unknown$/.test(kind);
  const level = (db) => LEVELS.filter((least) => db >= least).length;

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function shape(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function digits(value, count = 4) {
    if (value === null || value === undefined) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(count)));
    return text.replaceAll("-", "−");
  }

  const decibels = (db) => (db === null ? "–" : db === Infinity ? "exact" : db === -Infinity ? "not finite" : db.toFixed(1).replace("-", "−"));
  const many = (count) => count.toLocaleString("en-US");
  const percent = (share) => (share === 0 ? "0 %" : share < 1e-4 ? "< 0.01 %" : digits(100 * share, 3) + " %");

  /** About `count` round numbers from low to high. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(6)));
    return found;
  }

  /** An empty drawing as wide as its box. */
  function canvas(box, height, label) {
    box.replaceChildren();
    const width = Math.max(280, Math.floor(box.clientWidth));
    const svg = shape(box, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
    return { svg, width, height };
  }

  // -- layers --------------------------------------------------------------------------------------------

  const layers = data.layers.map((row) => ({
    order: row[0], name: row[1], op: data.texts[row[2]], precision: data.texts[row[3]], reason: data.texts[row[4]],
    macs: row[5], picture: row[6], sqnr: number(row[7]), cosine: number(row[8]), error: number(row[9]),
    largest: number(row[10]), output: row[11] === 1,
  }));
  for (const layer of layers) layer.text = `${layer.name} ${layer.op} ${layer.precision} ${layer.reason}`.toLowerCase();
  const measured = layers.filter((layer) => layer.sqnr !== null);

  const COLUMNS = [
    { key: "order", title: "#", wide: true, num: true },
    { key: "name", title: "Layer" },
    { key: "op", title: "Operator", wide: true },
    { key: "precision", title: "Precision", wide: true },
    { key: "sqnr", title: "SQNR dB", num: true },
    { key: "cosine", title: "Cosine", num: true, wide: true },
    { key: "error", title: "Max error", num: true, wide: true },
    { key: "largest", title: "Max value", num: true, wide: true },
    { key: "macs", title: "MACs", num: true },
  ].filter((column) => measured.length || !["sqnr", "cosine", "error", "largest"].includes(column.key));
  const state = { key: measured.length ? "sqnr" : "order", down: false, shown: FIRST };

  function ordered(rows) {
    const { key, down } = state;
    const sign = down ? -1 : 1;
    return rows.slice().sort((a, b) => {
      const [x, y] = [a[key], b[key]];
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order; // not measured: last
      if (typeof x === "string") return sign * (x < y ? -1 : x > y ? 1 : 0) || a.order - b.order;
      return (x === y ? 0 : sign * (x < y ? -1 : 1)) || a.order - b.order;
    });
  }

  function layerRow(layer) {
    const name = element("td", {}, element("bdi", { class: "name" }, layer.name));
    const about = [narrow.matches ? `${layer.op}, ${layer.precision}` : "", layer.output ? "model output" : "", layer.reason];
    const said = about.filter(Boolean).join(" · ");
    if (said) name.append(element("div", { class: "why" }, said));
    const sqnr = element("td", { class: "num" });
    if (layer.sqnr !== null) sqnr.append(element("span", { class: `level dot e${level(layer.sqnr)}` }), decibels(layer.sqnr));
    const cells = {
      order: element("td", { class: "num wide muted" }, String(layer.order + 1)),
      name,
      op: element("td", { class: "wide" }, layer.op),
      precision: element("td", { class: "wide" }, layer.precision),
      sqnr,
      cosine: element("td", { class: "num wide" }, layer.cosine === null ? "–" : layer.cosine.toFixed(5)),
      error: element("td", { class: "num wide" }, digits(layer.error, 3)),
      largest: element("td", { class: "num wide" }, digits(layer.largest, 3)),
      macs: element("td", { class: "num" }, layer.macs ? compact(layer.macs) : "–"),
    };
    const row = element("tr", {}, ...COLUMNS.map((column) => cells[column.key]));
    if (layer.picture >= 0) {
      row.className = "link";
      row.title = "Show its values";
      row.addEventListener("click", () => { choose(layer.picture); byId("tensors").scrollIntoView({ behavior: "smooth" }); });
    }
    return row;
  }

  function compact(count) {
    for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
    }
    return String(count);
  }

  function showLayers() {
    const words = byId("layers-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = byId("layers-precision").value;
    const found = layers.filter((x) => (!kind || x.precision === kind) && words.every((word) => x.text.includes(word)));
    const shown = ordered(found).slice(0, state.shown);
    byId("layers-body").replaceChildren(...shown.map(layerRow));
    byId("layers-count").textContent = found.length === layers.length ? many(layers.length) : `${many(found.length)} of ${many(layers.length)}`;
    const more = byId("layers-more");
    more.hidden = shown.length === found.length;
    more.textContent = `Show ${many(Math.min(PAGE, found.length - shown.length))} more of ${many(found.length)}`;
    for (const head of byId("layers-head").children) {
      if (head.dataset.key === state.key) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function startLayers() {
    for (const column of COLUMNS) {
      const button = element("button", { type: "button" }, column.title);
      const classes = [column.num ? "num" : "", column.wide ? "wide" : ""].filter(Boolean).join(" ");
      const head = element("th", { "data-key": column.key, class: classes, scope: "col" }, button);
      button.addEventListener("click", () => {
        state.down = state.key === column.key ? !state.down : column.key === "macs" || column.key === "error";
        state.key = column.key;
        showLayers();
      });
      byId("layers-head").append(head);
    }
    for (const kind of [...new Set(layers.map((x) => x.precision))].sort()) {
      byId("layers-precision").append(element("option", { value: kind }, kind));
    }
    const again = () => { state.shown = FIRST; showLayers(); };
    byId("layers-search").addEventListener("input", again);
    byId("layers-precision").addEventListener("change", again);
    narrow.addEventListener("change", showLayers);
    byId("layers-more").addEventListener("click", () => { state.shown += PAGE; showLayers(); });
    showLayers();
  }

  // -- where the error arises ----------------------------------------------------------------------------

  let picked = -1;

  function drawAlong() {
    const box = byId("along-chart");
    const { svg, width, height } = canvas(box, 270, "SQNR in dB of each layer in the order of execution");
    const [left, right, top, bottom] = [44, 10, 24, 38];
    const finite = measured.map((x) => x.sqnr).filter(Number.isFinite);
    const high = Math.min(Math.max(40, 10 * Math.ceil(Math.max(...finite, 0) / 10)), 60); // above it nobody looks
    const low = Math.min(0, 10 * Math.floor(Math.min(...finite, 0) / 10));
    const y = (db) => top + (height - top - bottom) * (1 - (Math.min(Math.max(db, low), high) - low) / (high - low));
    const room = Math.max(20, Math.floor((width - left - right) / 4));
    const step = Math.max(1, Math.ceil(measured.length / room));
    const marks = [];
    for (let i = 0; i < measured.length; i += step) {
      const group = measured.slice(i, i + step);
      marks.push(group.reduce((a, b) => (b.sqnr < a.sqnr ? b : a)));
    }
    const x = (i) => left + (width - left - right) * (marks.length === 1 ? 0.5 : i / (marks.length - 1));
    for (const db of ticks(low, high, 5)) {
      shape(svg, "line", { x1: left, x2: width - right, y1: y(db), y2: y(db), class: "rule" });
      shape(svg, "text", { x: left - 8, y: y(db) + 4, "text-anchor": "end", class: "axis" }, db === 60 ? "≥ 60" : digits(db));
    }
    shape(svg, "text", { x: 0, y: 9, class: "axis" }, "SQNR, dB");
    shape(svg, "text", { x: left, y: height - 6, class: "axis" }, "first layer");
    shape(svg, "text", { x: width - right, y: height - 6, "text-anchor": "end", class: "axis" }, "last layer");
    shape(svg, "polyline", { class: "thread", points: marks.map((m, i) => `${x(i).toFixed(1)},${y(m.sqnr).toFixed(1)}`).join(" ") });
    const cursor = shape(svg, "line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    const radius = marks.length > 150 ? 2.5 : 4;
    marks.forEach((mark, i) => {
      const ring = floatKind(mark.precision) ? " ring" : "";
      shape(svg, "circle", { cx: x(i).toFixed(1), cy: y(mark.sqnr).toFixed(1), r: radius, class: `mark e${level(mark.sqnr)}${ring}` });
    });
    const say = (i) => {
      picked = Math.min(Math.max(i, 0), marks.length - 1);
      const mark = marks[picked];
      cursor.setAttribute("x1", x(picked));
      cursor.setAttribute("x2", x(picked));
      cursor.setAttribute("visibility", "visible");
      const measuredText = `${mark.op}, ${mark.precision}: ${decibels(mark.sqnr)}${Number.isFinite(mark.sqnr) ? " dB" : ""}, cosine ${mark.cosine.toFixed(5)}, largest error ${digits(mark.error, 3)} of ${digits(mark.largest, 3)}`;
      const reason = mark.reason ? element("span", { class: "why" }, ` · ${mark.reason}`) : "";
      byId("along-caption").replaceChildren(element("bdi", { class: "name" }, mark.name), element("br"), measuredText, reason);
    };
    const at = (event) => Math.round(((event.clientX - box.getBoundingClientRect().left - left) / (width - left - right)) * (marks.length - 1));
    box.onpointermove = (event) => say(at(event));
    box.onpointerdown = (event) => say(at(event));
    box.onclick = () => { if (picked >= 0 && marks[picked].picture >= 0) choose(marks[picked].picture); };
    box.onkeydown = (event) => {
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        say(picked + (event.key === "ArrowRight" ? 1 : -1));
        event.preventDefault();
      }
    };
    say(marks.indexOf(marks.reduce((a, b) => (b.sqnr < a.sqnr ? b : a))));
    const names = ["below 10 dB", "10 to 20", "20 to 30", "30 to 40", "40 and more"];
    const items = names.map((text, i) => element("li", {}, element("span", { class: `dot e${i}` }), text));
    items.push(element("li", {}, element("span", { class: "dot full" }), "quantized"), element("li", {}, element("span", { class: "dot ring" }), "in float"));
    if (step > 1) items.push(element("li", {}, `each mark is the worst of ${step} layers`));
    byId("along-legend").replaceChildren(...items);
  }

  // -- values and ranges ---------------------------------------------------------------------------------

  let current = -1;

  /** Expected SQNR of a tensor with the range in the model. */
  const cost = (picture) => (picture.ranges.length && picture.ranges[0][0] === "in the model" ? number(picture.ranges[0][4]) : Infinity);

  function choose(index) {
    current = index;
    const picture = data.pictures[index];
    const listed = () => byId("tensors-list").querySelector(`input[value="${index}"]`);
    if (!listed()) {
      byId("tensors-search").value = "";
      listTensors();
    }
    listed().checked = true;
    const [list, row] = [byId("tensors-list"), listed().parentElement];
    if (row.offsetTop < list.scrollTop || row.offsetTop + row.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = row.offsetTop - 8;
    byId("tensors-name").textContent = picture.name;
    const readers = picture.readers.join(", ") + (picture.more ? ` and ${picture.more} more` : "");
    const zeros = picture.zeros ? `, ${percent(picture.zeros)} of them zero (not drawn)` : "";
    byId("tensors-about").textContent = `${picture.kind}; ${many(picture.count)} values from ${digits(number(picture.low))} to ${digits(number(picture.high))}${zeros}.${picture.chosen ? ` Range chosen by ${picture.chosen}.` : ""}${readers ? ` Read by ${readers}.` : ""}`;
    drawTensor();
    byId("tensors-table").hidden = !picture.ranges.length;
    byId("tensors-body").replaceChildren(...picture.ranges.map(([name, low, high, clipped, sqnr]) => element(
      "tr", name === "in the model" ? { class: "used" } : {},
      element("td", { class: "whole" }, name),
      element("td", { class: "num" }, digits(number(low))),
      element("td", { class: "num" }, digits(number(high))),
      element("td", { class: "num wide" }, percent(number(clipped))),
      element("td", { class: "num" }, Number.isFinite(number(sqnr)) ? `${decibels(number(sqnr))} dB` : decibels(number(sqnr))),
    )));
  }

  function drawTensor() {
    const picture = data.pictures[current];
    const log = byId("tensors-log").checked;
    const rowHeight = 20;
    const [left, right, top, axis] = [52, 14, 24, 40];
    const plot = 210;
    const bottom = top + plot;
    const { svg, width } = canvas(byId("tensors-chart"), bottom + axis + rowHeight * picture.ranges.length + 6, `Histogram of ${picture.name}`);
    const start = number(picture.start);
    const end = start + number(picture.width) * picture.counts.length;
    const x = (value) => left + (width - left - right) * (value - start) / (end - start);
    const most = Math.max(...picture.counts, 1);
    const scale = log ? (count) => Math.log10(count) + 0.35 : (count) => count;
    const y = (count) => (count <= 0 ? bottom : bottom - plot * scale(count) / scale(log ? 10 ** Math.ceil(Math.log10(most)) : most));
    const marks = log ? [...Array(Math.ceil(Math.log10(most)) + 1).keys()].map((power) => 10 ** power) : ticks(0, most, 4).filter(Number.isInteger);
    for (const count of marks) {
      shape(svg, "line", { x1: left, x2: width - right, y1: y(count), y2: y(count), class: "rule" });
      shape(svg, "text", { x: left - 8, y: y(count) + 4, "text-anchor": "end", class: "axis" }, count ? compact(count).replace(" ", "") : "0");
    }
    shape(svg, "text", { x: 0, y: 9, class: "axis" }, "values per column");
    const column = (width - left - right) / picture.counts.length;
    picture.counts.forEach((count, i) => {
      if (count) shape(svg, "rect", { x: (left + i * column).toFixed(2), y: y(count).toFixed(2), width: Math.max(column - 0.6, 0.6).toFixed(2), height: (bottom - y(count)).toFixed(2), class: "bar" });
    });
    shape(svg, "line", { x1: left, x2: width - right, y1: bottom, y2: bottom, class: "base" });
    for (const value of ticks(start, end, width < 480 ? 4 : 7)) {
      shape(svg, "text", { x: x(value), y: bottom + 16, "text-anchor": "middle", class: "axis" }, digits(value));
    }
    shape(svg, "text", { x: 0, y: bottom + 16, class: "axis" }, "value");
    picture.ranges.forEach(([name, lowText, highText], i) => {
      const [low, high] = [Math.max(number(lowText), start), Math.min(number(highText), end)];
      const line = bottom + axis + rowHeight * i;
      const used = name === "in the model" ? " used" : "";
      if (used) {
        for (const [value, inside] of [[low, number(lowText) >= start], [high, number(highText) <= end]]) {
          if (inside) shape(svg, "line", { x1: x(value), x2: x(value), y1: top, y2: line, class: "guide" });
        }
      }
      shape(svg, "line", { x1: x(low), x2: x(high), y1: line, y2: line, class: "reach" + used });
      for (const [value, inside] of [[low, number(lowText) >= start], [high, number(highText) <= end]]) {
        if (inside) shape(svg, "line", { x1: x(value), x2: x(value), y1: line - 4, y2: line + 4, class: "reach" + used });
      }
      shape(svg, "text", { x: left, y: line - 5, class: "reach-name" + used }, name);
    });
  }

  function listTensors() {
    const words = byId("tensors-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.pictures.map((picture, i) => [picture, i]).filter(([p]) => words.every((word) => p.name.toLowerCase().includes(word)));
    byId("tensors-list").replaceChildren(...found.map(([picture, i]) => {
      const input = element("input", { type: "radio", name: "tensor", value: i });
      input.checked = i === current;
      const db = cost(picture);
      const error = Number.isFinite(db) ? element("span", { class: "num" }, element("span", { class: `level dot e${level(db)}` }), decibels(db)) : "";
      return element("label", {}, input, element("bdi", { class: "name" }, picture.name), error);
    }));
    return found.map(([, i]) => i);
  }

  function startTensors() {
    byId("tensors-search").addEventListener("input", () => {
      const found = listTensors();
      if (found.length && !found.includes(current)) choose(found[0]);
    });
    byId("tensors-list").addEventListener("change", (event) => choose(Number(event.target.value)));
    byId("tensors-log").addEventListener("change", drawTensor);
    listTensors();
    choose(data.pictures.reduce((best, picture, i) => (cost(picture) < cost(data.pictures[best]) ? i : best), 0));
  }

  // -- accuracy against work -----------------------------------------------------------------------------

  function drawTrades() {
    const points = data.trades.map(([share, db, taken, time]) => [100 * number(share), number(db), taken, time]).filter(([, db]) => Number.isFinite(db));
    if (!points.length) return;
    const { svg, width, height } = canvas(byId("trades-chart"), 280, "SQNR against the share of work quantized");
    const [left, right, top, bottom] = [44, 24, 26, 46];
    const dbs = points.map(([, db]) => db);
    const [low, high] = [Math.floor(Math.min(...dbs) / 5) * 5, Math.ceil((Math.max(...dbs) + 0.1) / 5) * 5];
    const least = Math.min(...points.map(([share]) => share));
    const from = 100 - [0.5, 1, 2, 5, 10, 20, 40, 100].find((span) => 100 - span <= least);
    const x = (share) => left + (width - left - right) * (share - from) / (100 - from);
    const y = (db) => top + (height - top - bottom) * (1 - (db - low) / (high - low));
    for (const db of ticks(low, high, 5)) {
      shape(svg, "line", { x1: left, x2: width - right, y1: y(db), y2: y(db), class: "rule" });
      shape(svg, "text", { x: left - 8, y: y(db) + 4, "text-anchor": "end", class: "axis" }, digits(db));
    }
    for (const share of ticks(from, 100, width < 480 ? 4 : 8)) {
      shape(svg, "text", { x: x(share), y: height - bottom + 18, "text-anchor": "middle", class: "axis" }, digits(share) + " %");
    }
    shape(svg, "text", { x: 0, y: 9, class: "axis" }, "SQNR, dB");
    shape(svg, "text", { x: width - right, y: height - 6, "text-anchor": "end", class: "axis" }, "multiply-accumulates quantized");
    shape(svg, "polyline", { class: "thread", points: points.map(([share, db]) => `${x(share).toFixed(1)},${y(db).toFixed(1)}`).join(" ") });
    for (const [share, db, taken, time] of points) {
      const mark = shape(svg, "circle", { cx: x(share).toFixed(1), cy: y(db).toFixed(1), r: taken ? 6 : 4, class: `mark e${level(db)}${taken ? "" : " ring"}` });
      shape(mark, "title", {}, `${digits(share)} % quantized, ${db.toFixed(1)} dB${time ? `, time ${time}` : ""}`);
    }
  }

  // -- start ---------------------------------------------------------------------------------------------

  startLayers();
  if (measured.length) byId("along").hidden = false;
  if (data.pictures.length) startTensors();
  const draw = () => {
    if (measured.length) drawAlong();
    if (data.pictures.length) drawTensor();
    if (data.trades.length) drawTrades();
  };
  let width = 0; // the first observation draws; later ones when a scroll bar or a turned phone changes the width
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 1) return;
    width = entry.contentRect.width;
    draw();
  }).observe(document.querySelector("main"));
})();
