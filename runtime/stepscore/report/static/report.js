// Script of `stepscore report`: renders the records in #data. All text is set as text, never as markup.
"use strict";
{
const page = JSON.parse(document.getElementById("data").textContent);
const BATCH = 40, CELLS = 48, STEPS = 200, LONG = 3000;
const byId = (id) => document.getElementById(id);
const form = byId("controls"), list = byId("list"), more = byId("more");

/** Creates an element with attributes and children; a string becomes a text node. */
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "t") node.style.setProperty("--t", value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== undefined));
  return node;
}

/** Escapes invisible control characters, such as those that change the text direction. */
const visible = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
  (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);

// Numbers.
const quantile = (values, q) => values.sort((a, b) => a - b)[Math.floor(q * (values.length - 1))] ?? 0;
const scored = page.records.filter((record) => !record.error);
const largest = scored.reduce((most, record) =>
  [...record.step_rewards, ...record.cumulative_rewards].reduce((m, value) => Math.max(m, Math.abs(value)), most), 0);
const digits = largest ? Math.min(Math.max(3 - Math.floor(Math.log10(largest)), 2), 9) : 4;
// One colour scale for all records: full strength is the 98th percentile of rewards, so that outliers do not
// flatten the rest.
const fullStep = quantile(scored.flatMap((record) => record.step_rewards.map(Math.abs)), 0.98) || 1;
let fullToken;
const lowestStep = scored.reduce((low, record) => record.step_rewards.reduce((a, b) => Math.min(a, b), low), Infinity);
const highestStep = scored.reduce((high, record) => record.step_rewards.reduce((a, b) => Math.max(a, b), high), -Infinity);
const sign = (value) => (value > 0 ? "positive" : value < 0 ? "negative" : "zero");
const strength = (value, full) => Math.min(Math.sqrt(Math.abs(value) / full), 1).toFixed(3);
const signed = (value, places = digits) => {
  const size = Math.abs(value).toFixed(places);
  return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
};
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** Returns the step to highlight, -1 if none: the first below the threshold, else the lowest negative one. */
function suspicious(rewards, threshold) {
  if (threshold !== null) return rewards.findIndex((reward) => reward < threshold);
  const lowest = rewards.indexOf(rewards.reduce((a, b) => Math.min(a, b)));
  return rewards[lowest] < 0 ? lowest : -1;
}
for (const [index, record] of page.records.entries()) {
  record.index = index;
  if (record.error) continue;
  record.lowest = record.step_rewards.reduce((a, b) => Math.min(a, b));
  record.outcome = record.cumulative_rewards.at(-1);
}

// Filters: the state of the controls is kept in the URL, so that a reload or a bookmark restores it.
const KINDS = [
  ["", "all", () => true, () => true],
  ["right", "answer right", (r) => r.correct === true, (r) => r.correct !== undefined],
  ["wrong", "answer wrong", (r) => r.correct === false, (r) => r.correct !== undefined],
  ["labelled", "label: a step is wrong", (r) => r.label >= 0, (r) => r.label !== undefined],
  ["clean", "label: no step is wrong", (r) => r.label === -1, (r) => r.label !== undefined],
  ["agree", "marked step is the label", (r) => !r.error && r.marked === r.label, (r) => r.label !== undefined],
  ["differ", "marked step is not the label",
    (r) => !r.error && r.label !== undefined && r.marked !== r.label, (r) => r.label !== undefined],
  ["marked", "a step is marked", (r) => r.marked >= 0, (r) => !r.error],
  ["errors", "errors", (r) => r.error !== undefined, (r) => r.error !== undefined],
];
for (const [value, text, , exists] of KINDS)
  if (page.records.some(exists) || !value) form.elements.show.append(el("option", { value }, text));

const ORDERS = {
  step: (a, b) => a.lowest - b.lowest, "-step": (a, b) => b.lowest - a.lowest,
  outcome: (a, b) => a.outcome - b.outcome, "-outcome": (a, b) => b.outcome - a.outcome,
  problem: (a, b) => a.group - b.group || b.outcome - a.outcome,
  "-steps": (a, b) => b.steps.length - a.steps.length,
};
const groups = new Map();
for (const record of scored) {
  const key = record.problem_id === undefined ? record.problem : JSON.stringify(record.problem_id);
  if (!groups.has(key)) groups.set(key, groups.size);
  record.group = groups.get(key);
}

