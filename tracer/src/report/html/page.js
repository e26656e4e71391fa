"use strict";
// Everything that comes from the target is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

// Numbers as people read them.
const count = (n) => n.toLocaleString("en");
const bytes = (n) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0, size = Math.abs(n);
  while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit++; }
  return (n < 0 ? "-" : "") + (unit ? size.toFixed(1) : size) + " " + units[unit];
};
const change = (n) => (n < 0 ? "" : "+") + bytes(n);
const span = (ns) => {
  const s = Math.floor(ns / 1e9), two = (n) => String(n).padStart(2, "0");
  if (s < 1) return Math.floor(ns / 1e6) + "ms";
  if (s < 60) return s + "s";
  if (s < 3600) return Math.floor(s / 60) + "m" + two(s % 60) + "s";
  if (s < 86400) return Math.floor(s / 3600) + "h" + two(Math.floor(s / 60) % 60) + "m";
  return Math.floor(s / 86400) + "d" + two(Math.floor(s / 3600) % 24) + "h";
};
const percent = (part, whole) => (whole ? 100 * part / whole : 0).toFixed(1) + " %";
const amount = (n) => weight === "bytes" ? bytes(n) : count(n) + (n === 1 ? " block" : " blocks");

const shape = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};

// What stands between backquotes is code.
const code = (text) => text.split("`").map((text, i) => i % 2 ? element("code", { textContent: text }) : text);

// The head of the page.
document.title = data.headline;
$("headline").textContent = data.headline;
$("headline").classList.toggle("alone", !data.verdict);
if (data.verdict) {
  const said = data.verdict.summary;
  $("verdict").append(...code(said.charAt(0).toUpperCase() + said.slice(1)));
  $("verdict").classList.toggle("leaking", data.verdict.leaking === true);
  $("verdict").hidden = false;
}
$("facts").append(...data.facts.map((fact) => element("li", { textContent: fact })));
$("footer").textContent = data.footer;
if (data.trust.length) {
  $("trust").append(...data.trust.map((text) => element("pre", { textContent: text })));
  $("trust").hidden = false;
}

// Who is to blame.
if (data.causes.length) {
  const whole = data.causes.reduce((sum, cause) => sum + cause.weight_bytes, 0);
  for (const cause of data.causes.slice(0, 20)) {
    const figures = [bytes(cause.weight_bytes) + (cause.standard_error_bytes ? " ± " + bytes(2 * cause.standard_error_bytes) : ""), percent(cause.weight_bytes, whole), count(cause.outstanding_objects),
      count(cause.stacks) + (cause.processes > 1 ? ` of ${count(cause.processes)} processes` : ""), Math.round((cause.growth_bytes_per_second || 0) * 60) === 0 ? "" : change(Math.round(cause.growth_bytes_per_second * 60)) + "/min"];
    const where = element("td", { className: "where" }, cause.first_touch ? "memory first touched by " : "", element("code", { textContent: cause.place }));
    if (cause.called_from) where.append(" called from ", element("code", { textContent: cause.called_from }));
    else if (cause.below) where.append(" below ", element("code", { textContent: cause.below }));
    if (cause.by) where.append(" (by ", ...cause.by.flatMap((by, i) => [...(i ? [" → "] : []), element("code", { textContent: by })]), ")");
    $("causes").querySelector("tbody").append(element("tr", { className: cause.verdict === "leaking" ? "leaking-row" : "" },
      ...figures.map((text, i) => element("td", { textContent: text, className: "number" + (i === 1 || i === 2 || i === 3 ? " wide" : "") })),
      element("td", { textContent: cause.verdict.replace("_", " "), className: cause.verdict === "leaking" ? "leaking" : "" }), where));
  }
  $("causes").hidden = false;
}

