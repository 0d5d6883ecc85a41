"use strict";
// Sorting, the chart and the budget. The rest of the page works without this script.

const data = JSON.parse(document.getElementById("data").textContent);
const short = (value) => String(Number(Number(value).toPrecision(5)));
const html = (name, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
};
const svg = (name, fields = {}, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [field, value] of Object.entries(fields)) made.setAttribute(field, value);
  made.textContent = text;
  return made;
};

// Tables: a click on a column name sorts by it, a second click reverses the order. Empty cells stay last.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, place) => row.cells[place].querySelector("data")?.value ?? row.cells[place].textContent.trim();
  const sort = (place) => {
    const down = heads[place].getAttribute("aria-sort") === "ascending";
    const numeric = heads[place].classList.contains("n");
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [value(one, place), value(other, place)];
      if (!a || !b) return Boolean(b) - Boolean(a);
      return (numeric ? a - b : a.localeCompare(b, "en", { numeric: true })) * (down ? -1 : 1);
    });
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[place].setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, place) => {
    const button = html("button", { type: "button", textContent: head.textContent, onclick: () => sort(place) });
    head.replaceChildren(button);
  });
}

// The chart: points are the rows of a file, and lines join the milestones of one seed of one run.

const names = [...new Set(data.points.map((point) => point.series))];
const colour = (name) => `c${(name === "MaskDiT" ? 0 : name === "DiT" ? 1 : 2 + names.indexOf(name)) % 6}`;
const SHAPES = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5.5l5 9h-10z", "M0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z", "M0 5.5l5-9h-10z"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const shape = (point) => ({
  d: SHAPES[names.indexOf(point.series) % SHAPES.length],
  class: `mark ${colour(point.series)}${point.phase === "finetune" ? " hollow" : ""}`,
});
const spent = (point) => point.x[data.hours[0]] / data.hours[1];
const told = (point, axis) => {
  const [, , unit] = data.axes.find(([name]) => name === axis);
  return `${point.series}, ${point.eval}${point.phase ? `, ${point.phase}` : ""}: ${data.quality} ${short(point.y)} at ${short(point.x[axis])} ${unit}`;
};

class Scale {
  constructor(values, log, from, to, zero) {
    this.log = log && values.every((value) => value > 0);
    const map = this.log ? Math.log10 : Number;
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const room = zero || least < most / 4 ? most * 0.05 || 1 : (most - least) * 0.08 || most * 0.05;
    this.low = this.log ? least / 1.15 : zero || least < most / 4 ? 0 : least - room;
    this.high = this.log ? most * 1.15 : most + room;
    const [start, end] = [map(this.low), map(this.high)];
    this.at = (value) => from + ((map(value) - start) / (end - start)) * (to - from);
  }
  ticks(most) {
    const ticks = [];
    if (this.log) {
      const steps = this.high / this.low > 300 ? [1] : [1, 2, 5];
      for (let power = Math.floor(Math.log10(this.low)); power <= Math.log10(this.high); power++)
        for (const step of steps) ticks.push(step * 10 ** power);
      const inside = ticks.filter((tick) => tick >= this.low && tick <= this.high);
      return inside.filter((_, place) => place % Math.ceil(inside.length / most) === 0);
    }
    const rough = (this.high - this.low) / most;
    const base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((factor) => factor * base >= rough) * base;
    for (let place = Math.ceil(this.low / step); place * step <= this.high; place++) ticks.push(place * step);
    return ticks;
  }
}