const number = (name) => (form.elements[name].value === "" ? null : form.elements[name].valueAsNumber);
function matching() {
  const threshold = number("threshold");
  for (const record of scored) record.marked = suspicious(record.step_rewards, threshold);
  const words = form.elements.q.value.toLowerCase().trim();
  const kind = KINDS.find(([value]) => value === form.elements.show.value)[2];
  const ranges = [["outcome", "outmin", "outmax"], ["lowest", "lowmin", "lowmax"]]
    .map(([field, low, high]) => [field, number(low), number(high)])
    .filter(([, low, high]) => low !== null || high !== null);
  const found = page.records.filter((record) =>
    kind(record) &&
    ranges.every(([field, low, high]) => record[field] >= (low ?? -Infinity) && record[field] <= (high ?? Infinity)) &&
    (!words || haystack(record).includes(words)));
  const order = ORDERS[form.elements.sort.value];
  return order ? found.sort((a, b) => !!a.error - !!b.error || (a.error ? 0 : order(a, b)) || a.index - b.index) : found;
}
function haystack(record) {
  record.search ??= [record.id, record.problem, ...(record.steps ?? []), record.error?.message].join("\n").toLowerCase();
  return record.search;
}

// Rendering of a record.
const tag = (text, strong) => el("span", { class: strong ? "tag strong" : "tag" }, text);
function verdicts(record) {
  const tags = [];
  if (record.correct !== undefined) tags.push(tag(record.correct ? "✓ answer right" : "✗ answer wrong"));
  if (record.label !== undefined)
    tags.push(tag(record.label < 0 ? "label: all steps right" : `label: step ${record.label + 1} is wrong`));
  return tags;
}

function card(record, open) {
  const name = el("span", { class: "name" }, el("bdi", {}, visible(String(record.id))));
  if (record.error) {
    const fault = el("div", { class: "fault" }, name, " ", tag(record.error.code, true),
      el("div", { class: "text" }, visible(record.error.message)));
    return el("details", { class: "card error", open: "" }, el("summary", { hidden: "" }), fault);
  }
  name.append(...verdicts(record));
  const label = `outcome ${signed(record.outcome)}, ${count(record.steps.length, "step")}` +
    (record.marked < 0 ? "" : `, step ${record.marked + 1} marked`);
  const node = el("details", { class: "card", "data-index": record.index },
    el("summary", {}, name, el("span", { class: "peek" }, visible(record.problem.slice(0, 300))), strip(record, label),
      el("span", { class: "outcome number", title: "outcome reward" }, signed(record.outcome))));
  const fill = () => node.open && node.children.length === 1 && node.append(body(record));
  node.addEventListener("toggle", fill);
  if (open) { node.open = true; fill(); }
  return node;
}

/** One cell per step; with many steps, a cell shows the lowest of several. */
function strip(record, label) {
  const rewards = record.step_rewards, size = Math.ceil(rewards.length / CELLS);
  const node = el("span", { class: "strip", role: "img", "aria-label": label });
  for (let first = 0; first < rewards.length; first += size) {
    const value = rewards.slice(first, first + size).reduce((a, b) => Math.min(a, b));
    const marked = record.marked >= first && record.marked < first + size ? " marked" : "";
    node.append(el("i", { class: `tint ${sign(value)}${marked}`, t: strength(value, fullStep) }));
  }
  return node;
}

function body(record) {
  const steps = el("ol", {});
  const node = el("div", { class: "body" }, text(record.problem, "problem"));
  const fields = Object.entries(record.fields ?? {}).concat([["tokens", record.num_tokens.toLocaleString("en")]]);
  node.append(el("dl", { class: "fields" }, ...fields.map(([key, value]) =>
    el("div", {}, el("dt", {}, key), el("dd", {}, visible(String(value)))))), curve(record), steps);
  const headings = ["", "", "reward", "cumulative", "step"];
  steps.append(el("li", { class: "step head", "aria-hidden": "true" }, ...headings.map((heading, index) =>
    el("span", { class: index < 4 ? "number" : "" }, heading))));
  let shown = 0, tokens = false;
  const actions = el("div", { class: "actions" });
  const show = (upTo) => {
    for (const end = Math.min(upTo, record.steps.length); shown < end; shown++) steps.append(step(record, shown, tokens));
    next.hidden = shown === record.steps.length;
    next.textContent = `Show more of ${count(record.steps.length, "step")}`;
  };
  const next = el("button", { type: "button", onclick: () => show(shown + STEPS) });
  const readout = el("output", { class: "number" });
  if (record.tokens) {
    const toggle = el("button", { type: "button", class: "toggle", "aria-pressed": "false", onclick: () => {
      tokens = !tokens;
      toggle.setAttribute("aria-pressed", tokens);
      toggle.textContent = tokens ? "Text" : "Tokens";
      const upTo = shown;
      while (steps.children.length > 1) steps.lastChild.remove();
      shown = 0;
      if (tokens && record.tokens.response_start) steps.append(promptTokens(record));
      show(upTo);
      readout.value = tokens ? "Point at a token, or use the arrow keys." : "";
    } }, "Tokens");
    actions.append(toggle, readout);
    const point = (token) => token && current(node, token, record, readout);
    steps.addEventListener("pointerover", (event) => point(event.target.closest(".token")));
    steps.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key], box = event.target.closest(".tokens");
      if (!move || !box) return;
      event.preventDefault();
      const all = [...box.children];
      point(all[Math.min(Math.max(all.indexOf(box.querySelector(".current")) + move, 0), all.length - 1)]);
    });
  }
  actions.append(next);
  node.append(actions);
  show(STEPS);
  return node;
}

