"use strict";
(() => {
  const tips = JSON.parse(document.getElementById("tips").textContent);
  const tip = document.getElementById("tip");
  const NEAR = 18;

  // Texts go in as text, never as HTML: names of settings and prompts are what a user typed.
  function showTip(lines, x, y) {
    tip.replaceChildren(...lines.map((line, index) => {
      const element = document.createElement(index ? "span" : "b");
      element.textContent = line;
      return index > 1 ? [document.createElement("br"), element] : [element];
    }).flat());
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
  }
  function hideTip() {
    tip.hidden = true;
    document.querySelectorAll(".dot.near").forEach((dot) => dot.classList.remove("near"));
  }

  function charts() {
    document.querySelectorAll(".part .chart").forEach((chart) => {
      const texts = tips[chart.closest(".part").dataset.part];
      const centre = (dot) => {
        const box = dot.getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];
      };
      const visible = () => [...chart.querySelectorAll("[data-f]:not(.off) [data-i]")];
      const show = (dot) => {
        hideTip();
        dot.classList.add("near");
        showTip(texts[dot.dataset.i], ...centre(dot));
      };
      chart.addEventListener("pointermove", (event) => {
        let best = null, least = NEAR;
        for (const dot of visible()) {
          const [x, y] = centre(dot);
          const distance = Math.hypot(event.clientX - x, event.clientY - y);
          if (distance <= least) [best, least] = [dot, distance];
        }
        if (best) show(best); else hideTip();
      });
      chart.addEventListener("pointerleave", hideTip);
      chart.addEventListener("blur", hideTip);
      let place = -1;
      chart.addEventListener("keydown", (event) => {
        const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const dots = visible().sort((a, b) => centre(a)[0] - centre(b)[0]);
        if (event.key === "Escape") hideTip();
        if (!turn || !dots.length) return;
        event.preventDefault();
        place = (place + turn + dots.length) % dots.length;
        show(dots[place]);
      });
    });
  }

  function legends() {
    document.querySelectorAll(".legend").forEach((legend) => {
      const part = legend.closest(".part");
      const buttons = [...legend.querySelectorAll("[data-f]")];
      const marks = (button) => part.querySelectorAll(`.chart [data-f="${button.dataset.f}"]`);
      const set = (button, on) => {
        button.setAttribute("aria-pressed", String(on));
        marks(button).forEach((mark) => mark.classList.toggle("off", !on));
      };
      const light = (button, on) => {
        part.classList.toggle("dim", on && button.getAttribute("aria-pressed") === "true");
        marks(button).forEach((mark) => mark.classList.toggle("lit", on));
      };
      for (const button of buttons) {
        button.addEventListener("click", () => {
          light(button, false);
          set(button, button.getAttribute("aria-pressed") !== "true");
        });
        for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => light(button, true));
        for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => light(button, false));
      }
      legend.querySelector("[data-all]")?.addEventListener("click", () => buttons.forEach((b) => set(b, true)));
      const only = legend.querySelector("[data-only]");
      only?.addEventListener("click", () => buttons.forEach((b) => set(b, b.dataset.f === only.dataset.only)));
    });
  }

  function tables() {
    document.querySelectorAll("table.settings").forEach((table) => {
      const body = table.tBodies[0];
      const given = [...body.rows];
      table.querySelectorAll("thead th button").forEach((button) => {
        const heading = button.parentElement;
        button.addEventListener("click", () => {
          const order = { none: "descending", descending: "ascending", ascending: "none" }[heading.ariaSort];
          table.querySelectorAll("thead th[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
          heading.setAttribute("aria-sort", order);
          const turn = order === "ascending" ? 1 : -1;
          // The plain run stays on top, and what was not measured at the bottom, whatever the order.
          const key = (row) => {
            const value = row.cells[heading.cellIndex].dataset.v;
            return [row.classList.contains("plain-row") ? 0 : value === undefined ? 2 : 1, turn * (value ?? 0)];
          };
          const compare = (a, b) => key(a)[0] - key(b)[0] || (key(a)[1] - key(b)[1]);
          body.append(...(order === "none" ? given : [...given].sort(compare)));
        });
      });
    });
  }

  function strips() {
    document.querySelectorAll(".strip").forEach((strip) => {
      const values = strip.dataset.w.split(",");
      const name = strip.parentElement.querySelector(".label").textContent;
      strip.addEventListener("pointermove", (event) => {
        const box = strip.getBoundingClientRect();
        const step = Math.min(values.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * values.length)));
        showTip([name, `step ${step} of 0 to ${values.length - 1}: ${values[step]}`], event.clientX, event.clientY);
      });
      strip.addEventListener("pointerleave", hideTip);
    });
  }

  charts();
  legends();
  tables();
  strips();
  addEventListener("scroll", hideTip, { passive: true });
})();
