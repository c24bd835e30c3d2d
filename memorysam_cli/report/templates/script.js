"use strict";
// Everything is readable without this script; it adds hovering, sorting, switching and flipping.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const dataOf = (root) => JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const short = (value) => value.toLocaleString("en", { maximumSignificantDigits: 5 });

  function theme() {
    const root = document.documentElement;
    const remember = (value) => { try { localStorage.setItem("memorysam-theme", value); } catch { /* a file may have no storage */ } };
    try { const kept = localStorage.getItem("memorysam-theme"); if (kept) root.dataset.theme = kept; } catch { /* as above */ }
    document.getElementById("theme").addEventListener("click", () => {
      const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
      remember(root.dataset.theme);
    });
  }

  function chart(figure) {
    const { width, lines, names } = dataOf(figure);
    const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), reading = figure.querySelector(".reading");
    const xs = [...new Set(lines.flat().map((point) => point[0]))].sort((a, b) => a - b);
    const places = new Map(lines.flat().map((point) => [point[0], point[2]]));
    let index = -1;
    const nearest = (line, x) => line.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    function show(at) {
      index = Math.max(0, Math.min(xs.length - 1, at));
      const x = xs[index];
      cursor.setAttribute("x1", places.get(x));
      cursor.setAttribute("x2", places.get(x));
      reading.textContent = `step ${x.toLocaleString("en")}: ` + lines.map((line, each) => {
        const point = nearest(line, x);
        return `${names[each]} ${short(point[1])}` + (point[0] === x ? "" : ` (step ${point[0].toLocaleString("en")})`);
      }).join(" · ");
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) / box.width * width;
      let best = 0;
      xs.forEach((x, each) => { if (Math.abs(places.get(x) - px) < Math.abs(places.get(xs[best]) - px)) best = each; });
      show(best);
    });
    svg.addEventListener("focus", () => { if (index < 0) show(xs.length - 1); });
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, PageUp: index - 10, PageDown: index + 10, Home: 0, End: xs.length - 1 }[event.key];
      if (to !== undefined) { event.preventDefault(); show(to); }
    });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    all("th button", table.tHead).forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex;
      const isText = head.dataset.sort === "text";
      const was = head.getAttribute("aria-sort");
      const isUp = was === "descending" || (was === null && isText);
      all("th", table.tHead).forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = isText ? (a, b) => key(a).localeCompare(key(b), "en", { numeric: true }) : (a, b) => Number(key(a)) - Number(key(b));
      const rows = [...body.rows], isKnown = (row) => isText || Number.isFinite(Number(key(row)));
      rows.filter(isKnown).sort((a, b) => isUp ? order(a, b) : order(b, a)).forEach((row) => body.append(row));
      rows.filter((row) => !isKnown(row)).forEach((row) => body.append(row));  // what has no value is never the best or the worst
    }));
  }

  function matrix(root) {
    const { counts, names, cell, left, top, hasText } = dataOf(root);
    const svg = root.querySelector("svg"), reading = root.querySelector(".reading"), here = svg.querySelector(".here");
    const cells = all(".cell", svg), texts = all(".v", svg);
    const size = names.length;
    const rows = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const columns = names.map((_, j) => counts.reduce((sum, row) => sum + row[j], 0));
    const total = rows.reduce((a, b) => a + b, 0);
    let mode = "row", at = [0, 0];
    const share = (i, j) => {
      const whole = mode === "row" ? rows[i] : mode === "column" ? columns[j] : total;
      return whole ? counts[i][j] / whole : 0;
    };
    function paint() {
      const most = mode === "total" ? Math.max(1e-9, ...counts.flatMap((row, i) => row.map((_, j) => share(i, j)))) : 1;
      for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
        const part = share(i, j), strength = part / most, n = i * size + j;
        cells[n].setAttribute("fill-opacity", strength.toFixed(3));
        if (hasText) {
          texts[n].textContent = part >= 0.005 ? String(Math.round(100 * part)) : "";
          texts[n].classList.toggle("on", strength > 0.67);
        }
      }
    }
    function tell(i, j) {
      at = [Math.max(0, Math.min(size - 1, i)), Math.max(0, Math.min(size - 1, j))];
      [i, j] = at;
      here.setAttribute("x", left + j * cell);
      here.setAttribute("y", top + i * cell);
      const of = { row: `of true ${names[i]}`, column: `of predicted ${names[j]}`, total: "of all pixels" }[mode];
      reading.textContent = `true ${names[i]}, predicted ${names[j]}: ${counts[i][j].toLocaleString("en")} pixels, ${(100 * share(i, j)).toFixed(2)} % ${of}`;
    }
    all("input", root).forEach((input) => input.addEventListener("change", () => { mode = input.value; paint(); tell(...at); }));
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const j = Math.floor(((event.clientX - box.left) * scale - left) / cell), i = Math.floor(((event.clientY - box.top) * scale - top) / cell);
      if (i >= 0 && j >= 0 && i < size && j < size) tell(i, j);
    });
    svg.addEventListener("focus", () => tell(...at));
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (move) { event.preventDefault(); tell(at[0] + move[0], at[1] + move[1]); }
    });
  }

  function gallery(root, number) {
    const scenes = dataOf(root), stage = root.querySelector(".stage"), slide = root.querySelector(".slide");
    const sides = { left: stage.querySelector(".left"), right: stage.querySelector(".right") };
    const divider = stage.querySelector(".divider"), told = root.querySelector(".scene");
    let at = 0;
    all("input[type=radio]", root).forEach((input) => { input.name += number; });  // two galleries on a page are two groups
    const groups = all(".layers", root);
    const chosen = { left: groups[0].querySelector(":checked").value, right: groups[1].querySelector(":checked").value };
    function show() {
      const scene = scenes[at];
      for (const [index, side] of ["left", "right"].entries()) {
        const has = (key) => scene.layers.find((layer) => layer.key === key);
        all("input", groups[index]).forEach((input) => { input.disabled = !has(input.value); });
        const layer = has(chosen[side]) ?? scene.layers[0];
        sides[side].src = layer.src;
        sides[side].alt = layer.title;
      }
      told.querySelector("bdi").replaceChildren(...scene.name.split(/(?<=[/_+])/).flatMap((part) => [part, document.createElement("wbr")]));
      told.querySelector("span").textContent = scene.caption;
      all(".picker button", root).forEach((button, index) => button.setAttribute("aria-pressed", String(index === at)));
    }
    function fit() {  // as wide as it can be while the whole of it and the slider stay in view
      const { naturalWidth, naturalHeight } = sides.left;
      if (naturalHeight) root.querySelector(".viewer").style.setProperty("--wide", `${Math.round(Math.min(720, 540 * naturalWidth / naturalHeight))}px`);
    }
    function divide(percent) {
      slide.value = percent;
      sides.right.style.clipPath = `inset(0 0 0 ${slide.value}%)`;
      divider.style.left = `${slide.value}%`;
    }
    groups.forEach((group, index) => group.addEventListener("change", (event) => {
      chosen[index ? "right" : "left"] = event.target.value;
      show();
    }));
    all(".picker button", root).forEach((button) => button.addEventListener("click", () => { at = Number(button.dataset.scene); show(); }));
    sides.left.addEventListener("load", fit);
    fit();
    show();  // which layers the first scene lacks
    slide.addEventListener("input", () => divide(slide.value));
    const drag = (event) => { const box = stage.getBoundingClientRect(); divide(100 * (event.clientX - box.left) / box.width); };
    stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
    stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  }

  function edges(box) {  // where more can be scrolled to, the style fades it
    const tell = () => {
      const sides = { left: box.scrollLeft > 1, right: box.scrollLeft + box.clientWidth < box.scrollWidth - 1 };
      box.dataset.more = Object.keys(sides).filter((side) => sides[side]).join(" ");
    };
    box.addEventListener("scroll", tell, { passive: true });
    new ResizeObserver(tell).observe(box);
    addEventListener("load", tell);
  }

  theme();
  all(".scroll, .matrix, .picker").forEach(edges);
  all("[data-chart]").forEach(chart);
  all("table[data-sortable]").forEach(sortable);
  all("[data-matrix]").forEach(matrix);
  all("[data-gallery]").forEach(gallery);
})();
