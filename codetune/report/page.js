// Draws the document of the page. All text is set as text, never as HTML; nothing is loaded.
"use strict";

const data = JSON.parse(document.getElementById("document").textContent);
const page = document.getElementById("page");
const SVG = document.getElementById("svg-namespace").namespaceURI;
const STATE_COLOURS = ["taken", "not-taken", "mismatched", "set-aside", "no-score"];
const PAGE_OF_ROWS = 25;

// ---- elements, numbers, colours

function build(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const clusterColour = (cluster) => `hsl(${(cluster * 137.508) % 360} 60% 50%)`;
const isKnown = (value) => value !== null && value !== undefined;

// A half goes to the even neighbour, as Python rounds: the page shows the figures of the terminal. toFixed alone takes the larger one.
function fixed(value, digits) {
  const size = Math.abs(value), halves = size * 2 ** (digits + 1);  // odd for a half of the last digit, and only for one
  const below = Math.floor(size * 10 ** digits);
  const shown = (halves % 2 === 1 ? (below + (below % 2)) / 10 ** digits : size).toFixed(digits);
  return value < 0 && Number(shown) ? `-${shown}` : shown;
}
const signed = (value, digits) => (fixed(value, digits).startsWith("-") ? "" : "+") + fixed(value, digits);
const significant = (value, digits) => (value ? +fixed(value, Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))))) : 0);
const whole = (value) => (isKnown(value) ? Number(fixed(value, 0)).toLocaleString("en") : "–");
const decimals = (value, digits) => (isKnown(value) ? fixed(value, digits) : "–");
const percent = (share) => (isKnown(share) ? `${fixed(100 * share, 1)} %` : "–");
const points = (share) => signed(100 * share, 1);
const short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
};

function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
  return found;
}

// Of values between 10 ** low and 10 ** high.
function logarithmicTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1)
    for (const factor of [1, 2, 5]) if (Math.log10(factor) + power >= low && Math.log10(factor) + power <= high) found.push(factor * 10 ** power);
  return found;
}

function table(columns, rows, numeric) {
  const isNumber = (index) => (numeric && numeric.includes(index) ? "number" : null);
  const cell = (tag) => (value, index) => el(tag, { class: isNumber(index) }, value);
  return el("div", { class: "scroll" }, el("table", { class: columns.length > 3 ? "wide" : null },
    el("thead", {}, el("tr", {}, columns.map(cell("th")))),
    el("tbody", {}, rows.map((row) => (row instanceof Node ? row : el("tr", {}, row.map(cell("td"))))))));
}

function section(id, title, part, draw) {
  const made = el("section", { id }, el("h2", {}, title));
  if (part && part.missing) made.append(el("p", { class: "soft" }, part.missing));
  else draw(made, part);
  page.append(made);
}

const legend = (entries) => el("div", { class: "key" }, entries.map(([name, shade]) =>
  el("span", {}, el("i", { style: `background:${shade}` }), name)));
const cutNote = (more) => (more ? `\n[… ${whole(more)} more characters are not on this page]` : "");
const textBlock = ([text, more]) => el("pre", {}, text + cutNote(more));

// ---- headline

function bestPair() {
  for (const found of data.benchmarks.found || []) {
    const pair = found.comparisons.find((each) => each.models[0] === "base" && each.models[1] === "tuned");
    if (pair) return { found, pair };
  }
  return null;
}

function tile(title, value, ...notes) {
  return el("div", { class: "tile" }, el("span", { class: "soft" }, title), el("b", {}, value),
    notes.filter(Boolean).map((note) => el("div", { class: "soft" }, note)));
}

function interval([low, high]) { return `${fixed(100 * low, 1)} to ${fixed(100 * high, 1)} %`; }

function verdict(test) {
  const least = test.least_difference > 1 ? "so few tasks find none" : `these tasks find ${fixed(100 * test.least_difference, 1)} or more`;
  return `${test.told_apart ? "told apart" : "not told apart"} (${least})`;
}

function difference(test) {
  const [low, high] = test.interval_95;
  return `${points(test.difference)} points (95 %: ${points(low)} to ${points(high)}; ${test.test}, p = ${significant(test.p_value, 2)}), ${verdict(test)}`;
}

function headline() {
  page.append(el("h1", {}, `${data.project.name}: what the selection and the training did`),
    el("p", { class: "soft" }, `Made by codetune ${data.project.version} from the artefacts of this run. Everything here is in this one file; nothing is loaded.`));
  for (const line of data.status.filter((each) => each.state === "stale"))
    page.append(el("p", { class: "warn" }, `${line.stage} is not what would be made now: ${line.detail}. This page shows what is there.`));
  const tiles = el("div", { class: "tiles" });
  const best = bestPair();
  if (best) {
    const [base, tuned] = ["base", "tuned"].map((name) => best.found.reports.find((each) => each.model === name));
    tiles.append(tile(`pass@1 on ${best.found.name}, all tests`, `${percent(base.pass_at_k.plus["pass@1"])} → ${percent(tuned.pass_at_k.plus["pass@1"])}`,
      base.interval_95.plus["pass@1"] && `95 %: ${interval(base.interval_95.plus["pass@1"])} → ${interval(tuned.interval_95.plus["pass@1"])}`,
      difference(best.pair.plus)));
  }
  const report = data.selection.report;
  if (report) {
    tiles.append(tile("rows taken", `${whole(report.taken)} of ${whole(report.rows)}`, `${percent(report.taken / report.rows)} of all rows, ${percent(report.taken / report.eligible)} of the ${whole(report.eligible)} eligible ones`));
    if (report.cost) {
      const even = report.cost.break_even_epochs, { epochs, share } = data.selection.saved;
      tiles.append(tile("training cost saved, scoring included", percent(share),
        `of ${Number.isInteger(epochs) ? epochs : fixed(epochs, 2)} ${epochs === 1 ? "epoch" : "epochs"} on all rows, estimated from tokens`,
        isKnown(even) ? `scoring is paid for after ${fixed(even, 2)} epochs` : "scoring is never paid for"));
    }
  }
  if (data.training.facts && isKnown(data.training.facts.tokens))
    tiles.append(tile("trained on", `${whole(data.training.facts.tokens)} tokens`, `${whole(data.training.facts.steps)} steps`, isKnown(data.training.facts.padding_rate) && `${percent(data.training.facts.padding_rate)} padding`));
  const nothing = data.sweep ? "This project has a sweep. Outside the sweep nothing is selected, trained or evaluated yet." : "Nothing is selected, trained or evaluated yet.";
  page.append(tiles.children.length ? tiles : el("p", {}, nothing));
}

