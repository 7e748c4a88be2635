// Filters and order; the state of the controls is kept in the address, so that a reload or a bookmark restores it.
const form = byId("controls");
const number = (name) => (form.elements[name].value === "" ? null : form.elements[name].valueAsNumber);
const threshold = () => number("threshold");

const KINDS = [
  ["", "all", () => true, () => true],
  ["right", "answer right", (r) => r.correct === true, (r) => r.correct !== undefined],
  ["wrong", "answer wrong", (r) => r.correct === false, (r) => r.correct !== undefined],
  ["labelled", "label: a step is wrong", (r) => r.label >= 0, (r) => r.label !== undefined],
  ["clean", "label: no step is wrong", (r) => r.label === -1, (r) => r.label !== undefined],
  ["agree", "marked step is the label", (r) => !r.error && r.marked === r.label, (r) => r.label !== undefined],
  ["differ", "marked step is not the label",
    (r) => !r.error && r.label !== undefined && r.marked !== r.label, (r) => r.label !== undefined],
  ["disputed", "methods select different answers", (r) => isDisputed(r.problemOf), (r) => r.problemOf?.selected.length],
  ["failed", "best of n wrong, another sample right", (r) => isMissed(r.problemOf), (r) => r.problemOf && r.correct !== undefined],
  ["marked", "a step is marked", (r) => r.marked >= 0, (r) => !r.error],
  ["errors", "errors", (r) => r.error !== undefined, (r) => r.error !== undefined],
];
const isDisputed = (problem) => new Set(problem?.selected.map(([, at]) => problem.answers?.[at] ?? at)).size > 1;
function isMissed(problem) {
  const best = problem?.selected.find(([method]) => method === "best-of-n");
  return best !== undefined && problem.members[best[1]].correct === false && problem.members.some((record) => record.correct);
}
for (const [value, label, , exists] of KINDS)
  if (page.records.some(exists) || !value) form.elements.show.append(el("option", { value }, label));
form.elements.view.closest("label").hidden = !several;
// Where most solutions are one of several of their problem, the problems are what there is to look at.
const sampled = scored.length >= 2 * others;
const usualView = sampled ? "problems" : "solutions";

const ORDERS = {
  step: (a, b) => a.lowest - b.lowest, "-step": (a, b) => b.lowest - a.lowest,
  outcome: (a, b) => a.outcome - b.outcome, "-outcome": (a, b) => b.outcome - a.outcome,
  problem: (a, b) => a.group - b.group || b.outcome - a.outcome,
  "-steps": (a, b) => b.steps.length - a.steps.length,
};

function mark() {
  const limit = threshold();
  for (const record of scored) record.marked = suspicious(record.step_rewards, limit);
}
function matching() {
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
/** The problems of records, in the order of their first ones; a record that is alone stays a record. */
const problemsOf = (found) => [...new Set(found.map((record) => record.problemOf ?? record))];