function chart(place) {
  const axis = html("select", { id: "axis" }, ...data.axes.map(([value, label]) => html("option", { value, textContent: label })));
  const kind = (id) => html("select", { id }, html("option", { value: "linear", textContent: "linear" }), html("option", { value: "log", textContent: "logarithmic" }));
  const [across, up] = [kind("across"), kind("up")];
  const legend = html("ul", { className: "legend" });
  const plot = svg("svg", { class: "plot", tabindex: 0, role: "img", id: "plot" });
  const line = html("p", { className: "told", id: "told" });
  line.setAttribute("aria-live", "polite");
  const hint = "Point at a mark, or use the arrow keys in the chart. A hollow mark is a finetuned checkpoint.";
  for (const name of names) {
    const sample = svg("svg", { width: 34, height: 14, viewBox: "-17 -7 34 14", "aria-hidden": "true" });
    const mine = data.points.filter((point) => point.series === name);
    if (mine.length > 1) sample.append(svg("path", { d: "M-17 0h34", class: `line ${colour(name)}`, "stroke-dasharray": DASHES[names.indexOf(name) % 4], "stroke-width": 2 }));
    sample.append(svg("path", shape({ series: name })));
    legend.append(html("li", {}, sample, name));
  }
  let shown = [];
  let chosen = -1;
  let limit = null;

  const choose = (number) => {
    plot.querySelector(".halo")?.remove();
    chosen = number;
    if (number < 0) return void (line.textContent = hint);
    const { point, x, y } = shown[number];
    plot.append(svg("circle", { class: "halo", cx: x, cy: y, r: 9 }));
    line.textContent = told(point, axis.value);
  };

  const draw = () => {
    const width = Math.max(240, plot.parentElement.clientWidth);
    const height = Math.min(460, Math.max(280, width * 0.55));
    const [left, bottom, top, right] = [52, 44, 26, 14];
    const points = data.points.filter((point) => axis.value in point.x);
    const x = new Scale(points.map((point) => Number(point.x[axis.value])), across.value === "log", left, width - right, true);
    const y = new Scale(points.map((point) => Number(point.y)), up.value === "log", height - bottom, top, false);
    const label = axis.selectedOptions[0].textContent;
    plot.replaceChildren();
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.setAttribute("height", height);
    plot.setAttribute("aria-label", `${data.quality} against ${label}, lower is better. ${points.length} points of ${names.join(", ")}; the table below has the numbers.`);
    for (const tick of x.ticks(width / 85)) {
      plot.append(svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: top, y2: height - bottom }));
      plot.append(svg("text", { class: "tick", x: x.at(tick), y: height - bottom + 17, "text-anchor": "middle" }, short(tick)));
    }
    for (const tick of y.ticks(6)) {
      plot.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y.at(tick), y2: y.at(tick) }));
      plot.append(svg("text", { class: "tick", x: left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    plot.append(svg("text", { class: "title", x: 0, y: 12 }, `${data.quality} (lower is better)`));
    plot.append(svg("text", { class: "title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, label));
    plot.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    if (limit !== null && axis.value === data.hours[0]) {
      const here = x.at(limit * data.hours[1]);
      if (here >= left && here <= width - right) plot.append(svg("line", { class: "limit", x1: here, x2: here, y1: top, y2: height - bottom }));
    }
    const lines = {};
    for (const point of points.filter((each) => each.ours)) (lines[JSON.stringify([point.series, point.seed])] ??= []).push(point);
    for (const [key, line] of Object.entries(lines)) {
      const [name] = JSON.parse(key);
      line.sort((one, other) => one.x[axis.value] - other.x[axis.value]);
      const d = line.map((point, place) => `${place ? "L" : "M"}${x.at(point.x[axis.value])} ${y.at(point.y)}`).join("");
      plot.append(svg("path", { d, class: `line ${colour(name)}`, "stroke-dasharray": DASHES[names.indexOf(name) % 4] }));
    }
    shown = points.map((point) => ({ point, x: x.at(point.x[axis.value]), y: y.at(point.y) }));
    shown.sort((one, other) => one.x - other.x);
    for (const each of shown) {
      const mark = svg("path", { ...shape(each.point), transform: `translate(${each.x} ${each.y})` });
      mark.dataset.eval = each.point.eval;
      mark.dataset.value = each.point.y;
      plot.append(mark);
    }
    choose(-1);
  };

  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined || !shown.length) return;
    event.preventDefault();
    choose(chosen < 0 && step < 0 ? shown.length - 1 : (chosen + step + shown.length) % shown.length);
  });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const far = shown.map((each) => Math.hypot(each.x - event.clientX + box.left, each.y - event.clientY + box.top));
    const near = far.indexOf(Math.min(...far));
    choose(far[near] < 40 ? near : -1);
  });
  for (const control of [axis, across, up]) control.addEventListener("change", draw);
  const labelled = (text, control) => html("label", {}, text, control);
  place.append(html("div", { className: "controls" }, labelled("Against", axis), labelled("x axis", across), labelled("y axis", up)), legend, html("div", {}, plot), line);
  new ResizeObserver(draw).observe(plot.parentElement);
  draw();
  return (hours) => {
    limit = hours;
    if (axis.value === data.hours[0]) draw();
  };
}

