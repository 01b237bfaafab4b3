"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th[data-column]")];
  const start = [...body.rows];
  const sort = (head) => {
    const column = Number(head.dataset.column);
    const numeric = head.dataset.kind === "number";
    const before = head.getAttribute("aria-sort");
    const falling = before ? before === "ascending" : numeric;
    const compare = (a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.sort);
      if (x === "" || y === "") return (x === "") - (y === "");
      return (falling ? -1 : 1) * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
    };
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.append(...[...start].sort(compare));
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