function step(record, index, tokens) {
  const reward = record.step_rewards[index], t = strength(reward, fullStep), marked = index === record.marked;
  const content = el("div", {});
  if (marked) content.append(tag(number("threshold") === null ? "▸ lowest reward" : "▸ first below the threshold", true));
  if (index === record.label) content.append(tag("✗ labelled wrong"));
  content.append(tokens ? tokenBox(record, index) : text(record.steps[index]));
  content.className = "text";
  return el("li", { class: `step ${sign(reward)}${marked ? " marked" : ""}`, t: tokens ? 0 : t },
    el("span", { class: "number" }, String(index + 1)),
    el("span", { class: "scale", "aria-hidden": "true" },
      el("i", { class: sign(reward), t: Math.min(Math.abs(reward) / fullStep, 1).toFixed(3) })),
    el("span", { class: "number reward", title: "step reward" }, signed(reward)),
    el("span", { class: "number total", title: "cumulative reward" }, signed(record.cumulative_rewards[index])), content);
}

/** A block of text in its own direction; a very long one is cut, with a button for the rest. */
function text(given, kind = "") {
  const value = visible(given);
  if (value.length <= LONG) return el("div", { class: `text ${kind}`, dir: "auto" }, value);
  const cut = LONG - (value.codePointAt(LONG - 1) > 0xffff); // never between two surrogates
  const node = el("div", { class: `text ${kind}`, dir: "auto" }, value.slice(0, cut), "… ");
  node.append(el("button", { type: "button", onclick: () => (node.textContent = value) },
    `Show all ${value.length.toLocaleString("en")} characters`));
  return node;
}

// Tokens of a step: those whose log-ratios its reward sums.
function tokenBox(record, index) {
  const { ends, response_start } = record.tokens;
  return tokenRange(record, index ? ends[index - 1] : response_start, ends[index]);
}
const promptTokens = (record) => el("li", { class: "step zero" }, el("span"), el("span"), el("span", { class: "number" }, "prompt"),
  el("span"), el("div", {}, tokenRange(record, 0, record.tokens.response_start)));
function tokenRange(record, first, end) {
  fullToken ??= quantile(scored.flatMap((each) => (each.tokens?.log_ratios ?? []).map(Math.abs)), 0.98) || 1;
  const box = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "tokens" });
  for (let at = first; at < end; at++) {
    const ratio = at ? record.tokens.log_ratios[at - 1] : 0;
    const shown = visible(record.tokens.texts[at]).split(/(\n+)/)
      .flatMap((part) => (part.startsWith("\n") ? [el("i", {}, "⏎".repeat(part.length)), "\n"] : [part]));
    box.append(el("span", { class: `token ${sign(ratio)}`, t: strength(ratio, fullToken) * 0.75, "data-at": at }, ...shown));
  }
  return box;
}
function current(node, token, record, readout) {
  node.querySelector(".current")?.classList.remove("current");
  token.classList.add("current");
  const at = Number(token.dataset.at), { texts, log_ratios, policy_logprobs } = record.tokens;
  const what = `token ${at} ${JSON.stringify(texts[at])}: `;
  if (!at) readout.value = `${what}the first, not scored`;
  else readout.value = `${what}${signed(log_ratios[at - 1], 4)} nats = policy ${signed(policy_logprobs[at - 1], 4)}` +
    ` − reference ${signed(policy_logprobs[at - 1] - log_ratios[at - 1], 4)}`;
}

function curve(record) {
  const values = [0, ...record.cumulative_rewards];
  const width = Math.max(list.clientWidth - 32, 200), height = 104, edge = 8;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const x = (index) => 4 + (index / (values.length - 1)) * (width - 8);
  const y = (value) => (high > low ? edge + ((high - value) / (high - low)) * (height - 2 * edge) : height / 2);
  const title = `cumulative reward, from 0 to ${signed(record.outcome)}`;
  const svg = el("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    el("line", { x1: 0, x2: width, y1: y(0), y2: y(0) }),
    el("path", { d: values.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("") }));
  for (const [index, value] of values.length <= 80 ? values.entries() : []) {
    const reward = index ? record.step_rewards[index - 1] : 0, marked = index && index - 1 === record.marked;
    svg.append(el("circle", { cx: x(index), cy: y(value), r: marked ? 7 : 4.5, class: `${sign(reward)}${marked ? " marked" : ""}` },
      el("title", {}, index ? `step ${index}: ${signed(reward)}, cumulative ${signed(value)}` : "0")));
  }
  return svg;
}