// Where the memory went.
const partNames = { native: "native (malloc)", mapping: "mappings", managed: "managed heap", allocator: "allocator retained", file: "files", stack: "thread stacks", unexplained: "unexplained" };
const partColors = { native: "--native", mapping: "--libc", managed: "--jit", allocator: "--allocator", file: "--files", stack: "--kernel", unexplained: "--unknown" };
if (data.memory && data.memory.rss_before_bytes !== undefined && data.memory.rss_after_bytes !== undefined) {
  const { rss_before_bytes: before, rss_after_bytes: after } = data.memory;
  const parts = (data.memory.parts || []).filter((part) => part.before_bytes || part.after_bytes);
  $("rss").textContent = `${bytes(before)} → ${bytes(after)}, ${change(after - before)}`;
  const moments = [["before", "before_bytes", before], ["after", "after_bytes", after]];
  const sum = (key) => parts.reduce((sum, part) => sum + Math.max(0, part[key]), 0);
  const most = Math.max(1, ...moments.map(([, key]) => sum(key)));
  for (const [title, key, size] of moments) {
    const bar = element("div", { className: "bar" }, ...parts.map((part) => {
      const box = element("div", { title: `${partNames[part.part]}: ${bytes(part[key])}` });
      box.style.cssText = `background:var(${partColors[part.part]});width:${100 * Math.max(0, part[key]) / most}%`;
      return box;
    }));
    $("bars").append(element("span", { textContent: title, className: "dim" }), bar, element("span", { textContent: bytes(size), className: "size" }));
  }
  for (const part of parts) {
    const color = `var(${partColors[part.part]})`;
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = color;
    const cells = [bytes(part.before_bytes), bytes(part.after_bytes), change(part.after_bytes - part.before_bytes)];
    $("parts").tBodies[0].append(element("tr", {}, element("td", {}, swatch, partNames[part.part] + (part.runtime ? ` (${part.runtime})` : "")),
      ...cells.map((text) => element("td", { textContent: text, className: "number" })), element("td", { textContent: (part.estimated ? "estimate: " : "") + (part.note || "") })));
  }
  $("bars").hidden = $("parts").hidden = !parts.length;
  $("bars").style.display = parts.length ? "" : "none";
  $("bars").setAttribute("aria-label", "Parts of the resident memory at the end: " + parts.map((part) => `${partNames[part.part]} ${bytes(part.after_bytes)}`).join(", "));
  $("memory").hidden = false;
}

// Over time.
const powersOfTwo = Array.from({ length: 63 }, (_, i) => 2 ** i);
const times = [.01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200]
  .map((seconds) => Math.round(seconds * 1e9)).concat(Array.from({ length: 20 }, (_, i) => 86400e9 * 2 ** i));
// Round numbers from 0 to the most, at the smallest of the steps that makes no more than so many.
function ticks(most, number, steps) {
  const step = steps.find((step) => most / step <= number) || most;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}
function plot() {
  const lines = [["resident memory", "rss_bytes", "--accent"], ["outstanding", "outstanding_bytes", "--alarm"], ["managed heap", "managed_bytes", "--jit"]]
    .filter(([, key]) => data.timeline.some((point) => point[key] !== undefined));
  const [width, height, left, bottom, top] = [Math.max(320, $("plot").clientWidth), 260, 80, 24, 10];
  const last = data.timeline[data.timeline.length - 1].t_ns || 1;
  const most = Math.max(1, ...data.timeline.flatMap((point) => lines.map(([, key]) => point[key] || 0)));
  const x = (t) => left + (width - left - 10) * t / last, y = (n) => height - bottom - (height - bottom - top) * n / most;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": lines.map(([name, key]) => `${name} from ${bytes(data.timeline[0][key] || 0)} to ${bytes(data.timeline[data.timeline.length - 1][key] || 0)}`).join(", ") });
  for (const size of ticks(most, 4, powersOfTwo)) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - 10, y1: y(size), y2: y(size) }),
      shape("text", { x: left - 6, y: y(size) + 4, "text-anchor": "end" }, bytes(size)));
  }
  for (const time of ticks(last, width < 600 ? 3 : 6, times)) {
    const anchor = time === 0 ? "start" : x(time) > width - 40 ? "end" : "middle";
    svg.append(shape("text", { x: x(time), y: height - 6, "text-anchor": anchor }, time ? span(time) : "0"));
  }
  for (const [, key, color] of lines) {
    const points = data.timeline.filter((point) => point[key] !== undefined);
    svg.append(shape("path", { d: "M" + points.map((point) => `${x(point.t_ns).toFixed(1)} ${y(point[key]).toFixed(1)}`).join("L"), style: `stroke:var(${color})` }));
  }
  const key = element("div", { className: "key" }, ...lines.map(([name, , color]) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = `var(${color})`;
    return element("span", {}, swatch, name);
  }));
  $("plot").replaceChildren(svg, key);
}
$("timeline").hidden = data.timeline.length < 2;
if (!$("timeline").hidden) {
  plot();
  addEventListener("resize", plot);
}

