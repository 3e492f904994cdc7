"use strict";
// The page's charts, tooltips, cards and tables. All that is shown comes from result.json.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const result = read("result"), specs = read("specs");
const tip = document.getElementById("tip"), card = document.getElementById("card");
const charts = new Map(); // id -> its data
const points = new Map(); // id -> {point, section, chart}
const views = new Map(); // id -> Vega's view
for (const section of result.sections) {
  const fronts = [section.chart, ...section.comparisons.map((each) => each.chart)];
  const others = [...section.volumes, ...section.comparisons.map((each) => each.differences)];
  for (const chart of [...fronts, ...others].filter(Boolean)) {
    charts.set(chart.id, { chart, section });
    for (const point of chart.points ?? []) points.set(point.id, { point, section, chart });
  }
}

// -- small pieces -------------------------------------------------------------------------------
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const brief = (value) => (value == null ? "-" : String(Number(value.toPrecision(4))));
function withInterval([mean, low, high]) {
  if (low == null) return brief(mean);
  return `${brief(mean)} [${brief(low)}${high == null ? " at least" : `, ${brief(high)}`}]`;
}
const LEADS = ["dense", "best hand-designed", "found", "named"]; // in the row that a page begins with
function listed(rows) {
  return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
function picture(point) {
  if (!point.picture) return "";
  const [rows, across] = [point.picture, point.picture[0].length];
  const wrapped = rows.length === 1 || across === 1; // no table of layers and heads: lines as in text
  const columns = wrapped ? Math.ceil(Math.sqrt(rows.length * across)) : across;
  const images = rows.flatMap((row, layer) => row.map((index, head) => {
    const where = rows.length * across > 1 ? `, layer ${layer}, head ${head}` : "";
    const source = `data:image/png;base64,${result.images[index]}`;
    return make("img", { src: source, alt: `${point.name}${where}: which keys each query keeps` });
  }));
  return make("div", { class: "picture", style: `grid-template-columns: repeat(${columns}, 1fr)` }, ...images);
}
function figures({ point, section, chart }) {
  const rows = [[chart.score.title, withInterval([point.score, point.low, point.high]) +
    (point.seeds > 1 ? `, ${point.seeds} seeds` : ", one seed")]];
  rows.push(["sparsity", `${point.sparsity.toFixed(1)}%`]);
  if (point.table_sparsity != null && Math.abs(point.table_sparsity - point.sparsity) > 0.05)
    rows.push(["of the table", `${point.table_sparsity.toFixed(1)}%`]);
  for (const { name, title } of section.costs)
    if (name !== "density" && point.costs[name] != null)
      rows.push([title, name === "latency" ? brief(point.costs[name]) : percent(point.costs[name])]);
  return rows;
}
const tasks = ({ point, chart }) => Object.entries(point.values)
  .filter(([name]) => name !== chart.score.name && !(name in point.costs));

// -- tooltip and card ---------------------------------------------------------------------------
function showTip(found, x, y) {
  const { point } = found, told = tasks(found);
  tip.replaceChildren(picture(point), make("b", {}, point.name), make("br"),
    make("code", {}, point.short),
    listed([...figures(found), ...told.slice(0, 9).map(([name, value]) => [name, withInterval(value)]),
      ...(told.length > 9 ? [["and", `${told.length - 9} more`]] : [])]));
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, y + 14 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 14 : y + 14)}px`;
}
function copied(text, title = "copy") {
  const button = make("button", { type: "button", class: "copy" }, title);
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); } catch { // a file's page may have no clipboard
      const field = make("textarea", {}, text);
      card.append(field); field.select(); document.execCommand("copy"); field.remove();
    }
    button.textContent = "copied";
  };
  return button;
}
function commands({ point, section }) {
  const judge = section.evaluate
    ? section.evaluate.replace("MASK", () => point.place)
    : `ms.compare({"it": masks.parse(${point.place})}, evaluator, run="runs/again", seeds=range(5))`;
  return [["Evaluate it again", judge],
    ["Attach it to a model", `masksearch attach MODEL ${point.place} --out FOLDER`],
    ["Export it", `masksearch export ${point.place} --out mask.json`]];
}
function openCard(id) {
  const found = points.get(id);
  if (!found) return;
  const { point } = found;
  tip.hidden = true;
  card.querySelector("h2").textContent = point.name;
  card.querySelector("div").replaceChildren(
    make("div", { class: "sides" },
      make("div", {}, picture(point) || make("p", { class: "note" }, "No picture of this mask is on this page.")),
      make("div", {}, copied(point.expression, "copy expression"), make("code", {}, point.expression),
        listed([...figures(found), ...tasks(found).map(([name, value]) => [name, withInterval(value)])]))),
    ...commands(found).flatMap(([title, line]) =>
      [make("h3", {}, title), make("pre", {}, copied(line), line)]));
  card.showModal();
}
card.querySelector(".close").onclick = () => card.close();
card.onclick = (event) => { if (event.target === card) card.close(); };

// -- charts -------------------------------------------------------------------------------------
const isDark = () => (document.documentElement.dataset.theme ||
  (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
async function draw(id) {
  const place = document.getElementById(id), { chart } = charts.get(id), dark = isDark();
  const text = JSON.stringify(specs[id]);
  const spec = JSON.parse(dark ? text.replaceAll("#222222", "#e0e0e0") : text);
  spec.datasets = Object.fromEntries(["points", "lines", "levels"].map((name) => [name, chart[name] ?? []]));
  const [ink, line] = dark ? ["#c8cbd2", "#3a3e46"] : ["#3a3a40", "#e2e2e6"];
  Object.assign(spec.config, {
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: ink, tickColor: ink, titleFontWeight: 500,
      labelFontSize: 12, titleFontSize: 12, labelOverlap: true, labelSeparation: 6 },
    rule: { color: ink }, text: { color: ink },
  });
  const narrow = { labelLimit: 0.42 * place.clientWidth, labelFontSize: 11, labelLineHeight: 12, labelOverlap: false,
    labelExpr: "split(replace(datum.label, ' minus ', ' minus\\n'), '\\n')" }; // in two lines
  if (chart.kind === "differences" && place.clientWidth < 700)
    for (const { encoding } of spec.layer) Object.assign(encoding.y?.axis ?? {}, narrow);
  const tooltip = (handler, event, item, value) => {
    if (value == null || value === "") return void (tip.hidden = true);
    const found = points.get(item.datum.id);
    if (found) return showTip(found, event.clientX, event.clientY);
    tip.replaceChildren(listed(Object.entries(value)));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 14}px`;
  };
  const actions = { export: true, source: false, compiled: false, editor: false };
  views.get(id)?.finalize();
  const { view } = await vegaEmbed(place, spec, { renderer: "svg", tooltip, actions });
  views.set(id, view);
  view.addResizeListener(() => requestAnimationFrame(() => placeLabels(place)));
  placeLabels(place);
  if (chart.kind === "front") {
    view.addEventListener("click", (event, item) => item?.datum?.id && openCard(item.datum.id));
    setBudget(place.parentElement, chart, view);
  }
}
function placeLabels(place) { // beside its mark, on no other label and on no mark, but for want of room in a wide chart
  const box = (each) => each.getBoundingClientRect();
  const apart = (a) => (b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  const marks = [...place.querySelectorAll(".mark-symbol path")].map(box), taken = [];
  const { left, right } = box(place.querySelector(".background"));
  for (const label of place.querySelectorAll(".role-mark.mark-text text")) {
    const aside = box(label).width / 2 + 10, shifts = [[0, 0], [0, 26], [aside, 13], [-aside, 13], [aside, 26], [aside, 0], [-aside, 0]];
    const moved = ([dx, dy]) => (label.setAttribute("dx", dx), label.setAttribute("dy", dy), box(label));
    const fits = (at) => at.left >= left && at.right <= right + 1 && taken.every(apart(at));
    const free = shifts.filter((shift) => fits(moved(shift)));
    const best = free.find((shift) => marks.every(apart(moved(shift)))) ?? (right - left > 500 ? free[0] : null);
    label.style.visibility = best ? "" : "hidden";
    if (best) taken.push(moved(best));
  }
}
function setBudget(place, chart, view) {
  const form = place.querySelector("form.budget"), { cost, budget } = form.elements;
  const sign = chart.score.goal === "higher" ? 1 : -1;
  const known = (point) => point.costs[cost.value];
  form.hidden = !cost.options.length;
  const apply = () => {
    const most = Number(budget.value) * (1 + 1e-9);
    view.signal("cost", cost.value).signal("budget", most).run();
    form.querySelector("output").textContent = cost.value === "latency" ? `${brief(most)} ms` : percent(most);
    const best = chart.groups.map((group) => chart.points
      .filter((point) => point.group === group.name && !point.nothing && known(point) <= most)
      .reduce((a, b) => (a && sign * (a.score - b.score) >= 0 ? a : b), null)).filter(Boolean);
    best.sort((a, b) => sign * (b.score - a.score));
    form.querySelector(".best").replaceChildren(...best.map((point) => {
      const button = make("button", { type: "button" }, point.name);
      button.onclick = () => openCard(point.id);
      return make("li", {}, `${point.group}: `, button, brief(point.score));
    }));
  };
  const range = () => {
    const values = chart.points.map(known).filter((value) => value != null);
    [budget.min, budget.max] = [Math.min(...values), Math.max(...values)];
    budget.value = budget.max;
    apply();
  };
  budget.oninput = apply;
  cost.onchange = range;
  budget.dataset.set ? apply() : range();
  budget.dataset.set = "yes";
}
function walk(event, id) { // arrow keys go along the points, Enter opens one
  const { chart } = charts.get(id), view = views.get(id), place = document.getElementById(id);
  const order = chart.points.filter((point) => point.saved > 0).sort((a, b) => a.saved - b.saved);
  const at = order.findIndex((point) => point.id === view.signal("here"));
  if (event.key === "Enter" && at >= 0) return openCard(order[at].id);
  if (event.key === "Escape") return void (tip.hidden = true);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const point = order[(at + step + order.length) % order.length], box = place.getBoundingClientRect();
  view.signal("here", point.id).run();
  const [x, y] = view.origin();
  showTip(points.get(point.id), box.left + x + (view.scale("x")(point.saved) || 0),
    Math.max(0, box.top) + y + view.scale("y")(point.score));
}
async function drawAll() {
  document.documentElement.toggleAttribute("data-dark", isDark());
  for (const id of charts.keys()) await draw(id);
  document.body.dataset.drawn = "yes";
}

// -- the rest of the page -----------------------------------------------------------------------
for (const place of document.querySelectorAll(".chart[data-kind=front]")) {
  place.addEventListener("keydown", (event) => walk(event, place.id));
  place.addEventListener("blur", () => { tip.hidden = true; });
}
for (const place of document.querySelectorAll(".gallery")) { // each mask once
  const section = result.sections[place.dataset.section], seen = new Set();
  const lead = place.classList.contains("lead");
  const fronts = [...section.comparisons.map((each) => each.chart), section.chart].filter(Boolean);
  const sparser = (points) => lead ? [...points].sort((a, b) => a.sparsity - b.sparsity) : points;
  for (const chart of lead ? fronts.slice(0, 1) : fronts) for (const point of sparser(chart.points)) {
    const key = point.fingerprint || point.id, other = chart === section.chart && !point.front;
    if (!point.picture || (lead ? !point.lead : seen.has(key) || other)) continue;
    seen.add(key);
    const about = `${point.sparsity.toFixed(1)}% sparse${lead ? `, ${point.short}` : ""}`, name = make("b", {}, point.name);
    const role = point.lead === point.name ? "" : `${point.lead}: `;
    const told = lead ? [role, name, make("br"), `${chart.score.title} `,
      withInterval([point.score, point.low, point.high])] : [point.name];
    const button = make("button", { type: "button", "data-card": point.id },
      picture(point), ...told, make("br"), about);
    place.append(make("li", { class: `stands-${LEADS.indexOf(point.lead)}` }, button));
  }
  if (lead) place.append(...[...place.children].sort((a, b) => a.className < b.className ? -1 : 1));
}
const named = new Map([...points.values()].reverse().map(({ point }) => [point.name, point.id]));
for (const row of document.querySelectorAll("tbody tr")) { // a mask's name opens its card
  const [first, second] = row.cells, text = first.querySelector("span")?.firstChild;
  const name = text?.textContent.trim().replace(/^baseline /, "");
  const heads = [first, second].map((cell) => cell?.dataset.head);
  const id = heads[0] === "mask" ? named.get(name)
    : heads[1] === "trial" ? named.get(`${name} ${second.textContent.trim()}`) ?? named.get(name) : null;
  if (id && text) {
    const button = make("button", { type: "button", "data-card": id });
    text.replaceWith(button);
    button.append(text);
  }
}
for (const button of document.querySelectorAll("[data-card]")) { // masks break behind a bracket, not within a word
  const texts = document.createTreeWalker(button, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll("([", "([\u200b");
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-card]");
  if (button) openCard(button.dataset.card);
});
const UNITS = { minutes: 60, hours: 3600 };
const sortKey = (text) => {
  const found = /^[<+]?(-?[\d.]+)%?\s*(\w*)/.exec(text.replaceAll(",", ""));
  return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : text.toLowerCase();
};
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button", title: "sort" }, head.textContent);
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
const theme = document.getElementById("theme");
const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.hidden = false;
theme.onclick = () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  label(); drawAll();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { label(); drawAll(); });
label();
drawAll();
