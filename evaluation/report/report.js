"use strict";
// Every table can be sorted by a click on a header, or with Tab and Enter: ascending, descending, as it was.
// A cell counts by the number it starts with ("0.523 ± 0.249", "+0.073*", "< 0.001"). Dashes stay last, and so do
// words in a column of numbers.
const NUMBER = /^[<>≤≥~]?\s*([+\-−]?\d+(?:\.\d+)?(?:e[+\-]?\d+)?)(?![\w.:\-])/i;
const ORDERS = ["none", "ascending", "descending"];

function keyOf(cell) {
  const text = cell.textContent.trim();
  const found = NUMBER.exec(text);
  if (text === "" || text === "-") return { text: null, number: null };
  if (!found) return { text, number: null };
  const number = Number(found[1].replace("−", "-"));
  return { text, number: text.startsWith("<") ? number * (1 - 1e-9) : number };
}

function sortRows(rows, column, order) {
  if (order === "none") return rows;
  const keyed = rows.map((row) => ({ row, key: keyOf(row.cells[column]) }));
  const words = keyed.filter(({ key }) => key.text !== null && key.number === null);
  const numbers = keyed.filter(({ key }) => key.number !== null);
  const isNumeric = numbers.length > words.length;
  const present = isNumeric ? numbers : keyed.filter(({ key }) => key.text !== null);
  const compare = (a, b) =>
    isNumeric ? a.key.number - b.key.number : a.key.text.localeCompare(b.key.text, "en", { numeric: true });
  present.sort((a, b) => (order === "ascending" ? compare(a, b) : compare(b, a)));
  return [...present, ...keyed.filter((entry) => !present.includes(entry))].map(({ row }) => row);
}

function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = ORDERS[(ORDERS.indexOf(header.getAttribute("aria-sort")) + 1) % ORDERS.length];
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", order);
      body.append(...sortRows(original, column, order));
    });
  });
}

document.querySelectorAll("table").forEach(makeSortable);