// The tree: node 0 is the root, and what is below a node comes right after it.
const { depth, name, names } = data.tree;
const nodes = depth.length;
const parent = new Int32Array(nodes), way = [0];
for (let i = 1; i < nodes; i++) {
  way[depth[i]] = i;
  parent[i] = way[depth[i] - 1];
}
const totals = { bytes: data.tree.bytes.slice(), objects: data.tree.objects.slice() };
const first = new Int32Array(nodes).fill(-1), next = new Int32Array(nodes).fill(-1);
for (let i = nodes - 1; i > 0; i--) {
  for (const total of Object.values(totals)) total[parent[i]] += total[i];
  next[i] = first[parent[i]];
  first[parent[i]] = i;
}
const children = (i) => {
  const list = [];
  for (let child = first[i]; child >= 0; child = next[child]) list.push(child);
  return list;
};
const label = (i) => i ? names[name[i]].text : "all";

// The flame graph.
const graph = $("graph");
const ROW = 17, NARROWEST = 1.5;
let weight = data.by_objects ? "objects" : "bytes", root = 0, matches = null, boxes = new Map();

function draw(focus) {
  const total = totals[weight], width = graph.clientWidth;
  const ancestors = [];
  for (let i = root; i; i = parent[i]) ancestors.push(parent[i]);
  const drawn = [];
  let rows = 0;
  ancestors.forEach((i) => drawn.push([i, 0, width]));
  const pending = total[root] ? [[root, 0, width]] : [];
  while (pending.length) {
    const [i, left, wide] = pending.pop();
    drawn.push([i, left, wide]);
    rows = Math.max(rows, depth[i] + 1);
    let at = left;
    for (const child of children(i).sort((a, b) => total[b] - total[a])) {
      const childWidth = wide * total[child] / total[i];
      if (childWidth < NARROWEST) break;
      pending.push([child, at, childWidth]);
      at += childWidth;
    }
  }
  boxes = new Map();
  const fragment = document.createDocumentFragment();
  for (const [i, left, wide] of drawn) {
    const box = element("div", { textContent: wide > 20 ? label(i) : "", title: describe(i), tabIndex: -1 });
    box.setAttribute("role", "button");
    box.setAttribute("aria-label", describe(i));
    box.dataset.node = i;
    box.style.cssText = `left:${left}px;width:${wide}px;top:${(data.icicle ? depth[i] : rows - 1 - depth[i]) * ROW}px;background:var(--${i ? names[name[i]].hue.toLowerCase() : "process"})`;
    box.classList.toggle("ancestor", depth[i] < depth[root]);
    box.classList.toggle("match", Boolean(matches && i && matches[name[i]]));
    boxes.set(i, box);
    fragment.append(box);
  }
  graph.replaceChildren(fragment);
  graph.style.height = `${Math.max(1, rows) * ROW}px`;
  if (!total[root]) graph.textContent = "Nothing allocated in this window is still outstanding.";
  const entry = boxes.get(root);
  if (entry) entry.tabIndex = 0;
  if (focus && entry) entry.focus();
  $("reset").disabled = root === 0;
}

