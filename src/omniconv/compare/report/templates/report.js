"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th[data-column]")];
  const sort = (head) => {
    const column = Number(head.dataset.column);
    const order = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.sort);
      if (x === "" || y === "") return (x === "") - (y === "");
      const numeric = head.dataset.kind === "number";
      return order * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
    };
    const rows = [...body.rows].sort(compare);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
    body.append(...rows);
  };
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
