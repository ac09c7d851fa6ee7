"use strict";
(() => {
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  // Tooltips: what a point's title says, at once and on focus too.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const words = (mark) => mark.dataset.tip || "";
  const show = (mark, x, y) => {
    tip.textContent = words(mark);
    tip.hidden = !tip.textContent;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 16 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 16) + "px";
  };
  let held = null; // the point with the focus: its words follow it where the page is scrolled to show it
  const hide = () => { tip.hidden = true; held = null; };
  const point = (mark) => {
    const box = mark.getBoundingClientRect();
    held = mark;
    show(mark, box.left + box.width / 2, box.bottom - 8);
  };
  all("svg .pt, svg.graph g").forEach((mark) => {
    const title = mark.querySelector(":scope > title");
    if (!title) return;
    mark.dataset.tip = title.textContent;
    title.remove(); // or the browser would show it a second time
    mark.addEventListener("pointermove", (event) => show(mark, event.clientX, event.clientY));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => point(mark));
    mark.addEventListener("blur", hide);
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", () => { if (held) point(held); else hide(); }, { passive: true });

  // Sorting: by number where a cell has one, else by its text; what has neither goes last.
  all("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    if (body.rows.length < 2) return;
    all("thead th", table).forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.cells[index];
          return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
        };
        const order = (a, b) => {
          const x = key(a), y = key(b);
          if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
          const sign = up ? 1 : -1;
          return sign * (typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true }));
        };
        body.append(...Array.from(body.rows).sort(order));
      });
    });
  });

  // Zoom: drag over a part of a plot; the points and the axes are drawn anew for that part.
  const NS = "http://www.w3.org/2000/svg";
  const element = (name, attributes, text) => {
    const made = document.createElementNS(NS, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const label = (value) => {
    const size = Math.abs(value);
    if (size >= 1e12 || (size > 0 && size < 1e-4)) return value.toExponential(0);
    for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= limit) return Number((value / limit).toPrecision(6)) + letter;
    return String(Number(value.toPrecision(6)));
  };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * (1 - 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  };
  const decades = (low, high, count) => {
    for (const factors of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let d = Math.floor(Math.log10(low)) - 1; d <= Math.ceil(Math.log10(high)); d++)
        factors.forEach((f) => {
          const value = f * 10 ** d;
          if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(value);
        });
      if (found.length >= 2 && found.length <= count + 1) return found;
    }
    return ticks(low, high, count);
  };

  all("svg.zoomable").forEach((svg) => {
    const [left, top, right, bottom] = svg.dataset.box.split(",").map(Number);
    const logs = { x: svg.dataset.xlog === "1", y: svg.dataset.ylog === "1" };
    const whole = { x: [+svg.dataset.x0, +svg.dataset.x1], y: [+svg.dataset.y0, +svg.dataset.y1] };
    const flipped = svg.dataset.yflip === "1"; // errors in percent, shown as what is left to 100
    const ends = { x: [left, right], y: flipped ? [top, bottom] : [bottom, top] };
    let view = whole;
    const f = (axis, value) => (logs[axis] ? Math.log(Math.max(value, 1e-300)) : value);
    const place = (axis, value) => {
      const [low, high] = view[axis].map((end) => f(axis, end)), [start, end] = ends[axis];
      return start + ((f(axis, value) - low) / (high - low)) * (end - start);
    };
    const value = (axis, at) => {
      const [low, high] = view[axis].map((end) => f(axis, end)), [start, end] = ends[axis];
      const found = low + ((at - start) / (end - start)) * (high - low);
      return logs[axis] ? Math.exp(found) : found;
    };
    const marks = all(".pt[data-x]", svg), frame = svg.querySelector(".frame");
    const original = Array.from(frame.childNodes).map((node) => node.cloneNode(true));
    const places = marks.map((mark) => [mark.getAttribute("transform"), mark.querySelector(".eb")?.getAttribute("d")]);
    const extras = all(".names, :scope > path.fl", svg);

    const draw = () => {
      const zoomed = view !== whole;
      reset.hidden = !zoomed;
      extras.forEach((node) => { node.style.display = zoomed ? "none" : ""; });
      if (!zoomed) {
        frame.replaceChildren(...original.map((node) => node.cloneNode(true)));
        marks.forEach((mark, i) => {
          mark.style.display = "";
          mark.setAttribute("transform", places[i][0]);
          if (places[i][1]) mark.querySelector(".eb").setAttribute("d", places[i][1]);
        });
        return;
      }
      const lines = [];
      const room = Math.max(2, Math.min(8, Math.floor((right - left) / 62)));
      const choose = (axis, count) => (logs[axis] ? decades : ticks)(view[axis][0], view[axis][1], count);
      choose("y", 6).forEach((v) => {
        const y = place("y", v);
        lines.push(element("line", { x1: left, x2: right, y1: y, y2: y, class: "gr" }));
        lines.push(element("text", { x: left - 7, y: y + 4, "text-anchor": "end", class: "mu" }, label(flipped ? 100 - v : v)));
      });
      choose("x", room).forEach((v) => {
        const x = place("x", v);
        lines.push(element("line", { x1: x, x2: x, y1: top, y2: bottom, class: "gr" }));
        lines.push(element("text", { x, y: bottom + 16, "text-anchor": "middle", class: "mu" }, label(v)));
      });
      lines.push(element("path", { d: `M${left},${top}V${bottom}H${right}`, class: "ax", fill: "none" }));
      frame.replaceChildren(...lines);
      marks.forEach((mark) => {
        const x = place("x", +mark.dataset.x), y = place("y", +mark.dataset.y);
        const inside = x >= left && x <= right && y >= top && y <= bottom;
        mark.style.display = inside ? "" : "none";
        mark.setAttribute("transform", `translate(${x},${y})`);
        const bar = mark.querySelector(".eb");
        if (bar) {
          const low = Math.max(left, place("x", +mark.dataset.low)) - x;
          const high = Math.min(right, place("x", +mark.dataset.high)) - x;
          bar.setAttribute("d", `M${low},0H${high}M${low},-4v8M${high},-4v8`);
        }
      });
    };

    const box = document.createElement("div");
    box.className = "plotbox";
    svg.before(box);
    box.append(svg);
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Drag over a part of the plot to enlarge it.";
    const reset = document.createElement("button");
    reset.type = "button";
    reset.textContent = "Show all";
    reset.hidden = true;
    reset.addEventListener("click", () => { view = whole; draw(); });
    hint.append(reset);
    if (!svg.closest(".narrowonly")) box.after(hint);

    let start = null;
    const area = document.createElement("div");
    area.className = "zoom";
    const at = (event) => {
      const rect = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / rect.width;
      return {
        x: Math.max(left, Math.min(right, (event.clientX - rect.left) * scale)),
        y: Math.max(top, Math.min(bottom, (event.clientY - rect.top) * scale)),
        scale,
      };
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      start = at(event);
      event.preventDefault();
    });
    addEventListener("pointermove", (event) => {
      if (!start) return;
      const here = at(event), s = 1 / here.scale;
      if (!area.isConnected) box.append(area);
      Object.assign(area.style, {
        left: Math.min(start.x, here.x) * s + "px", top: Math.min(start.y, here.y) * s + "px",
        width: Math.abs(here.x - start.x) * s + "px", height: Math.abs(here.y - start.y) * s + "px",
      });
    });
    addEventListener("pointerup", (event) => {
      if (!start) return;
      const from = start, to = at(event);
      start = null;
      area.remove();
      if (Math.abs(to.x - from.x) < 8 || Math.abs(to.y - from.y) < 8) return;
      view = {
        x: [Math.min(from.x, to.x), Math.max(from.x, to.x)].map((x) => value("x", x)),
        y: [from.y, to.y].map((y) => value("y", y)).sort((a, b) => a - b),
      };
      draw();
    });
    svg.addEventListener("dblclick", () => { view = whole; draw(); });
  });
})();
