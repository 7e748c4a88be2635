// Two samples side by side, step by step.
function comparison(problem, options = {}) {
  const pair = problem.pair.filter((record, at, all) => all.indexOf(record) === at);
  if (pair.length < 2) return el("p", { class: "hint" }, "Tick two samples to see them side by side.");
  const colours = roles(problem);
  const head = (record) => el("div", { class: "side", color: onPage(colours.get(record) ?? "faint") },
    el("strong", {}, el("bdi", {}, nameOf(record))), " ", el("span", { class: "number" }, signed(record.outcome)), " ", verdicts(record));
  const rows = Array.from({ length: Math.max(...pair.map((record) => record.steps.length)) }, (_, index) =>
    el("li", { class: "pair" }, el("span", { class: "number place" }, String(index + 1)), pair.map((record) => half(record, index, options))));
  const list = el("ol", { class: "pairs", "aria-label": "Two samples, step by step" });
  const show = (from, to) => list.append(...rows.slice(from, to));
  show(0, options.complete ? Infinity : STEPS);
  const more = rows.length > list.children.length && button(`Show all ${count(rows.length, "step")}`, () => { show(STEPS); more.remove(); });
  return el("section", { "aria-label": "Comparison of two samples" }, el("div", { class: "pair sides" }, el("span"), pair.map(head)), list, more || "");
}
function half(record, index, { complete = false } = {}) {
  if (index >= record.steps.length) return el("div", { class: "half" });
  const reward = record.step_rewards[index], marked = index === record.marked;
  return el("div", { class: `half ${sign(reward)}${marked ? " marked" : ""}`, t: strength(reward, fullStep) },
    el("span", { class: "who" }, nameOf(record)),
    el("span", { class: "number reward" }, signed(reward)), marked ? [" ", tag(threshold() === null ? "▸ lowest" : "▸ first below", "strong")] : [],
    index === record.label ? [" ", tag("✗ labelled wrong")] : [], stepText(record, index, { complete }));
}
