"use strict";
(() => {
  const { sections, ratio_steps: ratioSteps } = JSON.parse(document.getElementById("curves").textContent);
  const exported = JSON.parse(document.getElementById("exports").textContent);
  const titles = {
    ratio: "ratio of modalities (log scale)",
    share: "training labels reshaped (%)",
  };

  // ---- tables -------------------------------------------------------------------------------------------------

  function sortBy(table, column, direction) {
    const value = (body) => {
      const cell = body.rows[0].cells[column];
      return cell.dataset.value === undefined ? null : cell.dataset.value;
    };
    const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
    const bodies = [...table.tBodies].map((body, position) => ({ body, position, value: value(body) }));
    bodies.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.position - b.position;
      const order = numeric ? Number(a.value) - Number(b.value) : a.value.localeCompare(b.value);
      return direction * order || a.position - b.position;
    });
    for (const { body } of bodies) table.append(body);
    [...table.tHead.rows[0].cells].forEach((head, position) => {
      if (!head.hasAttribute("aria-sort")) return;
      const sorted = direction > 0 ? "ascending" : "descending";
      head.setAttribute("aria-sort", position === column ? sorted : "none");
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        // Numbers begin with the largest, names with the first.
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const second = first === "descending" ? "ascending" : "descending";
        const next = head.getAttribute("aria-sort") === first ? second : first;
        sortBy(table, column, next === "ascending" ? 1 : -1);
      });
    });
  }

  for (const button of document.querySelectorAll("button.more")) {
    const row = document.getElementById(button.getAttribute("aria-controls"));
    const show = (open) => {
      row.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => show(row.hidden));
    show(false);
  }

  for (const tools of document.querySelectorAll("[data-tools]")) {
    const section = tools.closest("section");
    const field = tools.querySelector("input");
    const count = tools.querySelector("output");
    const methods = section.querySelectorAll("table.methods > tbody");
    tools.hidden = false;
    const apply = () => {
      const choices = field.value.toLowerCase().split(",").map((text) => text.trim().split(/\s+/).filter(Boolean));
      const wanted = choices.filter((words) => words.length);
      const fits = (text) => !wanted.length || wanted.some((words) => words.every((word) => text.includes(word)));
      for (const item of section.querySelectorAll("[data-search]")) item.hidden = !fits(item.dataset.search);
      const shown = [...methods].filter((body) => !body.hidden).length;
      count.textContent = wanted.length ? `${shown} of ${methods.length} methods` : "";
    };
    field.addEventListener("input", apply);
    field.form || field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { field.value = ""; apply(); }
    });
    apply(); // the browser may have kept the field's text over a reload
  }

  // ---- tables to copy and to save ------------------------------------------------------------------------------

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { // not allowed to pages of files in every browser
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "unseen";
      document.body.append(area);
      area.select();
      const copied = document.execCommand("copy");
      area.remove();
      return copied;
    }
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  for (const bar of document.querySelectorAll("[data-export]")) {
    const { name, ...texts } = exported[bar.dataset.export];
    const status = document.createElement("output");
    const add = (label, action) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", action);
      bar.append(button);
    };
    for (const [ending, format] of [["csv", "CSV"], ["tex", "LaTeX"]]) {
      add(`Copy ${format}`, async () => {
        status.textContent = (await copy(texts[ending])) ? `${format} copied` : "The browser does not allow it.";
      });
      add(`Save ${format}`, () => {
        save(`${name}.${ending}`, texts[ending]);
        status.textContent = `${name}.${ending} saved`;
      });
    }
    bar.append(status);
    bar.hidden = false;
  }

  // ---- what does not fit ----------------------------------------------------------------------------------------

  for (const frame of document.querySelectorAll(".frame")) {
    const area = frame.firstElementChild;
    const hint = document.createElement("p");
    hint.className = "sideways";
    hint.textContent = "Scroll sideways to see the rest →";
    hint.hidden = true;
    frame.append(hint);
    const update = () => {
      const rest = area.scrollWidth - area.clientWidth;
      frame.classList.toggle("cut", rest > 1 && area.scrollLeft < rest - 1);
      frame.style.setProperty("--seen", `${area.clientHeight}px`);
      hint.hidden = rest <= 1;
    };
    area.addEventListener("scroll", update, { passive: true });
    const observer = new ResizeObserver(update);
    observer.observe(area);
    for (const child of area.children) observer.observe(child);
  }

  // ---- curves -------------------------------------------------------------------------------------------------

  const svgElement = (name, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const element = (name, className, ...children) => {
    const created = document.createElement(name);
    if (className) created.className = className;
    created.append(...children);
    return created;
  };

  /** Limits and ticks of a measure, the same for all methods shown. */
  function verticalAxis(methods, measure) {
    const values = methods.flatMap((method) => (method.measures[measure] || []).flatMap((series) =>
      series.mean.flatMap((mean, i) => (mean === null ? [] : [mean - (series.spread[i] || 0), mean + (series.spread[i] || 0)]))
    ));
    if (measure === "score" && values.length && !methods[0].score.rate) {
      const [least, most] = [Math.min(...values), Math.max(...values)];
      const raw = (most - least || Math.abs(most) || 1) / 4;
      const power = 10 ** Math.floor(Math.log10(raw));
      const step = power * [1, 2, 5, 10].find((size) => size * power >= raw);
      const low = step * Math.floor(least / step);
      const high = step * Math.max(Math.ceil(most / step), Math.floor(least / step) + 1);
      const ticks = [];
      for (let i = 0; i <= Math.round((high - low) / step); i++) ticks.push(Number((low + i * step).toPrecision(6)));
      return { low, high, ticks, position: (value) => value };
    }
    if (measure !== "ratio") {
      const whole = measure === "share" || !values.length;
      const low = whole ? 0 : Math.max(0, 10 * Math.floor(Math.min(...values) / 10));
      const high = whole ? 100 : Math.min(100, 10 * Math.ceil(Math.max(...values) / 10));
      const step = [5, 10, 20, 25].find((size) => (high - low) / size <= 5) || 25;
      const ticks = [];
      for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
      return { low, high, ticks, position: (value) => value };
    }
    const positive = values.filter((value) => value > 0);
    const low = Math.min(0.8, ...positive) / 1.06;
    const high = Math.max(1.25, ...positive) * 1.06;
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) powers.push(power);
    const scales = ratioSteps.map((steps) => powers
      .flatMap((power) => steps.map((step) => Number((step * 10 ** power).toPrecision(6))))
      .filter((tick) => tick >= low && tick <= high));
    const ticks = scales.find((fitting) => fitting.length <= 8) || scales[scales.length - 1];
    return { low, high, ticks, position: Math.log };
  }

  function horizontalTicks(first, last, width) {
    const room = Math.max(2, Math.floor(width / 44));
    const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000].find((s) => (last - first) / s <= room) || 5000;
    const ticks = [];
    for (let tick = Math.ceil(first / step) * step; tick <= last; tick += step) ticks.push(tick);
    return ticks;
  }

  /** Pieces of a curve without gaps: runs of epochs that have a value. */
  function pieces(mean) {
    const segments = [];
    mean.forEach((value, i) => {
      if (value === null) return;
      if (i && mean[i - 1] !== null) segments[segments.length - 1].push(i);
      else segments.push([i]);
    });
    return segments;
  }

  const titleOf = (method, measure) => (measure === "score" ? method.score.title : titles[measure]);

  const format = (method, series, i, measure) => {
    if (series.mean[i] === null) return "–";
    const digits = measure === "score" ? method.score.digits : measure === "ratio" ? 2 : 1;
    const spread = series.spread[i];
    const unit = measure === "ratio" || (measure === "score" && !method.score.rate) ? "" : " %";
    return series.mean[i].toFixed(digits) + (spread === null ? "" : ` ± ${spread.toFixed(digits)}`) + unit;
  };

  /** The values at an epoch, which are the legend too. */
  function makeReadout(method, measure) {
    const epoch = element("b");
    const list = element("ul", "readout", element("li", "epoch", "epoch", epoch));
    const values = method.measures[measure].map((series) => {
      const sample = svgElement("svg", { viewBox: "0 0 36 12", "aria-hidden": "true" },
        svgElement("line", { x1: 0, x2: 36, y1: 6, y2: 6, class: `line s${series.look % 7}` }));
      const value = element("b", "value");
      list.append(element("li", "", sample, element("span", "", series.name), value));
      return { series, value };
    });
    const show = (i) => {
      epoch.textContent = String(method.epochs[i]);
      for (const { series, value } of values) value.textContent = format(method, series, i, measure);
    };
    const text = (i) => `epoch ${method.epochs[i]}: ` +
      values.map(({ series }) => `${series.name} ${format(method, series, i, measure)}`).join(", ");
    return { list, show, text };
  }

  function drawChart(figure, method, measure, axis) {
    const series = method.measures[measure];
    figure.replaceChildren(element("figcaption", "", method.label));
    if (!series) {
      const why = measure === "share" ? "This method reshapes no labels." : "This method has no such values.";
      figure.append(element("p", "none", method.epochs.length ? why : "There are no curves of these runs."));
      return;
    }
    const width = Math.max(220, Math.round(figure.clientWidth - 26));
    const height = 190;
    const area = { left: 36, right: width - 10, top: 24, bottom: height - 34 };
    const first = method.epochs[0];
    const last = method.epochs[method.epochs.length - 1];
    const x = (epoch) => area.left + ((epoch - first) / Math.max(1, last - first)) * (area.right - area.left);
    const scaled = (value) => (axis.position(value) - axis.position(axis.low)) / (axis.position(axis.high) - axis.position(axis.low));
    const y = (value) => area.bottom - Math.min(1, Math.max(0, scaled(Math.max(value, 1e-9)))) * (area.bottom - area.top);
    const round = (value) => value.toFixed(1);

    const svg = svgElement("svg", {
      viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img",
      "aria-label": `${titleOf(method, measure)} per epoch of ${method.label}; arrow keys read the values of an epoch`,
    });
    svg.append(svgElement("text", { x: 0, y: 11 }, titleOf(method, measure)));
    for (const tick of axis.ticks) {
      const even = measure === "ratio" && tick === 1;
      svg.append(svgElement("line", { x1: area.left, x2: area.right, y1: round(y(tick)), y2: round(y(tick)), class: even ? "even" : "grid" }));
      svg.append(svgElement("text", { x: area.left - 6, y: round(y(tick) + 4), "text-anchor": "end" }, String(tick)));
    }
    svg.append(svgElement("line", { x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom, class: "axis" }));
    for (const tick of horizontalTicks(first, last, area.right - area.left)) {
      svg.append(svgElement("line", { x1: round(x(tick)), x2: round(x(tick)), y1: area.bottom, y2: area.bottom + 4, class: "axis" }));
      svg.append(svgElement("text", { x: round(x(tick)), y: area.bottom + 16, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(svgElement("text", { x: round((area.left + area.right) / 2), y: height - 4, "text-anchor": "middle" }, "epoch"));
    for (const { look, mean, spread } of series) {
      for (const piece of pieces(mean)) {
        const at = (i, offset) => `${round(x(method.epochs[i]))},${round(y(mean[i] + offset * (spread[i] || 0)))}`;
        if (piece.some((i) => spread[i])) {
          const outline = [...piece.map((i) => at(i, 1)), ...piece.slice().reverse().map((i) => at(i, -1))];
          svg.append(svgElement("polygon", { points: outline.join(" "), class: `s${look % 7} band` }));
        }
        if (piece.length > 1) {
          svg.append(svgElement("polyline", { points: piece.map((i) => at(i, 0)).join(" "), class: `s${look % 7} line` }));
        } else {
          const [cx, cy] = at(piece[0], 0).split(",");
          svg.append(svgElement("circle", { cx, cy, r: 3, class: `s${look % 7} dot` }));
        }
      }
    }

    const readout = makeReadout(method, measure);
    const spoken = element("p", "unseen");
    spoken.setAttribute("aria-live", "polite");
    const pointer = svgElement("g", { visibility: "hidden" });
    svg.append(pointer);
    let current = method.epochs.length - 1;
    const point = (i) => {
      current = i;
      readout.show(i);
      const where = round(x(method.epochs[i]));
      pointer.replaceChildren(svgElement("line", { x1: where, x2: where, y1: area.top, y2: area.bottom, class: "pointer" }));
      for (const { look, mean } of series) {
        if (mean[i] !== null) pointer.append(svgElement("circle", { cx: where, cy: round(y(mean[i])), r: 4, class: `s${look % 7} dot` }));
      }
      pointer.setAttribute("visibility", "visible");
    };
    const leave = () => {
      pointer.setAttribute("visibility", "hidden");
      current = method.epochs.length - 1;
      readout.show(current);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const epoch = first + (((event.clientX - box.left) * width) / box.width - area.left) / (area.right - area.left) * (last - first);
      let nearest = 0;
      method.epochs.forEach((value, i) => {
        if (Math.abs(value - epoch) < Math.abs(method.epochs[nearest] - epoch)) nearest = i;
      });
      point(nearest);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      point(Math.min(method.epochs.length - 1, Math.max(0, current + step)));
      spoken.textContent = readout.text(current);
    });
    readout.show(current);
    figure.append(svg, readout.list, spoken);
  }

  for (const block of document.querySelectorAll("[data-curves]")) {
    const { methods } = sections[Number(block.dataset.curves)];
    const grid = block.querySelector(".charts");
    const rows = block.closest("section").querySelectorAll("table.methods > tbody");
    const searches = [...rows].map((row) => row.dataset.search);
    block.hidden = false;
    const charts = methods.map((method, position) => {
      const figure = element("figure", "chart");
      figure.dataset.search = searches[position];
      figure.hidden = rows[position].hidden;
      grid.append(figure);
      return { figure, method };
    });
    const draw = () => {
      const measure = block.querySelector("input:checked").value;
      const shown = charts.filter(({ figure }) => !figure.hidden);
      const axis = verticalAxis(shown.map(({ method }) => method), measure);
      for (const { figure, method } of shown) drawChart(figure, method, measure, axis);
    };
    block.addEventListener("change", draw);
    // Shown again by the filter, or of another width: drawn anew.
    let widths = "";
    new ResizeObserver(() => {
      const now = charts.map(({ figure }) => figure.clientWidth).join();
      if (now !== widths) { widths = now; draw(); }
    }).observe(grid);
    draw();
  }
})();
