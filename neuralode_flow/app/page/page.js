"use strict";
// Draws each <figure class="chart"> from the JSON beside it: curves that zoom, tell their values, hide, and move.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 58, right: 14, top: 10, bottom: 26 };
  const REACH = 40; // pixels within which a point is found by the pointer

  function svg(name, attributes, parent) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  }

  function html(name, attributes, parent, markup) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (markup !== undefined) node.innerHTML = markup; // written by us, from labels that are escaped
    if (parent) parent.append(node);
    return node;
  }

  // --- scales ---------------------------------------------------------------------------------------------------

  const SCALES = {
    linear: () => ({ to: (v) => v, from: (u) => u }),
    log: () => ({ to: (v) => (v > 0 ? Math.log10(v) : NaN), from: (u) => 10 ** u }),
    symlog: ({ threshold: c }) => ({
      to: (v) => (Math.abs(v) <= c ? v / c : Math.sign(v) * (1 + Math.log10(Math.abs(v) / c))),
      from: (u) => (Math.abs(u) <= 1 ? u * c : Math.sign(u) * c * 10 ** (Math.abs(u) - 1)),
    }),
  };

  function ticks(axis, scale, low, high, room) {
    if (axis.ticks) {
      const inside = axis.ticks.filter(([v]) => scale.to(v) >= low - 1e-9 && scale.to(v) <= high + 1e-9);
      const step = Math.ceil(inside.length / room);
      if (inside.length >= 2 || high - low < 1e-9) return inside.filter((_, i) => i % step === 0);
    }
    const linear = axis.scale === "linear" || high - low < (axis.scale === "log" ? 0.7 : 1);
    if (linear) {
      const [a, b] = [scale.from(low), scale.from(high)];
      const step = nice((b - a) / room);
      const found = [];
      for (let k = Math.ceil(a / step - 1e-9); k * step <= b + 1e-9 * step; k++) found.push([k * step, number(k * step, step)]);
      return found;
    }
    if (axis.scale === "symlog") {
      const found = [0];
      for (let k = 0; k < 40; k++) found.push(axis.threshold * 10 ** k, -axis.threshold * 10 ** k);
      const inside = found.filter((v) => scale.to(v) >= low && scale.to(v) <= high).sort((a, b) => a - b);
      const step = Math.ceil(inside.length / room);
      return inside.filter((_, i) => i % step === 0).map((v) => [v, short(v)]);
    }
    const step = Math.max(1, Math.ceil((high - low) / room));
    const parts = high - low < 2.2 && step === 1 ? [1, 2, 5] : [1];
    const found = [];
    for (let k = Math.floor(low / step) * step; k <= high; k += step) {
      for (const part of parts) {
        const u = k + Math.log10(part);
        if (u >= low - 1e-9 && u <= high + 1e-9) found.push([part * 10 ** k, power(part, k)]);
      }
    }
    return found;
  }

  function nice(step) {
    const size = 10 ** Math.floor(Math.log10(step));
    return size * [1, 2, 5, 10].find((k) => k * size >= step * 0.999);
  }

  function number(value, step) {
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    if (Math.abs(value) < step * 1e-6) return "0";
    return digits > 5 || Math.abs(value) >= 1e6 ? short(value) : minus(value.toFixed(digits));
  }

  const minus = (text) => text.replace(/-/g, "−");
  const raised = (k) => String(k).replace(/-/, "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);
  const power = (part, k) =>
    k >= -2 && k <= 3 ? number(part * 10 ** k, 10 ** k) : (part === 1 ? "" : part + "·") + "10" + raised(k);

  function short(value) {
    const [mantissa, exponent] = value.toExponential(5).split("e").map(Number);
    if (value !== 0 && (exponent < -3 || exponent > 5)) return minus(String(mantissa)) + "·10" + raised(exponent);
    return minus(String(Number(value.toPrecision(6))));
  }

  // --- looks ----------------------------------------------------------------------------------------------------

  const SHAPES = {
    o: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    s: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    D: (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
    "^": (r) => `M0,${-1.2 * r}L${1.1 * r},${r}L${-1.1 * r},${r}z`,
    v: (r) => `M0,${1.2 * r}L${1.1 * r},${-r}L${-1.1 * r},${-r}z`,
    x: (r) => `M${-r},${-r}L${r},${r}M${-r},${r}L${r},${-r}`,
    P: (r) => `M${-r},0H${r}M0,${-r}V${r}`,
    "|": (r) => `M0,${-r}V${r}`,
    _: (r) => `M${-r},0H${r}`,
  };
  SHAPES.X = SHAPES.x;
  SHAPES["+"] = SHAPES.P;
  const shape = (marker, size) => (SHAPES[marker] || SHAPES[marker === "." ? "o" : "s"])((marker === "." ? 0.3 : 0.5) * size);

  function paint(node, look) {
    node.setAttribute("fill", look.fill || "none");
    node.setAttribute("stroke", look.color);
    node.setAttribute("stroke-width", look.width);
    if (look.dash && look.dash.length) node.setAttribute("stroke-dasharray", look.dash.map((on) => on * look.width).join(" "));
  }

  function dots(node, look) {
    node.setAttribute("fill", ["x", "X", "P", "+", "|", "_"].includes(look.marker) ? "none" : look.color);
    node.setAttribute("stroke", look.color);
  }

  // --- one panel --------------------------------------------------------------------------------------------------

  class Panel {
    constructor(chart, record, number) {
      this.chart = chart;
      this.record = record;
      this.box = html("div", { class: "panel" }, chart.panels);
      if (record.title) html("div", { class: "label" }, this.box, record.title);
      if (record.y.label || chart.record.panels.some((p) => p.y.label)) html("div", { class: "label" }, this.box, record.y.label);
      this.svg = svg("svg", { tabindex: 0, role: "application" }, this.box);
      const name = html("p", {}, null, [record.title, record.y.label, record.x.label].filter(Boolean).join(", ")).textContent;
      this.svg.setAttribute("aria-label", `${name}. Left and right arrows tell values along a curve, up and down change the ` +
        "curve; plus and minus zoom, shift with arrows moves, 0 shows all.");
      if (record.x.label) html("div", { class: "label below" }, this.box, record.x.label);
      this.id = `clip-${chart.number}-${number}`;
      this.scales = { x: SCALES[record.x.scale](record.x), y: SCALES[record.y.scale](record.y) };
      this.reset();
      this.listen();
    }

    reset() {
      const ends = (axis) => this.record[axis].limits.map(this.scales[axis].to);
      this.view = { x: ends("x"), y: ends("y") };
    }

    size() {
      this.width = Math.max(this.box.clientWidth, 200);
      this.height = Math.round(Math.min(Math.max(0.62 * this.width, 210), 400));
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.svg.setAttribute("height", this.height);
      this.inner = {
        x: [MARGIN.left, this.width - MARGIN.right],
        y: [this.height - MARGIN.bottom, MARGIN.top],
      };
    }

    place(axis, value) {
      const [low, high] = this.view[axis], [a, b] = this.inner[axis];
      return a + ((this.scales[axis].to(value) - low) / (high - low)) * (b - a);
    }

    unplace(axis, pixel) {
      const [low, high] = this.view[axis], [a, b] = this.inner[axis];
      return low + ((pixel - a) / (b - a)) * (high - low);
    }

    visible(mark) {
      return mark.entries.every((entry) => this.chart.shown[entry]);
    }

    draw() {
      this.size();
      this.svg.replaceChildren();
      const { x: [left, right], y: [bottom, top] } = this.inner;
      const clip = svg("clipPath", { id: this.id }, svg("defs", {}, this.svg));
      svg("rect", { x: left, y: top, width: right - left, height: bottom - top }, clip);
      this.axes(left, right, bottom, top);
      const inside = svg("g", { "clip-path": `url(#${this.id})` }, this.svg);
      this.record.marks.forEach((mark, i) => {
        if (this.visible(mark)) this.mark(mark, i, inside);
      });
      for (const text of this.record.texts) {
        const [x, y] = text.inside
          ? [left + text.x * (right - left), bottom - text.y * (bottom - top)]
          : [this.place("x", text.x), this.place("y", text.y)];
        if (isFinite(x) && isFinite(y)) svg("text", { x: x + 3, y: y - 3 }, inside).textContent = text.text;
      }
      svg("path", { class: "frame", d: `M${left},${top}V${bottom}H${right}` }, this.svg);
      this.found = svg("g", {}, inside);
      this.point();
    }

    axes(left, right, bottom, top) {
      for (const [v, text] of ticks(this.record.x, this.scales.x, ...this.view.x, Math.max(2, (right - left) / 70))) {
        const x = this.place("x", v);
        svg("path", { class: "grid", d: `M${x},${top}V${bottom}` }, this.svg);
        svg("text", { x, y: bottom + 17, "text-anchor": "middle" }, this.svg).textContent = text;
      }
      for (const [v, text] of ticks(this.record.y, this.scales.y, ...this.view.y, Math.max(2, (bottom - top) / 45))) {
        const y = this.place("y", v);
        svg("path", { class: "grid", d: `M${left},${y}H${right}` }, this.svg);
        svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, this.svg).textContent = text;
      }
    }

    mark(mark, i, parent) {
      const { x: [left, right], y: [bottom, top] } = this.inner;
      const xs = mark.x.map((v) => (mark.kind === "across" ? left + v * (right - left) : this.place("x", v)));
      const ys = mark.y.map((v) => (mark.kind === "upright" ? bottom - v * (bottom - top) : this.place("y", v)));
      let line = "", marks = "", pen = false;
      for (let k = 0; k < xs.length; k++) {
        if (mark.x[k] === null || mark.y[k] === null || !isFinite(xs[k]) || !isFinite(ys[k])) {
          pen = false;
          continue;
        }
        // Far outside of the picture coordinates are cut: browsers draw those of many digits wrongly.
        const [x, y] = [xs[k], ys[k]].map((v) => Math.max(-1e5, Math.min(1e5, v)).toFixed(1));
        line += `${pen ? "L" : "M"}${x},${y}`;
        if (mark.marker) marks += `M${x},${y}m0,0` + relative(shape(mark.marker, mark.size));
        pen = true;
      }
      if (mark.width > 0 || mark.fill) paint(svg("path", { d: line, "data-mark": i }, parent), mark);
      if (mark.marker) dots(svg("path", { d: marks, "data-mark": i, class: "dots" }, parent), mark);
    }

    // --- values -------------------------------------------------------------------------------------------------

    // Whether a mark has points that a reader may ask for.
    tells(mark) {
      return mark.kind === "curve" && !mark.fill && mark.entries.length > 0 && this.visible(mark);
    }

    inside(mark, k) {
      if (mark.x[k] === null || mark.y[k] === null) return false;
      const [x, y] = [this.place("x", mark.x[k]), this.place("y", mark.y[k])];
      const { x: [left, right], y: [bottom, top] } = this.inner;
      return x >= left - 1 && x <= right + 1 && y <= bottom + 1 && y >= top - 1;
    }

    nearest(px, py) {
      let best = null, least = REACH ** 2;
      this.record.marks.forEach((mark, m) => {
        if (!this.tells(mark)) return;
        for (let k = 0; k < mark.x.length; k++) {
          if (!this.inside(mark, k)) continue;
          const away = (this.place("x", mark.x[k]) - px) ** 2 + (this.place("y", mark.y[k]) - py) ** 2;
          if (away < least) [best, least] = [{ m, k }, away];
        }
      });
      return best;
    }

    // Asks for a point; there is one in a chart, and its values are what the chart tells.
    ask(at) {
      if (!at) return;
      this.at = at;
      this.chart.asked = this;
      this.chart.drawn.forEach((panel) => panel.point());
    }

    point() {
      this.found.replaceChildren();
      if (this.chart.asked !== this) return;
      const at = this.at, mark = this.record.marks[at.m];
      if (!this.tells(mark) || !this.inside(mark, at.k)) return this.chart.tell("&nbsp;");
      const [x, y] = [this.place("x", mark.x[at.k]), this.place("y", mark.y[at.k])];
      svg("path", { class: "guide", d: `M${x},${this.inner.y[0]}V${y}H${this.inner.x[0]}` }, this.found);
      svg("circle", { class: "found", cx: x, cy: y, r: 5 }, this.found);
      const name = mark.name || mark.entries.map((entry) => this.chart.record.legend[entry].label).join(", ");
      this.chart.tell(`${name}: ${this.record.x.label || "x"} = ${short(mark.x[at.k])}, ${this.record.y.label || "y"} = ` +
        `<b>${short(mark.y[at.k])}</b>`);
    }

    walk(along, across) {
      const curves = this.record.marks.map((mark, m) => m).filter((m) => this.tells(this.record.marks[m]));
      if (!curves.length) return;
      let { m, k } = this.at && curves.includes(this.at.m) ? this.at : { m: curves[0], k: -1 };
      const before = this.record.marks[m].x[k];
      if (across) {
        m = curves[(curves.indexOf(m) + across + curves.length) % curves.length];
        const xs = this.record.marks[m].x;
        if (before !== undefined) k = xs.reduce((b, x, i) => (Math.abs(x - before) < Math.abs(xs[b] - before) ? i : b), 0);
      }
      const count = this.record.marks[m].x.length;
      const there = (i) => i >= 0 && i < count && this.inside(this.record.marks[m], i);
      let next = k + along;
      while (next >= 0 && next < count && !there(next)) next += along || 1;
      if (there(next)) k = next;
      if (there(k)) this.ask({ m, k });
    }

    // --- zoom ---------------------------------------------------------------------------------------------------

    zoom(factor, px, py) {
      for (const [axis, pixel] of [["x", px], ["y", py]]) {
        const [low, high] = this.view[axis];
        const middle = pixel === undefined ? (low + high) / 2 : this.unplace(axis, pixel);
        const [from, to] = this.record[axis].limits.map(this.scales[axis].to);
        const part = ((high - low) * factor) / (to - from); // of the whole picture
        if (part < 1e-9 || part > 1e3) return;
        this.view[axis] = [middle - (middle - low) * factor, middle + (high - middle) * factor];
      }
      this.draw();
    }

    move(dx, dy) {
      for (const [axis, by] of [["x", dx], ["y", dy]]) {
        const [low, high] = this.view[axis];
        this.view[axis] = [low + by * (high - low), high + by * (high - low)];
      }
      this.draw();
    }

    within(event) {
      const frame = this.svg.getBoundingClientRect();
      return [((event.clientX - frame.left) / frame.width) * this.width, ((event.clientY - frame.top) / frame.height) * this.height];
    }

    listen() {
      const pointers = new Map();
      let start = null, spread = 0, box = null;
      const distance = () => {
        const [a, b] = [...pointers.values()];
        return Math.hypot(a[0] - b[0], a[1] - b[1]);
      };
      this.svg.addEventListener("pointerdown", (event) => {
        pointers.set(event.pointerId, this.within(event));
        this.svg.focus({ preventScroll: true });
        if (pointers.size === 2) [spread, start] = [distance(), null];
        else if (event.pointerType === "mouse" && event.button === 0) {
          start = this.within(event);
          this.svg.setPointerCapture(event.pointerId);
        }
      });
      this.svg.addEventListener("pointermove", (event) => {
        const now = this.within(event);
        if (pointers.has(event.pointerId)) pointers.set(event.pointerId, now);
        if (pointers.size === 2) {
          const wider = distance();
          if (Math.abs(wider - spread) > 4) {
            const [a, b] = [...pointers.values()];
            this.zoom(spread / wider, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
            spread = wider;
          }
        } else if (start && Math.hypot(now[0] - start[0], now[1] - start[1]) > 5) {
          box = box || svg("rect", { class: "box" }, this.svg);
          const [x, y] = [Math.min(now[0], start[0]), Math.min(now[1], start[1])];
          const [width, height] = [Math.abs(now[0] - start[0]), Math.abs(now[1] - start[1])];
          for (const [key, value] of Object.entries({ x, y, width, height })) box.setAttribute(key, value);
        } else {
          this.ask(this.nearest(...now));
        }
      });
      const end = (event) => {
        const now = this.within(event);
        pointers.delete(event.pointerId);
        if (box && start && event.type === "pointerup") {
          const corners = { x: [start[0], now[0]].sort((a, b) => a - b), y: [start[1], now[1]].sort((a, b) => b - a) };
          if (corners.x[1] - corners.x[0] > 5 && corners.y[0] - corners.y[1] > 5) {
            this.view = { x: corners.x.map((p) => this.unplace("x", p)), y: corners.y.map((p) => this.unplace("y", p)) };
          }
          this.draw();
        } else if (event.type === "pointerup" && event.pointerType !== "mouse") {
          this.ask(this.nearest(...now));
        }
        if (box) box.remove();
        start = box = null;
      };
      this.svg.addEventListener("pointerup", end);
      this.svg.addEventListener("pointercancel", end);
      this.svg.addEventListener("dblclick", () => {
        this.reset();
        this.draw();
      });
      this.svg.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls as ever
        event.preventDefault();
        this.zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...this.within(event));
      }, { passive: false });
      this.svg.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in arrows) {
        const [x, y] = arrows[event.key];
        if (event.shiftKey) this.move(0.1 * x, 0.1 * y);
        else this.walk(x, -y);
      } else if (event.key === "+" || event.key === "=") this.zoom(1 / 1.25);
      else if (event.key === "-") this.zoom(1.25);
      else if (event.key === "0" || event.key === "Escape") {
        this.reset();
        this.draw();
      } else return;
      event.preventDefault();
    }
  }

  // A path of absolute coordinates around (0, 0) as one that starts where the pen is.
  function relative(path) {
    let x = 0, y = 0;
    return path.replace(/([MLHVZazhv])([^MLHVZazhv]*)/g, (_, letter, rest) => {
      const v = rest.split(/[ ,]+/).filter(Boolean).map(Number);
      const step = (nx, ny, name) => {
        const text = `${name}${(nx - x).toFixed(2)},${(ny - y).toFixed(2)}`;
        [x, y] = [nx, ny];
        return text;
      };
      if (letter === "M") return step(v[0], v[1], "m");
      if (letter === "L") return step(v[0], v[1], "l");
      if (letter === "H") return step(v[0], y, "l");
      if (letter === "V") return step(x, v[0], "l");
      return letter + rest;
    });
  }

  // --- one chart --------------------------------------------------------------------------------------------------

  class Chart {
    constructor(figure, number) {
      this.number = number;
      this.record = JSON.parse(figure.querySelector("script").textContent);
      this.shown = this.record.legend.map(() => true);
      const before = figure.querySelector("figcaption");
      const body = html("div", {});
      figure.insertBefore(body, before);
      html("p", { class: "title" }, body, this.record.title);
      this.panels = html("div", { class: "panels" }, body);
      this.value = html("div", { class: "value", "aria-live": "polite" }, body, "&nbsp;");
      if (this.record.slider) this.slider(body);
      if (this.record.legend.length) this.legend(body);
      this.drawn = this.record.panels.map((panel, i) => new Panel(this, panel, i));
      this.tools(body);
      if (this.record.slider) this.go(this.record.slider.values.length - 1);
      new ResizeObserver(() => this.draw()).observe(this.panels);
      this.draw();
    }

    draw() {
      this.drawn.forEach((panel) => panel.draw());
    }

    tell(markup) {
      this.value.innerHTML = markup;
    }

    legend(body) {
      const box = html("div", { class: "legend", role: "group", "aria-label": "curves that are shown" }, body);
      const buttons = this.record.legend.map((entry, i) => {
        const button = html("button", { type: "button", "aria-pressed": "true", "data-entry": i }, box);
        const sample = svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, button);
        if (entry.width > 0) paint(svg("path", { d: "M1,6.5H25" }, sample), entry);
        if (entry.marker) dots(svg("path", { d: `M13,6m0,0${relative(shape(entry.marker, Math.min(entry.size, 8)))}` }, sample), entry);
        html("span", {}, button, entry.label);
        button.addEventListener("click", () => set(i, !this.shown[i]));
        return button;
      });
      const set = (i, on) => {
        this.shown[i] = on;
        buttons[i].setAttribute("aria-pressed", on);
        this.draw();
      };
      if (buttons.length < 3) return;
      for (const [text, on] of [["all", true], ["none", false]]) {
        const button = html("button", { type: "button", class: text }, box, text);
        button.addEventListener("click", () => buttons.forEach((_, i) => set(i, on)));
      }
    }

    tools(body) {
      const box = html("div", { class: "tools" }, body);
      const all = (change) => () => {
        this.drawn.forEach(change);
        this.draw();
      };
      const tools = {
        "zoom in": all((panel) => panel.zoom(1 / 1.25)),
        "zoom out": all((panel) => panel.zoom(1.25)),
        "show all": all((panel) => panel.reset()),
      };
      for (const [text, act] of Object.entries(tools)) {
        html("button", { type: "button" }, box, text).addEventListener("click", act);
      }
      html("small", {}, box, "drag a box to zoom, point at a curve for its values");
    }

    slider(body) {
      const { label, values } = this.record.slider;
      const box = html("div", { class: "time" }, body);
      const play = html("button", { type: "button", class: "play" }, box, "play");
      html("label", { for: `slider-${this.number}` }, box, label);
      this.range = html("input", { type: "range", min: 0, max: values.length - 1, step: 1, id: `slider-${this.number}` }, box);
      this.output = html("output", { for: `slider-${this.number}` }, box);
      this.range.addEventListener("input", () => this.go(Number(this.range.value)));
      let timer = null;
      const stop = () => {
        clearInterval(timer);
        timer = null;
        play.textContent = "play";
      };
      play.addEventListener("click", () => {
        if (timer !== null) return stop();
        play.textContent = "pause";
        let i = Number(this.range.value) >= values.length - 1 ? 0 : Number(this.range.value);
        this.go(i);
        timer = setInterval(() => {
          this.go(++i);
          if (i >= values.length - 1) stop();
        }, Math.max(60, 4000 / values.length));
      });
      this.range.addEventListener("pointerdown", stop);
      this.range.addEventListener("keydown", stop);
    }

    go(i) {
      const { values, changes } = this.record.slider;
      this.range.value = i;
      this.output.textContent = short(values[i]);
      this.range.setAttribute("aria-valuetext", short(values[i]));
      for (const change of changes) {
        const mark = this.record.panels[change.panel].marks[change.mark];
        for (const axis of ["x", "y"]) if (change[axis]) mark[axis] = change[axis][i];
      }
      this.draw();
    }
  }

  document.querySelectorAll("figure.chart").forEach((figure, i) => new Chart(figure, i));
})();
