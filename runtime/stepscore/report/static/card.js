// A card: the summary of a solution, which opens its problem, curve and steps.
const CELLS = 48, PEEK = 200;

function verdicts(record) {
  const tags = [];
  if (record.correct !== undefined) tags.push(tag(record.correct ? "✓ answer right" : "✗ answer wrong"));
  if (record.label !== undefined)
    tags.push(tag(record.label < 0 ? "label: all steps right" : `label: step ${record.label + 1} is wrong`));
  return tags;
}

/** One cell per step; with many steps, a cell shows the lowest of several. */
function strip(record, label) {
  const values = record.step_rewards, size = Math.ceil(values.length / CELLS);
  const node = el("span", { class: "strip", role: "img", "aria-label": label });
  for (let first = 0; first < values.length; first += size) {
    const value = least(values.slice(first, first + size));
    const marked = record.marked >= first && record.marked < first + size ? " marked" : "";
    node.append(el("i", { class: `tint ${sign(value)}${marked}`, t: strength(value, fullStep) }));
  }
  return node;
}

/** A details element whose body is made when it is first open; `open` is kept in the item. */
function folding(item, isOpen, attributes, summary, body) {
  const node = el("details", { class: "card", open: isOpen, ...attributes }, summary);
  const fill = () => node.open && node.children.length === 1 && node.append(el("div", { class: "body" }, body()));
  node.addEventListener("toggle", () => {
    if (node.open !== (item.open ?? isOpen)) item.open = node.open;
    fill();
  });
  fill();
  return node;
}

/** The beginning of the problem, on one line. */
const peek = (record) => el("span", { class: "peek" },
  nodes(record.problem, 0, Math.min(record.problem.length, PEEK), record.spans?.[0] ?? []));

function solutionCard(record, isOpen, options = {}) {
  const name = el("span", { class: "name" }, el("bdi", {}, visible(String(record.id))));
  if (record.error) name.append(tag(record.error.code, "strong"));
  if (record.error)
    return el("div", { class: "card error" }, el("div", { class: "fault" }, name,
      el("div", { class: "text" }, visible(record.error.message))));
  name.append(...verdicts(record), ...(record.problemOf ? selectedBy(record.problemOf, record) : []).map((method) => tag(METHODS[method], "chosen")));
  const label = `outcome ${signed(record.outcome)}, ${count(record.steps.length, "step")}` +
    (record.marked < 0 ? "" : `, step ${record.marked + 1} marked`);
  return folding(record, isOpen, { "data-index": record.index },
    el("summary", {}, name, peek(record), strip(record, label),
      el("span", { class: "outcome number", title: "outcome reward" }, signed(record.outcome))),
    () => solutionBody(record, options));
}

function solutionBody(record, options) {
  const fields = Object.entries(record.fields ?? {}).concat([["tokens", grouped(record.num_tokens)]]);
  return [problemText(record, options),
    el("dl", { class: "fields" }, fields.map(([key, value]) => el("div", {}, el("dt", {}, visible(key)), el("dd", {}, visible(String(value)))))),
    figure((width) => solutionChart(record, width), record.id), ...stepList(record, options)];
}