// The list: rendered in batches, on scrolling.
let found = [], drawn = 0;
function draw() {
  const end = Math.min(drawn + BATCH, found.length);
  list.append(...found.slice(drawn, end).map((record, at) => card(record, drawn + at === 0)));
  drawn = end;
  more.hidden = drawn === found.length;
}
function update() {
  found = matching();
  drawn = 0;
  list.replaceChildren();
  byId("count").textContent = found.length === page.records.length
    ? count(found.length, "solution") : `${found.length.toLocaleString("en")} of ${count(page.records.length, "solution")}`;
  draw();
  describe();
  const state = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== "")).toString();
  if (state !== location.hash.slice(1)) history.replaceState(null, "", `#${state}`);
}
function restore(state) {
  for (const [name, value] of state) if (form.elements[name]) form.elements[name].value = value;
  if (form.elements.show.selectedIndex < 0) form.elements.show.value = "";
  if (form.elements.sort.selectedIndex < 0) form.elements.sort.value = "";
  update();
}
const initial = page.threshold === undefined ? [] : [["threshold", page.threshold]];

/** ProcessBench's F1. Marking nothing leaves every right solution alone, but has an F1 of 0: it finds no error. */
function firstWrongSteps(share) {
  const labelled = scored.filter((record) => record.label !== undefined);
  const [wrong, right] = [labelled.filter((record) => record.label >= 0), labelled.filter((record) => record.label < 0)];
  if (!wrong.length) return [];
  const hits = (records) => records.filter((record) => record.label === record.marked).length;
  const found = ["first wrong steps found", share(hits(wrong), wrong.length)];
  if (!right.length) return [found];
  const [a, b] = [hits(wrong) / wrong.length, hits(right) / right.length];
  const f1 = a + b ? (2 * a * b) / (a + b) : 0;
  return [["F1 of first wrong steps", `${(100 * f1).toFixed(1)} %`], found,
    ["right solutions marked", share(right.length - hits(right), right.length)]];
}

/** A threshold outside of what the rewards span marks nothing, or everything. */
function outside() {
  const threshold = number("threshold");
  if (threshold === null || !scored.length) return [];
  const span = `the rewards span ${signed(lowestStep)} to ${signed(highestStep)}`;
  if (threshold <= lowestStep) return [["threshold", `below every reward, nothing is marked: ${span}`]];
  if (threshold > highestStep) return [["threshold", `above every reward, every first step is marked: ${span}`]];
  return [];
}

function describe() {
  const facts = [["solutions", page.records.length]];
  const share = (part, whole) => `${((100 * part) / whole).toFixed(1)} % of ${whole.toLocaleString("en")}`;
  const errors = page.records.length - scored.length;
  if (errors) facts.push(["errors", errors]);
  if (scored.length) facts.push(["median outcome", signed(quantile(scored.map((record) => record.outcome), 0.5))]);
  const judged = scored.filter((record) => record.correct !== undefined);
  if (judged.length) facts.push(["answers right", share(judged.filter((record) => record.correct).length, judged.length)]);
  facts.push(...firstWrongSteps(share), ...outside());
  byId("facts").replaceChildren(...facts.map(([key, value]) =>
    el("div", {}, el("dt", {}, key), el("dd", {}, typeof value === "number" ? value.toLocaleString("en") : value))));
}

document.title = `${page.source} · stepscore`;
byId("basis").textContent = [page.source, page.convention && `convention ${page.convention}`,
  page.beta && `beta ${page.beta}`, page.convention === "card" && "the first step's reward includes the prompt's"]
  .filter(Boolean).join(" · ");
byId("legend").append("step reward ", el("span", { class: "number" }, signed(-fullStep)), " ",
  ...[-1, -0.4, -0.1, 0, 0.1, 0.4, 1].map((part) => el("i", { class: `tint ${sign(part)}`, t: strength(part, 1) })),
  " ", el("span", { class: "number" }, signed(fullStep)));

let waiting;
form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
form.addEventListener("reset", () => setTimeout(() => restore(initial)));
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", draw);
new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && draw(), { rootMargin: "600px" })
  .observe(more);
addEventListener("beforeprint", () => { for (const node of list.children) node.open = true; });
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  if (event.key === "/") { event.preventDefault(); form.elements.q.focus(); }
  if (event.key !== "j" && event.key !== "k") return;
  const heads = [...list.querySelectorAll("summary:not([hidden])")];
  const at = heads.indexOf(document.activeElement?.closest?.(".card")?.querySelector("summary"));
  heads[Math.min(Math.max(at + (event.key === "j" ? 1 : -1), 0), heads.length - 1)]?.focus();
});
restore([...initial, ...new URLSearchParams(location.hash.slice(1))]);
}
