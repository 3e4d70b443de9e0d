"use strict";
// Two things that a page without scripts lacks: tables that sort, curves that are read and zoomed.

function number(text) {
  const found = text.replace(/,/g, "").match(/^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
}

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortable(table) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2 || !table.tHead) return;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) head.setAttribute("aria-label", "name");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const empty = !text(a) - !text(b); // what is not known stays below
        return empty || (up ? -1 : 1) * compare(text(a), text(b));
      });
      body.append(...rows);
    });
  });
}

function tickText(value, gap) {
  if (!value) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e13) return String(Number(value.toPrecision(2))).replace("e+", "e");
  for (const [least, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (Math.max(size, gap) >= least) return Number((value / (name === "k" ? 1e3 : least)).toPrecision(4)) + name;
  }
  return value.toFixed(Math.max(0, -Math.floor(Math.log10(gap) + 1e-9)));
}

function ticks(low, high, whole) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let gap = [1, 2, 5, 10].map((n) => n * power).find((one) => one >= rough * 0.8);
  if (whole) gap = Math.max(gap, 1);
  const found = [];
  for (let n = Math.ceil(low / gap); n <= Math.floor(high / gap); n++) found.push([n * gap, gap]);
  return found.length ? found : [[low, gap]];
}

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return step - steps[low] < steps[high] - step ? low : high;
}

function chart(figure) {
  const { domain, lines } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const [plot, area, chosen, cursor] = ["plot", "area", "chosen", "cursor"].map((name) => svg.querySelector("." + name));
  const box = area.getBBox();
  const outputs = [...figure.querySelectorAll(".key output")];
  const at = figure.querySelector(".at output");
  let view = [...domain];
  let from = null;

  const whole = document.createElement("button");
  whole.type = "button";
  whole.className = "whole";
  whole.textContent = "whole run";
  whole.hidden = true;
  whole.addEventListener("click", () => show(domain));
  figure.append(whole);
  figure.classList.add("live");

  const across = (x) => box.x + (box.width * (x - view[0])) / (view[1] - view[0]);
  const stepAt = (event) => {
    const place = svg.getBoundingClientRect();
    const x = ((event.clientX - place.left) * svg.viewBox.baseVal.width) / place.width;
    const share = Math.min(1, Math.max(0, (x - box.x) / box.width));
    return view[0] + share * (view[1] - view[0]);
  };

  function redraw(group, found, move) {
    const old = [...group.children];
    found.forEach(([value, gap], n) => {
      const tick = old[n] || group.appendChild(old[0].cloneNode(true));
      tick.setAttribute("transform", move(value));
      tick.querySelector("text").textContent = tickText(value, gap);
    });
    old.slice(found.length).forEach((tick) => tick.remove());
  }

  function show(next) {
    view = [...next];
    const [x0, x1, y0, y1] = domain;
    const [a, b, c, d] = view;
    const left = (1000 * (a - x0)) / (x1 - x0), top = (1000 * (y1 - d)) / (y1 - y0);
    const size = [(1000 * (b - a)) / (x1 - x0), (1000 * (d - c)) / (y1 - y0)];
    plot.setAttribute("viewBox", [left, top, ...size].join(" "));
    redraw(svg.querySelector(".across"), ticks(a, b, true), (x) => `translate(${across(x)} 0)`);
    redraw(svg.querySelector(".up"), ticks(c, d, false), (y) => `translate(0 ${box.y + (box.height * (d - y)) / (d - c)})`);
    whole.hidden = view.every((value, n) => value === domain[n]);
    rest();
  }

  function zoom(a, b) {
    const values = lines.flatMap(({ x, y }) => y.filter((_, n) => x[n] >= a && x[n] <= b));
    if (b - a < 1 || values.length < 2) return;
    let low = Math.min(...values), high = Math.max(...values);
    const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 0.5;
    show([a, b, low - room, high + room]);
  }

  function read(step) {
    let shown = step;
    lines.forEach(({ x, y }, n) => {
      const index = nearest(x, step);
      outputs[n].textContent = String(Number(y[index].toPrecision(4)));
      if (!n) shown = x[index];
    });
    at.textContent = Math.round(shown).toLocaleString("en");
    cursor.setAttribute("x1", across(shown));
    cursor.setAttribute("x2", across(shown));
    const inside = shown >= view[0] && shown <= view[1];
    cursor.style.visibility = inside ? "visible" : "hidden";
    figure.dataset.step = shown;
  }

  function rest() {
    read(Math.max(...lines.map(({ x }) => x[x.length - 1])));
    cursor.style.visibility = "hidden";
  }

  area.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    read(step);
    if (from === null) return;
    const [a, b] = [Math.min(from, step), Math.max(from, step)].map(across);
    chosen.setAttribute("x", a);
    chosen.setAttribute("width", b - a);
    chosen.style.visibility = "visible";
  });
  area.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") { read(stepAt(event)); return; }
    from = stepAt(event);
    area.setPointerCapture(event.pointerId);
  });
  area.addEventListener("pointerup", (event) => {
    if (from !== null) zoom(Math.min(from, stepAt(event)), Math.max(from, stepAt(event)));
    from = null;
    chosen.style.visibility = "hidden";
  });
  area.addEventListener("pointerleave", rest);
  area.addEventListener("dblclick", () => show(domain));
  figure.addEventListener("keydown", (event) => {
    const steps = lines[0].x;
    const here = nearest(steps, Number(figure.dataset.step));
    if (event.key === "ArrowLeft") read(steps[Math.max(0, here - 1)]);
    else if (event.key === "ArrowRight") read(steps[Math.min(steps.length - 1, here + 1)]);
    else if (event.key === "Escape") show(domain);
    else return;
    event.preventDefault();
  });
  rest();
}

document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll(".chart").forEach(chart);
document.querySelectorAll(".hint").forEach((hint, n) => { hint.hidden = n > 0; });
