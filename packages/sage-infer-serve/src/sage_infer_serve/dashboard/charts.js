// Line charts of the last minutes, as SVG.

import { draw, make } from "./dom.js";
import { say } from "./words.js";

const HEIGHT = 170, LEFT = 48, RIGHT = 8, TOP = 8, BOTTOM = 22;

// From 0 to at least `high`, in three or four steps of 1, 2 or 5 times a power of ten.
function ticks(high) {
  const power = 10 ** Math.floor(Math.log10(high / 4));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size * 4 >= high * 0.999);
  return Array.from({ length: Math.ceil(high / step - 0.001) + 1 }, (_, i) => i * step);
}

export class Chart {
  // `lines`: [{ name, value(point) → number or null }], drawn in this order; `format(number) → text`;
  // `area`: whether the first line's area is filled.
  constructor(host, title, lines, format, area = false) {
    Object.assign(this, { title, lines, format, area, points: [], at: null });
    this.heading = make("h3");
    this.legend = make("div", { class: "legend" });
    this.svg = draw("svg", { role: "img", tabindex: "0" });
    this.tip = make("div", { class: "tip", "aria-live": "polite" });
    this.none = make("div", { class: "none" });
    this.plot = make("div", { class: "plot" }, this.svg, this.none, this.tip);
    host.append(make("div", { class: "chart-head" }, this.heading, this.legend), this.plot);
    this.tip.hidden = true;
    this.svg.addEventListener("pointermove", (event) => this.point(this.indexAt(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  show(points) {
    this.points = points;
    this.render();
  }

  get width() {
    return Math.max(160, this.plot.clientWidth);
  }

  x(index) {
    return LEFT + (index / Math.max(1, this.points.length - 1)) * (this.width - LEFT - RIGHT);
  }

  indexAt(x) {
    const share = (x - LEFT) / (this.width - LEFT - RIGHT);
    return Math.round(Math.min(1, Math.max(0, share)) * (this.points.length - 1));
  }

  render() {
    this.heading.textContent = say(this.title);
    this.legend.replaceChildren(...this.lines.map((line, n) => make("span", { class: `c${n}` }, say(line.name))));
    if (!this.points.length) return;
    const values = this.lines.map((line) => this.points.map(line.value));
    const known = values.flat().filter((value) => value !== null);
    const steps = ticks(Math.max(...known, 0) || 1);
    const top = steps.at(-1);
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    const shapes = [];
    for (const step of known.length ? steps : [0]) {
      shapes.push(draw("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y(step), y2: y(step) }));
      shapes.push(draw("text", { x: LEFT - 6, y: y(step) + 4, "text-anchor": "end" }, this.format(step)));
    }
    const minutes = Math.round((this.points.at(-1).t - this.points[0].t) / 60);
    for (let ago = minutes - 1; ago >= 0; ago--) {
      const place = LEFT + (1 - ago / minutes) * (this.width - LEFT - RIGHT);
      const anchor = ago ? "middle" : "end";
      shapes.push(draw("text", { x: place, y: HEIGHT - 6, "text-anchor": anchor }, ago ? `−${ago} min` : "0"));
    }
    values.forEach((line, n) => shapes.push(...this.curve(line, n, y)));
    if (this.at !== null) {
      shapes.push(draw("line", { class: "cursor", x1: this.x(this.at), x2: this.x(this.at), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.svg.replaceChildren(...shapes);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.none.textContent = known.some((value) => value > 0) ? "" : say("noRequests");
    this.svg.setAttribute("aria-label", say("chartSummary", { title: say(this.title), figures: this.figures(this.last(values)) }));
    this.putTip();
  }

  // A line with gaps for missing values; a value between two gaps is a dot.
  curve(values, n, y) {
    const runs = [];
    values.forEach((value, index) => {
      if (value === null) return;
      if (index === 0 || values[index - 1] === null) runs.push([]);
      runs.at(-1).push([this.x(index), y(value)]);
    });
    return runs.flatMap((run) => {
      if (run.length === 1) return [draw("circle", { class: `dot c${n}`, cx: run[0][0], cy: run[0][1], r: 2.5 })];
      const path = run.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
      const shapes = [draw("path", { class: `curve c${n}`, d: path })];
      if (this.area && n === 0) {
        const closed = `${path}L${run.at(-1)[0].toFixed(1)} ${y(0)}L${run[0][0].toFixed(1)} ${y(0)}Z`;
        shapes.unshift(draw("path", { class: "area c0", d: closed }));
      }
      return shapes;
    });
  }

  // The latest time at which anything is known.
  last(values) {
    for (let index = this.points.length - 1; index > 0; index--) {
      if (values.some((line) => line[index] !== null)) return index;
    }
    return 0;
  }

  figures(index) {
    return this.lines.map((line) => `${say(line.name)} ${this.written(line, index)}`).join(", ");
  }

  written(line, index) {
    const value = line.value(this.points[index]);
    return value === null ? "–" : this.format(value);
  }

  point(index) {
    if (index === this.at) return;
    this.at = index;
    this.render();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !this.points.length) return;
    event.preventDefault();
    this.point(Math.min(this.points.length - 1, Math.max(0, (this.at ?? this.points.length - 1) + step)));
  }

  putTip() {
    this.tip.hidden = this.at === null;
    if (this.at === null) return;
    const time = new Date(this.points[this.at].t * 1000).toLocaleTimeString(document.documentElement.lang);
    const rows = this.lines.map((line) => make("div", {}, make("span", {}, say(line.name)), make("b", {}, this.written(line, this.at))));
    this.tip.replaceChildren(make("div", { class: "quiet" }, time), ...rows);
    const x = this.x(this.at);
    this.tip.style.left = x < this.width / 2 ? `${x + 8}px` : "auto";
    this.tip.style.right = x < this.width / 2 ? "auto" : `${this.width - x + 8}px`;
  }
}