// ---- the linked figures of the selection: each brush is a filter, and the rows that pass all of them are listed

const view = { brushes: {}, state: "", cluster: "", shown: PAGE_OF_ROWS, open: null, redraw: [], passes: null };

function passesAll(rows, index) {
  if (view.state !== "" && rows.state[index] !== +view.state) return false;
  if (view.cluster !== "" && rows.cluster[index] !== +view.cluster) return false;
  return Object.values(view.brushes).every((brush) => brush(index));
}

function isFiltered() { return view.state !== "" || view.cluster !== "" || Object.keys(view.brushes).length > 0; }

function refresh(rows) {
  view.passes = Uint8Array.from(rows.id, (_, index) => (passesAll(rows, index) ? 1 : 0));
  view.redraw.forEach((draw) => draw());
}

function setBrush(rows, name, brush) {
  if (brush) view.brushes[name] = brush;
  else delete view.brushes[name];
  view.shown = PAGE_OF_ROWS;
  refresh(rows);
}

// Calls `moved(from, to)` while a pointer is dragged, and `ended(from, to)`; a tap has from = to. Places are shares of the width and height.
function onDrag(target, moved, ended) {
  let from = null;
  const place = (event) => {
    const box = target.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  target.addEventListener("pointerdown", (event) => { from = place(event); target.setPointerCapture(event.pointerId); });
  target.addEventListener("pointermove", (event) => { if (from) moved(from, place(event)); });
  target.addEventListener("pointerup", (event) => { if (from) ended(from, place(event)); from = null; });
  target.addEventListener("pointercancel", () => { from = null; });
}

function histogram(rows, name, title, found) {
  const width = 560, height = 230, left = 46, bottom = 28, top = 26;
  const { edges, counts, below, above, cuts } = found;
  const low = edges[0], high = edges[edges.length - 1];
  const most = Math.max(...counts.rows, ...(counts.shuffled || []), 1);
  const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - 20);
  const y = (value) => height - bottom - (value / most) * (height - bottom - top);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "brush", role: "img", "aria-label": `${title}, of all rows and of those taken` });
  const mark = shape("rect", { y: top, height: height - bottom - top, fill: colour("accent"), opacity: 0.18, visibility: "hidden" });
  for (const tick of ticks(0, most, 4)) drawing.append(shape("line", { class: "axis", x1: left, x2: width - 20, y1: y(tick), y2: y(tick) }), shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  for (const tick of ticks(low, high, 6)) drawing.append(shape("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, short(tick)));
  for (const [kind, shade] of [["rows", "pale"], ["taken", "taken"]])
    counts[kind].forEach((count, bin) => count && drawing.append(shape("rect", {
      x: x(edges[bin]) + 0.5, width: Math.max(1, x(edges[bin + 1]) - x(edges[bin]) - 1), y: y(count), height: y(0) - y(count), style: `fill:var(--${shade})`,
    }, shape("title", {}, `${short(edges[bin])} to ${short(edges[bin + 1])}: ${whole(counts.rows[bin])} rows, ${whole(counts.taken[bin])} taken`))));
  if (counts.shuffled) drawing.append(shape("path", { fill: "none", "stroke-width": 2, style: "stroke:var(--set-aside)", d: counts.shuffled.map((count, bin) => `${bin ? "L" : "M"}${x(edges[bin])} ${y(count)}L${x(edges[bin + 1])} ${y(count)}`).join("") }));
  const limits = isKnown(cuts.max_ifd) ? [[cuts.max_ifd, "max_ifd"]] : cuts.limit_quantiles ? [[cuts.limit_quantiles[Math.floor(cuts.limit_quantiles.length / 2)], "limit (median)"]] : [];
  for (const [at, label] of limits) {
    if (at < low || at > high) continue;
    const isRight = x(at) > width * 0.7;
    drawing.append(shape("line", { x1: x(at), x2: x(at), y1: top - 4, y2: height - bottom, "stroke-width": 2, "stroke-dasharray": "5 4", style: "stroke:var(--mismatched)" }),
      shape("text", { x: x(at) + (isRight ? -5 : 5), y: 16, "text-anchor": isRight ? "end" : "start" }, `cut: ${label} ${short(at)}`));
  }
  drawing.append(mark);
  const valueAt = (share) => low + ((Math.min(Math.max(share * width, left), width - 20) - left) / (width - left - 20)) * (high - low);
  const ends = (from, to) => [valueAt(from[0]), valueAt(to[0])].sort((one, other) => one - other);
  const show = (from, to) => { const [first, last] = ends(from, to); mark.setAttribute("x", x(first)); mark.setAttribute("width", x(last) - x(first)); mark.setAttribute("visibility", "visible"); };
  onDrag(drawing, show, (from, to) => {
    if (Math.abs(from[0] - to[0]) < 0.01) { mark.setAttribute("visibility", "hidden"); return setBrush(rows, name, null); }
    const [first, last] = ends(from, to), column = rows[name];
    show(from, to);
    setBrush(rows, name, (index) => isKnown(column[index]) && column[index] >= first && column[index] <= last);
  });
  view.redraw.push(() => view.brushes[name] || mark.setAttribute("visibility", "hidden"));
  const beyond = (below.rows || above.rows) ? ` ${whole(below.rows)} rows lie below the axis and ${whole(above.rows)} above.` : "";
  const entries = [["all rows", "var(--pale)"], ["taken", "var(--taken)"], ...(counts.shuffled ? [["pairs shuffled on purpose", "var(--set-aside)"]] : [])];
  const noCut = limits.length ? "" : " No cut is made here.";
  return el("figure", {}, el("b", {}, title), drawing, legend(entries), el("figcaption", {}, `Drag over it to list rows; tap to clear.${noCut}${beyond}`));
}

// A scatter of all rows of the page. `shadeOf(index)` is a colour, or null for a row that is not drawn.
function plane(rows, { name, title, xs, ys, shadeOf, caption, entries, xLabel, yLabel, isMap, order }) {
  const canvas = el("canvas", { class: "brush", role: "img", "aria-label": title, style: `aspect-ratio:${isMap ? "4 / 3" : "3 / 1.35"}` });
  const indices = order.filter((index) => isKnown(xs[index]) && isKnown(ys[index]));
  const [low, high] = extent(xs, indices), [bottom, top] = extent(ys, indices);
  const margin = xLabel ? [52, 30] : [10, 10];
  let dragged = null;
  const box = () => ({ width: canvas.clientWidth, height: canvas.clientHeight });
  const px = (value, width) => margin[0] + ((value - low) / (high - low || 1)) * (width - margin[0] - 10);
  const py = (value, height) => height - margin[1] - ((value - bottom) / (top - bottom || 1)) * (height - margin[1] - 10);
  const draw = () => {
    const { width, height } = box();
    if (!width) return;
    const scale = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = width * scale; canvas.height = height * scale;
    pen.scale(scale, scale);
    if (xLabel) drawAxes(pen, width, height);
    const radius = indices.length > 6000 ? 1.3 : 2.2;
    for (const pass of [0, 1]) for (const index of indices) {
      if (view.passes[index] !== pass) continue;
      const shade = shadeOf(index);
      if (!shade) continue;
      pen.fillStyle = shade;
      pen.globalAlpha = pass ? 0.85 : 0.1;
      pen.beginPath(); pen.arc(px(xs[index], width), py(ys[index], height), radius, 0, 7); pen.fill();
    }
    pen.globalAlpha = 1;
    if (dragged) { pen.strokeStyle = colour("ink"); pen.setLineDash([4, 3]); pen.strokeRect(dragged[0][0] * width, dragged[0][1] * height, (dragged[1][0] - dragged[0][0]) * width, (dragged[1][1] - dragged[0][1]) * height); }
  };
  const drawAxes = (pen, width, height) => {
    pen.fillStyle = colour("soft"); pen.strokeStyle = colour("line"); pen.font = "12px system-ui, sans-serif";
    for (const tick of ticks(bottom, top, 5)) { pen.textAlign = "right"; pen.fillText(short(tick), margin[0] - 6, py(tick, height) + 4); pen.beginPath(); pen.moveTo(margin[0], py(tick, height)); pen.lineTo(width - 10, py(tick, height)); pen.stroke(); }
    for (const tick of logarithmicTicks(low, high)) { pen.textAlign = "center"; pen.fillText(short(tick), px(Math.log10(tick), width), height - 10); }
  };
  const near = (index, from, to) => {
    const { width, height } = box();
    const x = px(xs[index], width) / width, y = py(ys[index], height) / height;
    if (from === to) return Math.hypot((x - from[0]) * width, (y - from[1]) * height) < 14;
    return x >= Math.min(from[0], to[0]) && x <= Math.max(from[0], to[0]) && y >= Math.min(from[1], to[1]) && y <= Math.max(from[1], to[1]);
  };
  onDrag(canvas, (from, to) => { dragged = [from, to]; draw(); }, (from, to) => {
    const isTap = Math.hypot(from[0] - to[0], from[1] - to[1]) < 0.02;
    dragged = isTap ? null : [from, to];
    const inside = new Set(indices.filter((index) => near(index, from, isTap ? from : to)));
    setBrush(rows, name, inside.size ? (index) => inside.has(index) : null);
  });
  view.redraw.push(() => { if (!view.brushes[name]) dragged = null; draw(); });
  new ResizeObserver(draw).observe(canvas);
  return el("figure", {}, el("b", {}, title), canvas, legend(entries), el("figcaption", {}, caption));
}

function extent(values, indices) {
  let low = Infinity, high = -Infinity;
  for (const index of indices) { low = Math.min(low, values[index]); high = Math.max(high, values[index]); }
  return [low, high];
}

// Rows behind first: those taken lie on top.
function drawingOrder(rows, isFront) {
  const every = rows.id.map((_, index) => index);
  return [...every.filter((index) => !isFront(index)), ...every.filter(isFront)];
}

function maps(rows) {
  const isTaken = (index) => rows.state[index] === 0, isDrawn = (index) => rows.random[index] === 1;
  const byCluster = rows.cluster.some(isKnown);
  let mode = "state";
  const shades = () => STATE_COLOURS.map(colour);
  let current = shades();
  const shadeOf = (index) => (mode === "cluster" && isKnown(rows.cluster[index]) ? clusterColour(rows.cluster[index]) : current[rows.state[index]]);
  view.redraw.unshift(() => { current = shades(); });
  const chooser = byCluster && el("div", { class: "controls" }, el("label", {}, "Colour of the map: ",
    el("select", { change: (event) => { mode = event.target.value; refresh(rows); } }, el("option", { value: "state" }, "taken or why not"), el("option", { value: "cluster" }, "cluster"))));
  const states = rows.states.map((name, index) => [name, `var(--${STATE_COLOURS[index]})`]).filter((_, index) => rows.state.includes(index));
  const share = rows.variance ? ` The two axes have ${percent(rows.variance[0] + rows.variance[1])} of the variance.` : "";
  const shared = { rows, xs: rows.x, ys: rows.y, isMap: true };
  return el("div", {}, chooser || null, el("div", { class: "pair" },
    plane(rows, { ...shared, name: "map", title: "This selection", shadeOf, entries: states, order: drawingOrder(rows, isTaken),
      caption: `Embeddings of the instructions, first two principal components.${share} Near on the map need not be similar. Drag or tap to list rows.` }),
    plane(rows, { ...shared, name: "random", title: "A random draw of as many eligible rows", order: drawingOrder(rows, isDrawn),
      shadeOf: (index) => (isDrawn(index) ? current[0] : current[1]),
      entries: [["drawn", "var(--taken)"], ["not drawn", "var(--not-taken)"]], caption: "The same rows at the same places, taken as select.strategy random takes them." })));
}

function lengths(rows) {
  const logs = rows.tokens.map((count) => (isKnown(count) && count > 0 ? Math.log10(count) : null));
  const correlation = data.selection.report.ifd_length_correlation;
  const edges = data.selection.report.histograms.ifd.edges, most = edges[edges.length - 1];
  const ys = rows.ifd.map((value) => (isKnown(value) && value <= most ? value : null));
  const beyond = rows.ifd.filter((value) => isKnown(value) && value > most).length;
  let current = STATE_COLOURS.map(colour);
  view.redraw.unshift(() => { current = STATE_COLOURS.map(colour); });
  return plane(rows, { name: "length", title: "Length of the answer (tokens, logarithmic) against IFD", xs: logs, ys, xLabel: "tokens", yLabel: "IFD",
    shadeOf: (index) => current[rows.state[index]], order: drawingOrder(rows, (index) => rows.state[index] === 0),
    entries: rows.states.map((name, index) => [name, `var(--${STATE_COLOURS[index]})`]).filter((_, index) => rows.state.includes(index)),
    caption: `${isKnown(correlation) ? `Rank correlation ${fixed(correlation, 2)}. ` : ""}${whole(beyond)} rows with an IFD above ${short(most)} are not drawn.` });
}

function rowList(rows) {
  const place = el("div", { "aria-live": "polite" });
  const draw = () => {
    const found = [];
    view.passes.forEach((passes, index) => passes && found.push(index));
    const counts = found.reduce((sum, index) => sum + (rows.state[index] === 0), 0);
    const head = isFiltered() ? `${whole(found.length)} rows of this page are brushed, ${whole(counts)} of them taken` : `All ${whole(found.length)} rows of this page; drag over a figure to choose some`;
    const lines = found.slice(0, view.shown).flatMap((index) => rowLines(rows, index, draw));
    place.replaceChildren(el("p", {}, head),
      table(["row", "outcome", "IFD", "pmi", "answer tokens", "cluster"], lines),
      found.length > view.shown ? el("button", { class: "more", click: () => { view.shown += PAGE_OF_ROWS; draw(); } }, `Show ${Math.min(PAGE_OF_ROWS, found.length - view.shown)} more`) : "");
  };
  view.redraw.push(draw);
  return place;
}

function rowLines(rows, index, draw) {
  const id = rows.id[index], isOpen = view.open === id;
  const button = el("button", { class: "link", "aria-expanded": isOpen, click: () => { view.open = isOpen ? null : id; draw(); } }, id);
  const line = [button, rows.states[rows.state[index]], decimals(rows.ifd[index], 4), decimals(rows.pmi[index], 4), rows.tokens ? whole(rows.tokens[index]) : "–", isKnown(rows.cluster[index]) ? `${rows.cluster[index]}` : "–"];
  const made = [el("tr", {}, line.map((value) => el("td", {}, value)))];
  if (isOpen) made.push(el("tr", {}, el("td", { colspan: 6 }, rowDetails(rows, index))));
  return made;
}

function rowDetails(rows, index) {
  const id = rows.id[index], text = rows.texts[id];
  const explained = reason(rows, index);
  const more = `For its place in its cluster run: codetune select --explain ${id}`;
  if (!text) return el("div", {}, el("p", {}, explained), el("p", { class: "soft" }, `The texts of ${whole(Object.keys(rows.texts).length)} rows are on this page, and not that of this one. ${more}`));
  return el("div", {}, el("p", {}, explained), el("p", { class: "soft" }, more), el("b", {}, "Instruction"), textBlock(text[0]), el("b", {}, "Answer"), textBlock(text[1]), neighbours(rows, id));
}

function neighbours(rows, id) {
  const found = (rows.neighbours || {})[id];
  if (!found || !found.length) return null;
  const open = (index) => { view.open = rows.id[index]; setBrush(rows, "row", (each) => each === index || rows.id[each] === id); };
  return el("div", {}, el("b", {}, "Nearest rows of this page, by the cosine of the embeddings"), found.map(([index, cosine]) => {
    const text = rows.texts[rows.id[index]];
    return el("div", {}, el("button", { class: "link", click: () => open(index) }, rows.id[index]), ` ${fixed(cosine, 3)}, ${rows.states[rows.state[index]]}${text ? `: ${text[0][0].slice(0, 160)}` : ""}`);
  }));
}

function reason(rows, index) {
  const why = rows.why[index], { report, rule } = data.selection;
  if (!isKnown(why)) return "The selection does not know this row.";
  const outcome = rows.states[rows.state[index]];
  if (outcome === "taken") return `Taken: ${why}. The rule (select.strategy ${report.strategy}): ${rule}.`;
  if (why !== "not taken") return `Not taken: ${why}.`;
  const cluster = (report.clusters || []).find((each) => isKnown(each.cluster) && each.cluster === rows.cluster[index]);
  const others = cluster ? ` Of the ${whole(cluster.eligible)} eligible rows of cluster ${cluster.cluster}, ${whole(cluster.taken)} are taken.` : "";
  return `Eligible, and not taken by the rule (select.strategy ${report.strategy}): ${rule}.${others}`;
}

function choosers(rows) {
  const choose = (label, key, options) => el("label", {}, `${label}: `, el("select", { "data-key": key, change: (event) => { view[key] = event.target.value; view.shown = PAGE_OF_ROWS; refresh(rows); } },
    el("option", { value: "" }, "all"), options.map(([value, name]) => el("option", { value }, name))));
  const clusters = [...new Set(rows.cluster.filter(isKnown))].sort((one, other) => one - other);
  const states = rows.states.map((name, index) => [index, name]).filter(([index]) => rows.state.includes(index));
  const made = el("div", { class: "controls" }, choose("Outcome", "state", states), clusters.length ? choose("Cluster", "cluster", clusters.map((each) => [each, `${each}`])) : null,
    el("button", { id: "clear", click: () => { Object.assign(view, { brushes: {}, state: "", cluster: "", shown: PAGE_OF_ROWS }); made.querySelectorAll("select").forEach((each) => { each.value = ""; }); refresh(rows); } }, "Clear all"));
  return made;
}

function selection(place, { report, rule, refused, data_sets: dataSets, rows }) {
  for (const warning of report.warnings || []) place.append(el("p", { class: "warn" }, `${warning}.`));
  place.append(el("p", {}, `select.strategy ${report.strategy} took ${whole(report.taken)} of ${whole(report.eligible)} eligible rows (${rule}); ${whole(report.rows)} were read.`));
  for (const line of dataSets) place.append(el("p", {}, line));
  const reasons = { ...report.refused, ...refused };
  const lost = Object.keys(reasons).length ? table(["reason", "rows"], Object.entries(reasons).sort((one, other) => other[1] - one[1]).map(([reason, count]) => [reason, whole(count)]), [1]) : el("p", {}, "None.");
  place.append(el("div", { class: "pair" }, el("div", {}, el("h3", {}, "Rows that could not be taken"), lost), el("div", {}, el("h3", {}, "What the selection did"), table(["figure", "value"], figures(report), [1]))));
  const drawn = report.histograms || {};
  place.append(el("h3", {}, "IFD and pmi"));
  const pair = el("div", { class: "pair" });
  if (drawn.ifd) pair.append(histogram(rows, "ifd", "IFD (instruction-following difficulty)", drawn.ifd));
  if (drawn.pmi) pair.append(histogram(rows, "pmi", "pmi (nats that the instruction helps)", drawn.pmi));
  place.append(pair.children.length ? pair : el("p", { class: "soft" }, `select.strategy ${report.strategy} reads no scores, so there are no histograms.`));
  place.append(el("h3", {}, "The rows as a map"));
  place.append(rows.x ? maps(rows) : el("p", { class: "soft" }, `select.strategy ${report.strategy} reads no embeddings, so there is no map.`));
  if (rows.tokens && rows.ifd.some(isKnown)) place.append(lengths(rows));
  place.append(el("h3", { id: "rows" }, "Rows"));
  if (rows.id.length < rows.of_rows) place.append(el("p", { class: "soft" }, `${whole(rows.id.length)} of ${whole(rows.of_rows)} rows are on this page: those with a place on the map, or a sample of them. Histograms and tables count all rows.`));
  place.append(choosers(rows), rowList(rows));
  if (report.clusters && report.clusters.length && isKnown(report.clusters[0].cluster)) place.append(el("h3", {}, "Clusters"), clusterTable(report.clusters));
  refresh(rows);
}

function figures(report) {
  const found = [
    ["rank correlation of IFD with the length of the answer", decimals(report.ifd_length_correlation, 2)],
    ["cluster shares moved (total variation)", percent(report.cluster_distance)],
    ["diversity (NovelSum)", decimals(report.novelsum, 4)],
    ["diversity of a random draw", decimals(report.novelsum_of_random_draw, 4)],
    ["rows in common with a random draw", percent(report.random_overlap)],
    ["rows in common by chance", percent(report.random_overlap_by_chance)],
  ];
  if (report.cost) found.push(["tokens taken (estimated)", `${whole(report.cost.tokens_taken)} of ${whole(report.cost.tokens)}`],
    ...Object.entries(report.cost.saved_share).map(([epochs, share]) => [`cost saved of ${epochs} ${epochs === "1" ? "epoch" : "epochs"}, scoring included`, percent(share)]));
  if (report.instructions_cut) found.push(["instructions cut by embed.model", `${whole(report.instructions_cut.cut)} of ${whole(report.instructions_cut.rows)}`]);
  return found.filter(([, value]) => value !== "–");
}

function clusterTable(clusters) {
  const reasons = (found) => Object.entries(found || {}).map(([reason, count]) => `${reason}: ${whole(count)}`).join(", ");
  return table(["cluster", "rows", "set aside", "eligible", "taken", "IFD quantiles (0, 25, 50, 75, 100 %)", "set aside because"],
    clusters.map((each) => [`${each.cluster}`, whole(each.rows), whole(each.set_aside), whole(each.eligible), whole(each.taken),
      each.ifd_quantiles ? each.ifd_quantiles.map((value) => fixed(value, 2)).join("  ") : "–", reasons(each.reasons)]), [0, 1, 2, 3, 4]);
}

// ---- training

function fact(value) {
  if (typeof value !== "number") return `${value}`;
  return Number.isInteger(value) ? whole(value) : value.toLocaleString("en", { maximumSignificantDigits: 6 });
}

function curve(title, lines, series) {
  const width = 560, height = 230, left = 56, bottom = 28, top = 12;
  const known = series.map(([name, key, shade]) => [name, shade, lines.filter((line) => isKnown(line[key])).map((line) => [line.step, line[key]])]).filter(([, , values]) => values.length);
  if (!known.length) return null;
  const every = known.flatMap(([, , values]) => values);
  const [low, high] = [Math.min(...every.map((each) => each[0])), Math.max(...every.map((each) => each[0]))];
  const [least, most] = [Math.min(0, ...every.map((each) => each[1])), Math.max(...every.map((each) => each[1]))];
  const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - 12);
  const y = (value) => height - bottom - ((value - least) / (most - least || 1)) * (height - bottom - top);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of ticks(least, most, 4)) drawing.append(shape("line", { class: "axis", x1: left, x2: width - 12, y1: y(tick), y2: y(tick) }), shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  for (const tick of ticks(low, high, 5)) drawing.append(shape("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, short(tick)));
  for (const [, shade, values] of known) {
    drawing.append(shape("path", { fill: "none", "stroke-width": 2, style: `stroke:var(--${shade})`, d: values.map(([step, value], index) => `${index ? "L" : "M"}${x(step)} ${y(value)}`).join("") }));
    if (values.length <= 40) values.forEach(([step, value]) => drawing.append(shape("circle", { cx: x(step), cy: y(value), r: 3.5, style: `fill:var(--${shade})` }, shape("title", {}, `step ${whole(step)}: ${+value.toPrecision(4)}`))));
  }
  const last = known.map(([name, , values]) => `${name} at the end ${+values[values.length - 1][1].toPrecision(4)}`).join("; ");
  return el("figure", {}, el("b", {}, `${title}, by step`), drawing, known.length > 1 ? legend(known.map(([name, shade]) => [name, `var(--${shade})`])) : null, el("figcaption", {}, `${last}.`));
}

function training(place, { lines, of_lines: ofLines, is_finished: isFinished, facts }) {
  if (!isFinished) place.append(el("p", { class: "warn" }, "This training is not finished. Run: codetune train"));
  if (lines.length < ofLines) place.append(el("p", { class: "soft" }, `The curves have ${whole(lines.length)} of ${whole(ofLines)} lines of train/metrics.jsonl.`));
  const inGigabytes = lines.map((line) => ({ ...line, peak_memory_gigabytes: isKnown(line.peak_memory_bytes) ? line.peak_memory_bytes / 1e9 : null }));
  const made = [
    curve("Loss (nats a token)", lines, [["training loss", "loss", "taken"], ["loss on held-out rows", "holdout_loss", "mismatched"]]),
    lines.some((line) => isKnown(line["pass@1"])) ? curve("pass@1 on the tasks of train.tasks (share)", lines, [["pass@1", "pass@1", "taken"]]) : null,
    curve("Tokens a second", lines, [["tokens a second", "tokens_per_second", "taken"]]),
    curve("Peak memory of a GPU (GB)", inGigabytes, [["peak memory", "peak_memory_gigabytes", "taken"]]),
    lines.some((line) => line.padding_rate > 0) ? curve("Padding (share of the tokens computed)", lines, [["padding", "padding_rate", "taken"]]) : null,
  ];
  place.append(el("div", { class: "pair" }, made));
  if (!made[0]) place.append(el("p", { class: "soft" }, "train/metrics.jsonl has no lines yet, so there are no curves."));
  if (made[0] && !lines.some((line) => isKnown(line.holdout_loss))) place.append(el("p", { class: "soft" }, "No rows are held out (train.holdout is 0), so there is no held-out loss."));
  if (made[0] && !made[3]) place.append(el("p", { class: "soft" }, "The memory was not measured: there was no GPU."));
  const shown = Object.entries(facts).map(([name, value]) => [name.replaceAll("_", " "), isKnown(value) ? fact(value) : "not measured"]);
  if (made[0]) place.append(el("p", { class: "soft" }, "Each point of a curve of the training is the mean of the steps since the point before; the last loss among all figures is that of the last step alone."));
  if (shown.length) place.append(el("details", {}, el("summary", {}, "All figures of the training"), table(["figure", "value"], shown)));
}

// ---- benchmarks

function benchmarks(place, { found }) {
  for (const each of found) {
    place.append(el("h3", {}, `${each.name}: pass@k`));
    const sizes = Object.keys(each.reports[0].pass_at_k.base);
    const figure = (report, suite, k) => (isKnown(report.pass_at_k[suite][k]) ? `${percent(report.pass_at_k[suite][k])} (${interval(report.interval_95[suite][k])})` : "–");
    place.append(table(["model", "tasks", ...sizes.flatMap((k) => [`${k}, base tests`, `${k}, base and plus tests`])],
      each.reports.map((report) => [report.path ? `${report.model} (${report.path})` : report.model, `${report.tasks} of ${report.tasks_in_benchmark}`, ...sizes.flatMap((k) => ["base", "plus"].map((suite) => figure(report, suite, k)))])));
    place.append(el("p", { class: "soft" }, `In brackets the 95 % interval. One task is worth ${fixed(100 / each.reports[0].tasks, 2)} points. Programs ran in the sandbox tier ${each.reports[0].sandbox}.`), forest(each));
    for (const pair of each.comparisons) place.append(el("p", {}, `${pair.models[1]} against ${pair.models[0]}, ${whole(pair.tasks)} tasks in common. Base tests: ${difference(pair.base)}. Base and plus tests: ${difference(pair.plus)}.`));
    if (!each.comparisons.length) place.append(el("p", { class: "soft" }, "One model is evaluated here, so there is nothing to compare. Run: codetune run"));
    place.append(flips(each));
  }
}

function forest(each) {
  const k = Object.keys(each.reports[0].pass_at_k.plus)[0];
  const entries = each.reports.map((report) => { const [low, high] = report.interval_95.plus[k]; return { name: report.model, mean: report.pass_at_k.plus[k], low, high, is_control: report.model !== "tuned" }; });
  return intervals(`${k}, base and plus tests, with 95 % intervals`, entries, false);
}

// For each entry its name, and below it its mean and its interval. Shares have an axis from 0 to 100 %.
function intervals(title, entries, isLoss) {
  const width = 560, row = 40, margin = 36, height = entries.length * row + 34;
  const low = isLoss ? Math.min(...entries.map((each) => each.low)) : 0, high = isLoss ? Math.max(...entries.map((each) => each.high)) : 1;
  const x = (value) => margin + ((value - low) / (high - low || 1)) * (width - 2 * margin);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const tick of isLoss ? ticks(low, high, 4) : [0, 0.25, 0.5, 0.75, 1])
    drawing.append(shape("line", { class: "axis", x1: x(tick), x2: x(tick), y1: 4, y2: height - 26 }), shape("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, amount(tick, isLoss)));
  entries.forEach((each, index) => {
    const y = 32 + index * row, shade = `var(--${each.is_control ? "not-taken" : "taken"})`;
    drawing.append(shape("g", {}, shape("title", {}, `${each.name}: ${estimate(each, isLoss)}`),
      shape("text", { x: 0, y: y - 10 }, each.name),
      shape("line", { x1: x(each.low), x2: x(each.high), y1: y, y2: y, "stroke-width": 3, style: `stroke:${shade}` }), shape("circle", { cx: x(each.mean), cy: y, r: 6, style: `fill:${shade}` })));
  });
  return el("figure", { style: "max-width:640px" }, el("b", {}, title), drawing);
}

function flips(each) {
  const place = el("div"), shown = el("div", { "aria-live": "polite" });
  const passed = (report, task) => { const found = report.verdicts[task]; return found ? found.filter((verdict) => verdict.plus === "pass").length / found.length : null; };
  const open = (task) => shown.replaceChildren(programs(each, task));
  const buttons = (tasks) => tasks.map((task) => [el("button", { class: "link task", click: () => open(task) }, task), " "]);
  for (const pair of each.comparisons) {
    const { won, lost } = pair.plus;
    place.append(el("p", {}, el("b", { class: "good" }, `${pair.models[1]} solves ${whole(won.length)} more: `), buttons(won)), el("p", {}, el("b", { class: "bad" }, `and loses ${whole(lost.length)}: `), buttons(lost)));
  }
  const all = el("select", { change: (event) => event.target.value && open(event.target.value) }, el("option", { value: "" }, "choose"), each.tasks.map((task) =>
    el("option", { value: task }, `${task}: ${each.reports.map((report) => { const share = passed(report, task); return `${report.model} ${share === null ? "not judged" : share === 1 ? "passes" : share === 0 ? "fails" : percent(share)}`; }).join(", ")}`)));
  const judged = new Set(each.reports.flatMap((report) => Object.keys(report.verdicts))).size;
  const note = each.tasks.length < judged ? el("p", { class: "soft" }, `The programs of ${whole(each.tasks.length)} of ${whole(judged)} tasks are on this page, those that models differ on first.`) : null;
  place.append(el("div", { class: "controls" }, el("label", {}, "Any task: ", all)), shown);
  if (note) place.append(note);
  return place;
}

function programs(each, task) {
  return el("div", {}, el("h3", {}, task), el("div", { class: "pair" }, each.reports.map((report) => {
    const verdicts = report.verdicts[task] || [], text = (each.programs[report.model] || {})[task], failure = ((report.failures || {})[task] || [])[0];
    const outcome = verdicts.length ? `base tests: ${verdicts[0].base}; base and plus tests: ${verdicts[0].plus}` : "not judged";
    const several = verdicts.length > 1 ? ` (the first of ${verdicts.length} samples)` : "";
    return el("div", {}, el("b", {}, report.model), el("span", { class: verdicts.length && verdicts[0].plus === "pass" ? "good" : "bad" }, ` ${outcome}`), el("span", { class: "soft" }, several),
      text ? textBlock(text) : el("p", { class: "soft" }, "Its program is not on this page."), failure ? el("p", { class: "soft" }, `What failed first: ${failure}`) : null);
  })));
}

function likelihood(place, { reports, comparisons }) {
  place.append(table(["model", "rows", "tokens", "nats a token (95 % interval)"], reports.map((each) => [each.model, whole(each.rows), whole(each.tokens), `${fixed(each.nats_per_token, 4)} (${each.interval_95.map((end) => fixed(end, 4)).join(" to ")})`]), [1, 2]));
  const nats = (value) => signed(value, 4);
  for (const each of comparisons) place.append(el("p", {}, `${each.models[1]} against ${each.models[0]}: ${nats(each.difference)} nats a token (95 %: ${each.interval_95.map(nats).join(" to ")}; p = ${significant(each.p_value, 2)}), ${each.told_apart ? "told apart" : "not told apart"}. Less is better.`));
}

// ---- the sweep

const CURVE_COLOURS = ["taken", "mismatched", "set-aside", "good", "no-score", "ink"];
const amount = (value, isLoss) => (isLoss ? `${+value.toPrecision(4)}` : `${+(100 * value).toPrecision(3)} %`);
const measured = (value, isLoss) => (isLoss ? fixed(value, 4) : percent(value));
const estimate = ({ mean, low, high }, isLoss) => `${measured(mean, isLoss)} (${measured(low, isLoss)} to ${measured(high, isLoss)})`;

function sweep(place, { seeds, rate, outcomes, variants }) {
  place.append(el("p", {}, `The mean over ${whole(seeds)} ${seeds === 1 ? "seed" : "seeds"}, with 95 % intervals over tasks and seeds, from sweep.json of the sweep of this project. Random draws are as large as the variant beside which they stand. To repeat it, give codetune sweep the same options again.`));
  for (const each of outcomes) {
    place.append(el("h3", {}, each.title), el("div", { class: "pair" }, each.curves.length ? rates(each, rate) : null, intervals("Every variant, with 95 % intervals", each.figures, each.is_loss)));
  }
  place.append(el("h3", {}, "Variants"), table(["variant", "rows", "tokens", "seconds of training", "seconds in all", ...outcomes.map((each) => each.title)],
    variants.map((each) => [each.name, whole(each.rows), whole(each.tokens), decimals(each.training_seconds, 1), decimals(each.total_seconds, 1), ...outcomes.map((outcome) => estimate(each.figures[outcome.name], outcome.is_loss))]), [1, 2, 3, 4]));
  const rows = variants.flatMap((each) => Object.entries(each.against).flatMap(([control, found]) => outcomes.map((outcome) => against(each, control, outcome, found[outcome.name]))));
  if (rows.length) place.append(el("h3", {}, "Against the controls"), table(["variant", "control", "outcome", "difference (95 % interval)", ""], rows));
}

function against(variant, control, outcome, found) {
  const change = (value) => (outcome.is_loss ? signed(value, 4) : points(value));
  return [variant.name, control, outcome.title, `${change(found.mean)}${outcome.is_loss ? "" : " points"} (${change(found.low)} to ${change(found.high)})`, found.told_apart ? "told apart" : "not told apart"];
}

const referenceShade = (each) => `var(--${each.name === "all" ? "soft" : "ink"})`;

// An outcome over the sampling rate; what was trained on all rows is a line with its interval as a band.
function rates({ title, is_loss: isLoss, curves, references }, rate) {
  const width = 560, height = 300, left = 64, bottom = 46, top = 12;
  const found = curves.flatMap((each) => each.points), ends = [...found, ...references];
  const [low, high] = [Math.min(...found.map((each) => each.at)), Math.max(...found.map((each) => each.at))];
  const [least, most] = [Math.min(...ends.map((each) => each.low)), Math.max(...ends.map((each) => each.high))];
  const x = (value) => left + 10 + ((value - low) / (high - low || 1)) * (width - left - 32);
  const y = (value) => height - bottom - ((value - least) / (most - least || 1)) * (height - bottom - top);
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, by ${rate}` });
  for (const each of references) drawing.append(shape("rect", { x: left, width: width - left - 12, y: y(each.high), height: y(each.low) - y(each.high), style: "fill:var(--pale)", opacity: 0.5 }, shape("title", {}, `${each.name}: ${estimate(each, isLoss)}`)),
    shape("line", { x1: left, x2: width - 12, y1: y(each.mean), y2: y(each.mean), "stroke-width": 2, "stroke-dasharray": each.name === "all" ? "2 4" : "9 4 2 4", style: `stroke:${referenceShade(each)}` }));
  for (const tick of ticks(least, most, 5)) drawing.append(shape("line", { class: "axis", x1: left, x2: width - 12, y1: y(tick), y2: y(tick) }), shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, amount(tick, isLoss)));
  for (const tick of ticks(low, high, 6)) drawing.append(shape("text", { x: x(tick), y: height - 26, "text-anchor": "middle" }, short(tick)));
  drawing.append(shape("text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, rate));
  const shades = curves.map((each, index) => `var(--${each.is_random ? "not-taken" : CURVE_COLOURS[index % CURVE_COLOURS.length]})`);
  curves.forEach((each, index) => {
    const style = `stroke:${shades[index]}`;
    drawing.append(shape("path", { fill: "none", "stroke-width": 2, "stroke-dasharray": each.is_random ? "6 4" : null, style, d: each.points.map((point, at) => `${at ? "L" : "M"}${x(point.at)} ${y(point.mean)}`).join("") }));
    for (const point of each.points) drawing.append(shape("g", {}, shape("title", {}, `${each.name} at ${point.at}: ${estimate(point, isLoss)}`),
      shape("line", { x1: x(point.at), x2: x(point.at), y1: y(point.low), y2: y(point.high), "stroke-width": 1.5, style }), shape("circle", { cx: x(point.at), cy: y(point.mean), r: 4, style: `fill:${shades[index]}` })));
  });
  const entries = [...curves.map((each, index) => [each.name, shades[index]]), ...references.map((each) => [each.name === "all" ? "all rows, with its interval" : `${each.name}, with its interval`, referenceShade(each)])];
  return el("figure", {}, el("b", {}, `By ${rate}`), drawing, legend(entries));
}

// ---- where it comes from

function provenance(place, { manifests, settings, overrides }) {
  place.append(table(["stage", "state", ""], data.status.map((line) => [line.stage, line.state, line.detail])));
  place.append(el("h3", {}, "How to repeat it"), el("p", {}, "Save the settings below as codetune.yaml (JSON is YAML) beside the same data set and base model, then:"), el("pre", {}, "codetune run\ncodetune report"),
    el("p", { class: "soft" }, `Digests of the inputs tell whether they are the same.${Object.keys(overrides).length ? ` By flag: ${Object.entries(overrides).map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(", ")}.` : ""}`),
    el("details", {}, el("summary", {}, "All settings"), el("pre", { id: "settings" }, JSON.stringify(settings, null, 2))));
  const pairs = (found) => Object.entries(found || {}).map(([name, value]) => el("div", {}, `${name}: `, el("code", { class: "digest" }, `${value}`.slice(0, 16))));
  const named = (found) => Object.entries(found || {}).map(([name, value]) => el("div", {}, `${name}: ${value}`));
  place.append(el("h3", {}, "Artefacts"), table(["artefact", "made", "codetune", "seconds", "rows", "SHA-256", "made from", "named"],
    manifests.map((each) => [each.name, each.made, each.version, decimals(each.seconds, 1), whole(each.rows), el("code", {}, each.digest.slice(0, 16)), el("div", {}, pairs(each.inputs)), el("div", {}, named({ ...each.names, ...each.overrides }))]), [3, 4]));
}

headline();
const PARTS = [["selection", "Selection", selection], ["training", "Training", training], ["benchmarks", "Benchmarks", benchmarks], ["likelihood", "Held-out likelihood", likelihood], ["sweep", "Sweep", sweep], ["provenance", "Provenance", provenance]].filter(([id]) => data[id]);
page.append(el("nav", {}, PARTS.map(([id, title]) => el("a", { href: `#${id}` }, title))));
for (const [id, title, draw] of PARTS) section(id, title, data[id], draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data.selection.rows && refresh(data.selection.rows));
