"use strict";
// Tables are sorted by the number that each cell begins with: a click on a heading turns its order.
for (const table of document.querySelectorAll("table.settings")) {
  const body = table.tBodies[0], given = [...body.rows];
  for (const button of table.querySelectorAll("thead button")) {
    const heading = button.parentElement;
    // The plain run stays on top, and what was not measured at the bottom, whatever the order.
    const key = (row, turn) => {
      const value = parseFloat(row.cells[heading.cellIndex].textContent.replace("−", "-").replace("over ", ""));
      return [row.className === "plain" ? 0 : Number.isNaN(value) ? 2 : 1, turn * (value || 0)];
    };
    button.addEventListener("click", () => {
      const order = { none: "descending", descending: "ascending", ascending: "none" }[heading.ariaSort];
      for (const other of table.querySelectorAll("th[aria-sort]")) other.ariaSort = "none";
      heading.ariaSort = order;
      const turn = order === "ascending" ? 1 : -1;
      const compare = ([a, b], [c, d]) => a - c || b - d;
      body.append(...(order === "none" ? given : given.toSorted((a, b) => compare(key(a, turn), key(b, turn)))));
    });
  }
}
