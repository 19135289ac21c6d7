"use strict";

// Charts: a mark's title becomes a box at the pointer, at once and on touch too.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 8))}px`;
  tip.style.top = `${event.clientY + 16 + box.height < innerHeight ? event.clientY + 16 : event.clientY - box.height - 10}px`;
});

// Tables: a heading is a button that sorts, numbers by their first one, empty cells last.
const empty = (value) => value === "" || value === "-" || Number.isNaN(value);
function valueOf(cell) {
  return cell.classList.contains("number") ? parseFloat(cell.textContent.replaceAll(",", "")) : cell.textContent;
}
function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}
function sort(table, i, head) {
  const falls = head.getAttribute("aria-sort") === "ascending" || (!head.hasAttribute("aria-sort") && head.classList.contains("number"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [valueOf(a.cells[i]), valueOf(b.cells[i])];
    if (empty(x) || empty(y)) return empty(x) - empty(y);
    return (falls ? -1 : 1) * compare(x, y);
  });
  body.append(...rows);
}
for (const table of document.querySelectorAll("table:not([data-fixed])")) {
  if (table.rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, i, head));
  });
  if (table.rows.length > 18) table.parentNode.classList.add("high");
}

// Filters: words that a row must hold (cells, and the run's config as field=value), and lists of a column's values.
function filter(table, words, choices) {
  for (const row of table.tBodies[0].rows) {
    const text = `${row.textContent} ${row.dataset.words ?? ""}`.toLowerCase();
    const chosen = choices.every(([i, select]) => !select.value || row.cells[i].textContent === select.value);
    row.hidden = !(chosen && words.value.toLowerCase().split(/\s+/).every((word) => text.includes(word)));
    if (row.dataset.run === undefined) continue;
    for (const mark of document.querySelectorAll(`svg [data-run="${row.dataset.run}"]`)) mark.toggleAttribute("hidden", row.hidden);
  }
}
for (const table of document.querySelectorAll("table[data-search]")) {
  const bar = Object.assign(document.createElement("div"), { className: "filters" });
  const words = Object.assign(document.createElement("input"), { type: "search", placeholder: "words, or field=value" });
  const choices = [];
  const field = (name, input) => {
    const label = document.createElement("label");
    label.append(name, input);
    bar.append(label);
    input.addEventListener("input", () => filter(table, words, choices));
  };
  field("Filter", words);
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (head.dataset.choices === undefined) return;
    const values = [...new Set([...table.tBodies[0].rows].map((row) => row.cells[i].textContent))];
    if (values.length < 2) return;
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true })).map((v) => new Option(v, v)));
    choices.push([i, select]);
    field(head.textContent, select);
  });
  table.parentNode.before(bar);
}

// Paper has no folds.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
