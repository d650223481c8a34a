"use strict";
// A cell of numbers holds its value in data-value, empty where it is missing.
function sortBy(head) {
  const { cellIndex } = head, body = head.closest("table").tBodies[0];
  const cells = [...body.rows].map((row) => ({ row, cell: row.cells[cellIndex] }));
  const numeric = cells.some(({ cell }) => "value" in cell.dataset);
  const value = ({ cell }) => numeric ? cell.dataset.value : cell.textContent.trim();
  const before = head.getAttribute("aria-sort");
  const sign = before === "ascending" || (before === null && numeric) ? -1 : 1;
  cells.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    if (!one || !other) return !one - !other;
    return sign * (numeric ? one - other : one.localeCompare(other, "en", { numeric: true }));
  });
  body.append(...cells.map(({ row }) => row));
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
}
for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(head));
  head.append(button);
}
