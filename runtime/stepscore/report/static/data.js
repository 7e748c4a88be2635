// The records, and what is derived from them once: scales, outcomes, problems.
const page = JSON.parse(byId("data").textContent);
const scored = page.records.filter((record) => !record.error);
const rewards = ascending(scored.flatMap((record) => record.step_rewards));
const lowestStep = rewards[0], highestStep = rewards.at(-1);

const largest = scored.reduce((size, record) =>
  Math.max(size, ...[record.step_rewards, record.cumulative_rewards].map((each) => Math.max(most(each), -least(each)))), 0);
const digits = largest ? Math.min(Math.max(3 - Math.floor(Math.log10(largest)), 2), 9) : 4;
const signed = (value, places = digits) => {
  const size = Math.abs(value).toFixed(places);
  return (Number(size) === 0 ? "" : value < 0 ? "−" : "+") + size;
};

// One colour scale for all records: full strength is the 98th percentile of rewards, so that outliers do not
// flatten the rest.
const fullStep = quantile(rewards.map(Math.abs).sort(), 0.98) || 1;
const sign = (value) => (value > 0 ? "positive" : value < 0 ? "negative" : "zero");
const strength = (value, full) => Math.min(Math.sqrt(Math.abs(value) / full), 1).toFixed(3);

for (const [index, record] of page.records.entries()) {
  record.index = index;
  if (record.error) continue;
  record.lowest = least(record.step_rewards);
  record.outcome = record.cumulative_rewards.at(-1);
}

// Problems: those of several samples come with the page, any other record is a problem by itself.
const problems = (page.problems ?? []).map((problem) => ({
  ...problem,
  members: problem.samples.map((at) => page.records[at]),
  selected: Object.entries(problem.selected ?? {}),
}));
for (const problem of problems) {
  for (const [at, record] of problem.members.entries()) {
    record.problemOf = problem;
    record.place = at;
    record.correct ??= problem.correct?.[at];
  }
}
const several = problems.length > 0;
let others = problems.length;
for (const [at, problem] of problems.entries()) for (const record of problem.members) record.group = at;
for (const record of scored) record.group ??= others++;
const METHODS = { "best-of-n": "best of n", weighted: "weighted vote", majority: "majority" };
const selectedBy = (problem, record) => problem.selected.filter(([, at]) => at === record.place).map(([method]) => method);

/** Returns the step to highlight, -1 if none: the first below the threshold, else the lowest negative one. */
function suspicious(values, threshold) {
  if (threshold !== null) return values.findIndex((reward) => reward < threshold);
  const lowest = values.indexOf(least(values));
  return values[lowest] < 0 ? lowest : -1;
}
