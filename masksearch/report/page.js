"use strict";
// Sorts the tables and changes between light and dark; all else stands in the page as it is.
const UNITS = { minutes: 60, hours: 3600 };
const sortKey = (text) => {
  const found = /^[<+]?(-?[\d.]+)%?\s*(\w*)/.exec(text.replaceAll(",", ""));
  return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : text.toLowerCase();
};
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", title: "sort", textContent: head.textContent });
    head.replaceChildren(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[column].innerText.trim()), row]);
      rows.sort(([a], [b]) => down * (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
  });
}
const root = document.documentElement, theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
const paint = () => {
  root.toggleAttribute("data-dark", isDark());
  theme.textContent = isDark() ? "Light" : "Dark";
};
theme.hidden = false;
theme.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; paint(); };
dark.addEventListener("change", paint);
paint();