function describe(i) {
  const total = totals[weight];
  const exact = weight === "bytes" && total[i] >= 1024 ? ` = ${count(total[i])} bytes` : "";
  const place = i ? names[name[i]].place : "";
  return `${label(i)}${place ? ` (${place})` : ""}: ${amount(total[i])}${exact}, ${percent(total[i], total[0])}`;
}

function zoom(i, focus) { root = i; draw(focus); }

const nodeOf = (event) => event.target.dataset.node === undefined ? null : Number(event.target.dataset.node);
graph.addEventListener("click", (event) => { if (nodeOf(event) !== null) zoom(nodeOf(event), true); });
for (const kind of ["mouseover", "focusin"]) {
  graph.addEventListener(kind, (event) => { if (nodeOf(event) !== null) $("details").textContent = describe(nodeOf(event)); });
}
graph.addEventListener("keydown", (event) => {
  const i = nodeOf(event);
  if (i === null) return;
  const siblings = i ? children(parent[i]).filter((sibling) => boxes.has(sibling)).sort((a, b) => totals[weight][b] - totals[weight][a]) : [];
  const [up, down] = data.icicle ? ["ArrowDown", "ArrowUp"] : ["ArrowUp", "ArrowDown"];
  const target = {
    [up]: () => children(i).filter((child) => boxes.has(child)).sort((a, b) => totals[weight][b] - totals[weight][a])[0],
    [down]: () => i ? parent[i] : undefined,
    ArrowLeft: () => siblings[siblings.indexOf(i) - 1],
    ArrowRight: () => siblings[siblings.indexOf(i) + 1],
  }[event.key];
  if (target) {
    const box = boxes.get(target());
    if (box) box.focus();
  } else if (event.key === "Enter" || event.key === " ") {
    zoom(i, true);
  } else {
    return;
  }
  event.preventDefault();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && root) zoom(0, graph.contains(document.activeElement)); });
$("reset").addEventListener("click", () => zoom(0));
addEventListener("resize", () => draw());
for (const input of document.querySelectorAll("input[name=weight]")) {
  input.checked = input.value === weight;
  input.addEventListener("change", () => { weight = input.value; draw(); search(); });
}

function search() {
  const text = $("search").value;
  let pattern = null;
  try { pattern = text ? new RegExp(text, "i") : null; $("search").setCustomValidity(""); }
  catch { $("search").setCustomValidity("no regular expression"); $("matched").textContent = "not a regular expression"; return; }
  matches = pattern && names.map((entry) => pattern.test(entry.text) || pattern.test(entry.place));
  if (matches) {
    // What is below a match is part of it.
    const inside = new Uint8Array(nodes);
    let sum = 0;
    for (let i = 1; i < nodes; i++) {
      inside[i] = inside[parent[i]] || matches[name[i]];
      if (inside[i] && !inside[parent[i]]) sum += totals[weight][i];
    }
    $("matched").textContent = `matched ${amount(sum)}, ${percent(sum, totals[weight][0])}`;
  } else {
    $("matched").textContent = "";
  }
  draw();
  table();
}
$("search").addEventListener("input", search);

// The table.
const PAGE = 100;
let shown = PAGE, sorted = { key: data.by_objects ? "objects" : "weight", descending: true };
const hasHistory = data.stacks.some((stack) => stack.history.length > 1);

