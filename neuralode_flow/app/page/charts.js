"use strict";
// Gives each <figure class="chart"> its curves, which Plotly draws from the description (JSON) inside it. Which of them are
// shown, the moment of a film, and the table of their numbers are decided here, by means that a keyboard reaches too.
(() => {
  const INK = "#1a1a1a", FRAME = "#767676", GRID = "#e3e3e3"; // in the dark, page.css turns them round
  const SYMBOLS = {
    o: "circle", ".": "circle", s: "square", D: "diamond", "^": "triangle-up", v: "triangle-down", x: "x-thin", X: "x-thin",
    P: "cross-thin", "+": "cross-thin", "|": "line-ns", _: "line-ew",
  };
  const SIGNS = { ".": "•", s: "■", D: "◆", "^": "▲", v: "▼", x: "×", X: "×", P: "+", "+": "+", "|": "|", _: "–" };
  const HOLLOW = { o: "○", s: "□", D: "◇", "^": "△", v: "▽" };
  const BUTTONS = [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const CONFIG = { displaylogo: false, displayModeBar: true, modeBarButtons: BUTTONS, responsive: true };

  function html(name, attributes, parent, markup) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (markup !== undefined) node.innerHTML = markup; // from labels that are escaped, see figures/markup.py
    if (parent) parent.append(node);
    return node;
  }

  function short(value) {
    if (value === null) return "";
    const far = value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6);
    return far ? value.toExponential(6).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(7)));
  }

  // A place on an axis, which may be one of words: marks stand a little beside their places there.
  const worded = (axis, value) => (axis.names && value !== null ? axis.names[Math.round(value)] || "" : short(value));

  const bare = (markup) => html("p", {}, null, markup).textContent;

  // A label as Plotly reads it: it knows fewer entities than browsers, and would put values in place of %{names}.
  const told = (markup) => markup.replaceAll("&quot;", '"').replaceAll("%{", "%&#123;").replaceAll("\n", "<br>");

  // --- axes -----------------------------------------------------------------------------------------------------------

  // Where Plotly is given a value. It has no axis that is linear around 0 and logarithmic outside: such values are mapped.
  function placed({ scale, threshold: c }, value) {
    if (scale !== "symlog" || value === null) return value;
    return Math.abs(value) <= c ? value / c : Math.sign(value) * (1 + Math.log10(Math.abs(value) / c));
  }

  const unplaced = ({ threshold: c }, u) => (Math.abs(u) <= 1 ? u * c : Math.sign(u) * c * 10 ** (Math.abs(u) - 1));

  // The same in the units of the ends of an axis, of shapes' own places and of notes.
  const along = (axis, value) => (axis.scale === "log" ? Math.log10(value) : placed(axis, value));

  // The ticks that a figure has of its own, or else Plotly's, once fewer than two of them are in view.
  function ticks(axis, [low, high]) {
    let own = axis.ticks;
    if (axis.scale === "symlog") {
      const powers = [...Array(40).keys()].map((k) => axis.threshold * 10 ** k);
      own = own || [0, ...powers, ...powers.map((v) => -v)].map((v) => [v, short(v)]);
    }
    // Of about two decades Plotly would name all digits, which touch: 1, 2 and 5 are enough.
    if (!own) return axis.scale === "log" && high - low > 0.9 && high - low < 3 ? { tickmode: "linear", dtick: "D2" } : { tickmode: "auto" };
    const inside = own.filter(([v]) => along(axis, v) >= low - 1e-9 && along(axis, v) <= high + 1e-9);
    if (inside.length < 2 && axis.scale !== "symlog") return { tickmode: "auto" };
    const even = [0, 1, 2, 3, 4].map((k) => low + (k / 4) * (high - low));
    const [at, text] = inside.length < 2
      ? [even, even.map((u) => String(Number(unplaced(axis, u).toPrecision(3))))]
      : [inside.map(([v]) => placed(axis, v)), inside.map(([, label]) => told(label))];
    return { tickmode: "array", tickvals: at, ticktext: text };
  }

  const ends = (axis) => axis.limits.map((value) => along(axis, value));

  const axisOf = (axis, view) => ({
    type: axis.scale === "log" ? "log" : "linear", range: ends(axis), ...ticks(axis, view), exponentformat: "power", nticks: 7,
    showline: true, linecolor: FRAME, gridcolor: GRID, zeroline: false, automargin: true,
  });

  // --- marks ----------------------------------------------------------------------------------------------------------

  // Whether a mark has points that a reader may ask for; areas have none.
  const tells = (mark) => mark.kind === "curve" && !("fill" in mark);

  const dashes = (look) => (look.dash && look.dash.length ? look.dash.map((on) => `${on * look.width}px`).join(",") : "solid");

  // The slopes of a monotone cubic curve through points (Fritsch, Butland), as SciPy's PchipInterpolator has them.
  function slopes(x, y) {
    const h = x.slice(1).map((v, k) => v - x[k]), m = h.map((step, k) => (y[k + 1] - y[k]) / step), n = h.length;
    const end = (h0, h1, m0, m1) => {
      const d = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1);
      if (Math.sign(d) !== Math.sign(m0)) return 0;
      return Math.sign(m0) !== Math.sign(m1) && Math.abs(d) > 3 * Math.abs(m0) ? 3 * m0 : d;
    };
    const inner = m.slice(1).map((next, k) => {
      const [before, after] = [h[k] + 2 * h[k + 1], 2 * h[k] + h[k + 1]];
      return m[k] * next > 0 ? (before + after) / (before / m[k] + after / next) : 0;
    });
    return [end(h[0], h[1], m[0], m[1]), ...inner, end(h[n - 1], h[n - 2], m[n - 1], m[n - 2])];
  }

  // The curve that Smooth of figures/style.py draws through the points of a mark: Plotly's own spline goes beyond them.
  function curved({ x, y }, logarithmic) {
    const known = [...x, ...y].every((v) => v !== null) && !(logarithmic && y.some((v) => v <= 0));
    if (x.length < 3 || !known) return { x, y };
    const number = [...x.keys()], forward = number.every((k) => k === 0 || x[k] > x[k - 1]);
    const along = (places, values) => {
      const d = slopes(places, values), dense = [];
      for (let i = 0; i + 1 < values.length; i++) {
        const h = places[i + 1] - places[i];
        for (let part = 0; part < 1; part += 0.125) {
          const [u, w] = [part, 1 - part];
          dense.push(w * w * ((1 + 2 * u) * values[i] + u * h * d[i]) + u * u * ((1 + 2 * w) * values[i + 1] - w * h * d[i + 1]));
        }
      }
      return [...dense, values[values.length - 1]];
    };
    const places = forward ? x : number, across = along(forward ? x : number, x);
    const up = along(places, logarithmic ? y.map(Math.log) : y);
    return { x: across, y: logarithmic ? up.map(Math.exp) : up };
  }

  // What Plotly draws of a mark: one trace, or the curve through its points, which tells nothing, and these points.
  function drawn(mark, panel, name) {
    const whole = trace(mark, panel, name);
    if (mark.shape !== "spline") return [whole];
    const { x, y } = curved(mark, panel.y.scale === "log");
    const path = { x: x.map((v) => placed(panel.x, v)), y: y.map((v) => placed(panel.y, v)) };
    const points = mark.marker ? whole : { ...whole, opacity: 0 };
    return [
      { ...whole, ...path, customdata: undefined, mode: "lines", hoverinfo: "skip", hovertemplate: undefined },
      { ...points, mode: "markers" },
    ];
  }

  function trace(mark, panel, name) {
    const thin = /thin|line/.test(SYMBOLS[mark.marker]);
    const parts = [mark.width > 0 && "lines", mark.marker && "markers"].filter(Boolean);
    const value = (axis) => `${told(panel[axis].label || axis)} = %{customdata[${"xy".indexOf(axis)}]}`;
    return {
      type: "scatter",
      mode: parts.join("+") || "none",
      x: mark.x.map((v) => placed(panel.x, v)),
      y: mark.y.map((v) => placed(panel.y, v)),
      customdata: mark.x.map((v, k) => [told(worded(panel.x, v)), short(mark.y[k])]),
      line: { color: mark.color, width: mark.width, dash: dashes(mark), shape: mark.shape === "spline" ? "linear" : mark.shape || "linear" },
      marker: {
        color: mark.color, symbol: (SYMBOLS[mark.marker] || "circle") + (mark.hollow && !thin ? "-open" : ""),
        size: mark.marker === "." ? 0.6 * mark.size : mark.size,
        line: { color: mark.color, width: thin || mark.hollow ? 1.5 : 0 },
      },
      opacity: mark.opacity ?? 1,
      fill: mark.fill ? "toself" : "none",
      fillcolor: mark.fill || undefined,
      hoverinfo: tells(mark) ? undefined : "skip",
      hovertemplate: tells(mark)
        ? [told(name), value("x"), value("y")].join("<br>") + "<extra></extra>"
        : undefined,
    };
  }

  // A line or a band across the whole panel.
  function shape(mark, panel) {
    const part = mark.kind === "across" ? "x" : "y"; // which coordinate is a part of the panel's own
    const [x, y] = ["x", "y"].map((axis) => mark[axis].map((v) => (axis === part ? v : placed(panel[axis], v))));
    return {
      type: mark.fill ? "rect" : "line",
      x0: Math.min(...x), x1: Math.max(...x), xref: part === "x" ? "x domain" : "x",
      y0: Math.min(...y), y1: Math.max(...y), yref: part === "y" ? "y domain" : "y",
      line: { color: mark.color, width: mark.width, dash: dashes(mark) }, fillcolor: mark.fill || undefined, layer: "below",
      opacity: mark.opacity ?? 1,
    };
  }

  const note = (text, panel) => ({
    text: told(text.text), showarrow: false, xanchor: "left", yanchor: "bottom", align: "left", font: { size: 11 },
    ...(text.inside
      ? { x: text.x, y: text.y, xref: "x domain", yref: "y domain" }
      : { x: along(panel.x, text.x), y: along(panel.y, text.y), xref: "x", yref: "y" }),
  });

  // --- one chart ------------------------------------------------------------------------------------------------------

  class Chart {
    constructor(figure, number) {
      this.number = number;
      this.record = JSON.parse(figure.querySelector("script").textContent);
      this.shown = this.record.legend.map(() => true);
      const body = html("div", {});
      figure.insertBefore(body, figure.querySelector("figcaption"));
      const { title, heading = title } = this.record; // the page has said the rest
      if (heading) html("p", { class: "title" }, body, heading);
      const panels = html("div", { class: "panels" }, body);
      this.plots = this.record.panels.map((panel) => this.panel(panel, panels));
      if (this.record.slider) this.slider(body);
      if (this.record.legend.length) this.legend(body);
      this.numbers(body);
      if (this.record.slider) this.go(this.record.slider.values.length - 1);
      else this.draw();
    }

    panel(panel, parent) {
      const box = html("div", { class: "panel" }, parent);
      if (panel.title) html("div", { class: "label" }, box, panel.title);
      if (this.record.panels.some((other) => other.y.label)) html("div", { class: "label" }, box, panel.y.label);
      const name = bare([panel.title, panel.y.label, panel.x.label].filter(Boolean).join(", "));
      const plot = html("div", { class: "plot", role: "group", "aria-label": `${name}. Its numbers are in a table below.` }, box);
      if (panel.x.label) html("div", { class: "label below" }, box, panel.x.label);
      return plot;
    }

    // The same figure again, whatever has changed; the view that a reader has chosen stays.
    draw() {
      this.plots.forEach((plot, i) => {
        const isNew = !plot.layout;
        Plotly.react(plot, this.traces(i), this.layout(i), CONFIG);
        if (!isNew) return;
        plot.querySelectorAll(".main-svg").forEach((part) => part.setAttribute("aria-hidden", "true"));
        plot.on("plotly_relayout", () => this.retick(i));
      });
      this.tables();
    }

    view(i, axis) {
      const { layout } = this.plots[i];
      return layout ? layout[`${axis}axis`].range : ends(this.record.panels[i][axis]);
    }

    retick(i) {
      const { layout } = this.plots[i], update = {};
      for (const axis of ["x", "y"]) {
        for (const [key, value] of Object.entries(ticks(this.record.panels[i][axis], this.view(i, axis)))) {
          if (JSON.stringify(layout[`${axis}axis`][key]) !== JSON.stringify(value)) update[`${axis}axis.${key}`] = value;
        }
      }
      if (Object.keys(update).length) Plotly.relayout(this.plots[i], update);
    }

    visible(mark) {
      return mark.entries.every((entry) => this.shown[entry]);
    }

    name(mark) {
      return mark.name || mark.entries.map((entry) => this.record.legend[entry].label).join(", ");
    }

    traces(i) {
      const panel = this.record.panels[i];
      const marks = panel.marks.filter((mark) => mark.kind === "curve");
      return marks.flatMap((mark) => drawn(mark, panel, this.name(mark)).map((one) => ({ ...one, visible: this.visible(mark) })));
    }

    layout(i) {
      const panel = this.record.panels[i];
      return {
        font: { family: "system-ui, sans-serif", size: 12, color: INK },
        margin: { l: 40, r: 12, t: 32, b: 24 },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", modebar: { bgcolor: "rgba(0,0,0,0)", color: FRAME, activecolor: INK },
        showlegend: false, uirevision: 1,
        hovermode: "closest", hoverdistance: 30, hoverlabel: { bgcolor: "#fff", font: { color: INK }, align: "left" },
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
        xaxis: axisOf(panel.x, this.view(i, "x")), yaxis: axisOf(panel.y, this.view(i, "y")),
        shapes: panel.marks.filter((mark) => mark.kind !== "curve" && this.visible(mark)).map((mark) => shape(mark, panel)),
        annotations: panel.texts.map((text) => note(text, panel)),
      };
    }

    legend(body) {
      const box = html("div", { class: "legend", role: "group", "aria-label": "curves that are shown" }, body);
      const buttons = this.record.legend.map((entry, i) => {
        const button = html("button", { type: "button", "aria-pressed": "true", "data-entry": i }, box, sample(entry));
        html("span", {}, button, entry.label);
        button.addEventListener("click", () => set([i], !this.shown[i]));
        return button;
      });
      const set = (entries, on) => {
        for (const i of entries) {
          this.shown[i] = on;
          buttons[i].setAttribute("aria-pressed", on);
        }
        this.draw();
      };
      if (buttons.length < 3) return;
      for (const [text, on] of [["all", true], ["none", false]]) {
        const button = html("button", { type: "button" }, box, text);
        button.addEventListener("click", () => set(buttons.keys(), on));
      }
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

    // --- numbers ------------------------------------------------------------------------------------------------------

    numbers(body) {
      this.details = html("details", {}, body, "<summary>Numbers of this chart</summary>");
      this.details.addEventListener("toggle", () => this.tables());
    }

    // Of the curves that are shown; those over the same places share a table.
    tables() {
      if (!this.details.open) return;
      this.details.querySelectorAll(".scroll").forEach((old) => old.remove());
      for (const panel of this.record.panels) {
        const alike = new Map();
        for (const mark of panel.marks.filter((one) => tells(one) && this.visible(one))) {
          const places = JSON.stringify(mark.x);
          alike.set(places, [...(alike.get(places) || []), mark]);
        }
        for (const marks of alike.values()) this.table(panel, marks);
      }
    }

    table(panel, marks) {
      const title = panel.title || panel.y.label || "y";
      const box = html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": bare(title) }, this.details);
      const cells = (kind, texts) => texts.map((text) => `<${kind} class="number">${text}</${kind}>`).join("");
      const rows = [cells('th scope="col"', [panel.x.label || "x", ...marks.map((mark) => this.name(mark) || panel.y.label || "y")])];
      marks[0].x.forEach((x, k) => {
        if (x !== null) rows.push(cells("td", [worded(panel.x, x), ...marks.map((mark) => short(mark.y[k]))]));
      });
      html("table", {}, box, `<caption>${title}</caption>` + rows.map((row) => `<tr>${row}</tr>`).join(""));
    }
  }

  // What stands for a look in the legend.
  function sample(look) {
    const area = look.fill ? `<rect x="4" y="1" width="18" height="10" fill="${look.fill}"/>` : "";
    const line = look.width > 0 && !look.fill
      ? `<path d="M1,6.5H25" stroke="${look.color}" stroke-width="${look.width}" stroke-dasharray="${(look.dash || []).map((on) => on * look.width)}"/>`
      : "";
    const signs = look.hollow ? { ...SIGNS, ...HOLLOW } : SIGNS;
    const sign = look.marker ? `<text x="13" y="10" text-anchor="middle" fill="${look.color}">${signs[look.marker] || "●"}</text>` : "";
    return `<svg width="26" height="12" opacity="${look.opacity ?? 1}" aria-hidden="true">${area}${line}${sign}</svg>`;
  }

  document.querySelectorAll("figure.chart").forEach((figure, i) => new Chart(figure, i));
})();
