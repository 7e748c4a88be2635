// Figures above the list: counts, accuracies, first wrong steps at the threshold.

/** Counts of first wrong steps over labelled solutions, of which `wrong` have one and `right` have none. */
function firstErrors() {
  const labelled = scored.filter((record) => record.label !== undefined);
  const [wrong, right] = [labelled.filter((record) => record.label >= 0), labelled.filter((record) => record.label < 0)];
  const hits = (records) => records.filter((record) => record.label === record.marked).length;
  return { wrong: wrong.length, right: right.length, found: hits(wrong), left: hits(right),
    marked: labelled.filter((record) => record.marked >= 0).length };
}

/** ProcessBench's F1. Marking nothing leaves every right solution alone, but has an F1 of 0: it finds no error. */
function firstWrongSteps({ wrong, right, found, left }) {
  if (!wrong) return [];
  const share = (part, whole) => `${percent(part, whole)} of ${grouped(whole)}`;
  const recall = ["first wrong steps found", share(found, wrong)];
  if (!right) return [recall];
  const [a, b] = [found / wrong, left / right], f1 = a + b ? (2 * a * b) / (a + b) : 0;
  return [["F1 of first wrong steps", `${(100 * f1).toFixed(1)} %`], recall, ["right solutions marked", share(right - left, right)]];
}

/** A threshold outside of what the rewards span marks nothing, or everything. */
function outside() {
  const limit = threshold();
  if (limit === null || !scored.length) return [];
  const span = `the rewards span ${signed(lowestStep)} to ${signed(highestStep)}`;
  if (limit <= lowestStep) return [["threshold", `below every reward, nothing is marked: ${span}`]];
  if (limit > highestStep) return [["threshold", `above every reward, every first step is marked: ${span}`]];
  return [];
}

function selectionFigures() {
  return Object.entries(METHODS).flatMap(([method, name]) => {
    const known = problems.map((problem) => problem.members[problem.selected.find(([each]) => each === method)?.[1]])
      .filter((record) => record?.correct !== undefined);
    return known.length ? [[`${name} right`, `${percent(known.filter((record) => record.correct).length, known.length)} of ${grouped(known.length)}`]] : [];
  });
}

function describe() {
  const facts = [["solutions", grouped(page.records.length)]];
  const errors = page.records.length - scored.length;
  if (several) facts.push(["problems of several samples", grouped(problems.length)]);
  if (errors) facts.push(["errors", grouped(errors)]);
  if (scored.length) facts.push(["median outcome", signed(quantile(ascending(scored.map((record) => record.outcome)), 0.5))]);
  const judged = scored.filter((record) => record.correct !== undefined);
  if (judged.length) facts.push(["answers right", `${percent(judged.filter((record) => record.correct).length, judged.length)} of ${grouped(judged.length)}`]);
  const counts = firstErrors();
  facts.push(...(sampled ? selectionFigures() : []), ...firstWrongSteps(counts), ...outside());
  byId("facts").replaceChildren(...facts.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value))));
  byId("judged").textContent = judgement(counts);
}

/** Precision and recall of the marked steps as first errors: a hit is a marked step that is the label. */
function judgement({ wrong, found, marked }) {
  if (!wrong) return `${count(scored.filter((record) => record.marked >= 0).length, "solution")} with a marked step`;
  const precision = marked ? `precision ${percent(found, marked)} of ${grouped(marked)} marked` : "no step marked";
  return `${precision} · recall ${percent(found, wrong)} of ${grouped(wrong)} wrong`;
}

// The slider goes through the rewards by rank, so that it is fine where rewards are dense.
const RANKS = 400;
const slider = byId("slider");
const rungs = rewards.length ? Array.from({ length: RANKS + 1 }, (_, at) => Number(quantile(rewards, at / RANKS).toPrecision(4))) : [];
function placeSlider() {
  const limit = threshold();
  slider.max = RANKS;
  slider.value = limit === null ? 0 : Math.max(rungs.findLastIndex((rung) => rung <= limit), 0);
  slider.classList.toggle("unset", limit === null);
  slider.setAttribute("aria-valuetext", limit === null ? "not set: the lowest negative reward is marked" : `${limit}`);
}
slider.addEventListener("input", () => {
  form.elements.threshold.value = rungs[slider.value];
  mark();
  describe();
  placeSlider();
});