// How a stack grew, as a line.
function sparkline(stack) {
  const sizes = stack.history;
  if (sizes.length < 2) return "";
  const most = Math.max(1, ...sizes);
  const line = sizes.map((size, i) => `${(88 * i / (sizes.length - 1)).toFixed(1)} ${(19 - 18 * size / most).toFixed(1)}`).join("L");
  const label = `from ${bytes(sizes[0])} to ${bytes(sizes[sizes.length - 1])}, at most ${bytes(most)}`;
  const svg = shape("svg", { viewBox: "0 0 88 20", preserveAspectRatio: "none", class: "spark", role: "img", "aria-label": label });
  svg.append(shape("title", {}, label), shape("path", { class: "below", d: `M0 20L${line}L88 20Z` }), shape("path", { d: "M" + line }));
  return svg;
}
const columns = [
  // Of an estimate with two standard errors, as in the headline.
  ["Weight", "weight", (stack) => bytes(stack.weight) + (stack.error ? " ± " + bytes(2 * stack.error) : ""), true],
  ["Share", "weight", (stack) => percent(stack.weight, totals.bytes[0]), true, true],
  ["Blocks", "objects", (stack) => count(stack.objects), true, true],
  ["Oldest", "age", (stack) => stack.age === null ? "" : span(stack.age), true, true],
  ...(hasHistory ? [["History", "growth", sparkline, false]] : []),
  ["Growth", "growth", (stack) => Math.round((stack.growth || 0) * 60) === 0 ? "" : change(Math.round(stack.growth * 60)) + "/min", true, true],
  ["Verdict", "verdict", (stack) => (stack.verdict || "").replace("_", " "), false, true],
  ["Api", "api", (stack) => stack.api, false, true],
];
const path = (stack) => {
  const list = [];
  for (let i = stack.node; i; i = parent[i]) list.push(names[name[i]]);
  return list;
};
const head = document.querySelector("#stacks thead tr");
for (const [title, key, , number, wide] of columns) {
  const button = element("button", { type: "button", textContent: title });
  button.addEventListener("click", () => {
    sorted = { key, descending: sorted.key === key ? !sorted.descending : number };
    table();
  });
  const cell = element("th", { scope: "col", className: (number ? "number" : "") + (wide ? " wide" : "") }, button);
  cell.dataset.key = key;
  head.append(cell);
}
head.append(element("th", { scope: "col", textContent: "Allocated by" }));

function table() {
  const { key, descending } = sorted;
  const value = (stack) => stack[key] === null ? (typeof stack.api === "string" && key === "verdict" ? "" : -Infinity) : stack[key];
  let stacks = data.stacks.slice();
  if (matches) stacks = stacks.filter((stack) => { for (let i = stack.node; i; i = parent[i]) if (matches[name[i]]) return true; return false; });
  stacks.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = x < y ? -1 : x > y ? 1 : 0;
    return descending ? -order : order;
  });
  for (const cell of head.children) {
    if (cell.dataset.key) cell.setAttribute("aria-sort", cell.dataset.key !== key ? "none" : descending ? "descending" : "ascending");
  }
  const body = document.querySelector("#stacks tbody");
  body.replaceChildren(...stacks.slice(0, shown).map(row));
  $("more").hidden = stacks.length <= shown;
  $("more").textContent = `Show more (${count(Math.max(0, stacks.length - shown))} left)`;
}

function row(stack) {
  const frames = path(stack);
  // The first box is the api, which has a column.
  const caller = frames.length > 1 ? frames[1] : frames[0];
  const button = element("button", { type: "button", textContent: caller.text + (caller.place ? ` (${caller.place})` : "") });
  button.setAttribute("aria-expanded", "false");
  const where = element("td", { className: "where" }, button);
  const line = element("tr", { className: "row" + (stack.verdict === "leaking" ? " leaking-row" : "") },
    ...columns.map(([, key, content, number, wide]) => element("td", { className: (number ? "number" : "") + (wide ? " wide" : "") + (key === "verdict" && stack.verdict === "leaking" ? " leaking" : "") }, content(stack))), where);
  let open = null;
  line.addEventListener("click", () => {
    button.setAttribute("aria-expanded", String(!open));
    if (open) { open.remove(); open = null; return; }
    const list = element("ol", {}, ...frames.slice(1).map((frame) =>
      element("li", { textContent: frame.text + " " }, element("span", { textContent: frame.place }))));
    open = element("tr", { className: "frames" }, element("td", { colSpan: columns.length + 1 }, list));
    line.after(open);
  });
  return line;
}
$("more").addEventListener("click", () => { shown += PAGE; table(); });

const hues = [...new Set(names.map((entry) => entry.hue))].sort();
$("key").append(...hues.map((hue) => {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = `var(--${hue.toLowerCase()})`;
  return element("span", {}, swatch, hue);
}));
draw();
table();
