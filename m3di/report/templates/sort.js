"use strict";
// Tables that may be ordered: a head becomes a button, aria-sort says how the rows lie. What is not known comes last.
const collator = new Intl.Collator("en", { numeric: true });

function keyOf(cell) {
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return collator.compare(one, other);
}

function order(table, heads, column, descending) {
  const holdsNumbers = heads[column].classList.contains("number");
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: keyOf(row.cells[column]) }));
  const isKnown = ({ key }) => (holdsNumbers ? typeof key === "number" : key !== "");
  const known = rows.filter(isKnown).sort((a, b) => compare(a.key, b.key) * (descending ? -1 : 1));
  const unknown = rows.filter((entry) => !isKnown(entry));
  table.tBodies[0].append(...known.concat(unknown).map(({ row }) => row));
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      order(table, heads, column, head.getAttribute("aria-sort") === "ascending");
    });
  });
  table.caption.append(" (press a column's head to order the rows by it)");
}