// The budget: the quality of each curve at a cost. Between two milestones, a curve is linear in the logarithm of the cost.

function standing(line, hours) {
  const place = line.findLastIndex((point) => spent(point) <= hours * (1 + 1e-9));
  const [from, to] = [line[place], line[place + 1]];
  if (!from || !to) return from && { from, y: Number(from.y) };
  const share = Math.log(hours / spent(from)) / Math.log(spent(to) / spent(from));
  return { from, to, y: from.y * (1 - share) + to.y * share };
}

function winners(hours) {
  const curves = {};
  for (const point of data.points)
    if (point.compared && data.hours[0] in point.x) ((curves[point.series] ??= {})[`seed ${point.seed}`] ??= []).push(point);
  const found = Object.entries(curves).map(([name, lines]) => {
    const seeds = Object.values(lines).map((line) => standing(line.sort((one, other) => spent(one) - spent(other)), hours));
    return { ...seeds[0], name, seeds, y: seeds.reduce((sum, each) => sum + each?.y, 0) / seeds.length };
  });
  return found.filter((each) => Number.isFinite(each.y)).sort((one, other) => one.y - other.y);
}

function inWords(hours) {
  const unit = [0, 1, 2].findIndex((place) => hours * 60 ** place >= 1 || place === 2);
  return `${Number((hours * 60 ** unit).toPrecision(3))} device-${["hours", "minutes", "seconds"][unit]}`;
}

function budget(place, mark) {
  const all = data.points.filter((point) => point.compared && data.hours[0] in point.x).map(spent);
  if (!all.length) return;
  const [low, high] = [Math.min(...all) * 0.8, Math.max(...all)];
  const slider = html("input", { type: "range", id: "slider", min: 0, max: 200, step: 1, value: 200 });
  const [size, winner, rest] = ["size", "winner", "others"].map((id) => html(id === "winner" ? "strong" : "span", { id }));
  const tell = () => {
    const hours = Number(slider.value) === 200 ? high : low * (high / low) ** (slider.value / 200);
    const order = winners(hours);
    const where = ({ from, to }) => (to ? `between ${from.eval} and ${to.eval}` : `${from.eval}, after ${inWords(spent(from))}`);
    const line = (each) => `${data.quality} ${short(each.y)} (${where(each)}${each.seeds.length > 1 ? `; mean of ${each.seeds.length} seeds` : ""})`;
    size.textContent = inWords(hours) + (hours < 1 ? ` (${Number(hours.toPrecision(3))} device-hours)` : "");
    slider.setAttribute("aria-valuetext", size.textContent);
    winner.textContent = order.length ? `${order[0].name} wins: ${line(order[0])}` : "No run reaches a milestone within this budget";
    winner.dataset.eval = order[0]?.from.eval ?? "";
    rest.textContent = order.slice(1).map((each) => `; ${each.name} has ${line(each)}`).join("");
    mark(hours);
  };
  slider.addEventListener("input", tell);
  const output = html("output", {}, winner, rest);
  output.setAttribute("for", "slider");
  const label = html("label", {}, "A budget of ", size);
  label.htmlFor = "slider";
  place.append(html("h3", { textContent: "Which run wins within a budget?" }), label, html("div", { className: "controls" }, slider), output);
  tell();
}

document.querySelectorAll("table").forEach(sortable);
if (data.points.length) budget(document.getElementById("budget"), chart(document.getElementById("chart")));
