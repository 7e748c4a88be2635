// A problem of several samples: their table, their curves over one another, two of them side by side.
const ROWS = 32;

/** The two samples compared at first: the best of n, and the best one that is not as right or wrong as it. */
function firstPair(problem) {
  const order = [...problem.members].sort((a, b) => b.outcome - a.outcome);
  const best = order[0], opposite = order.find((record) => record.correct !== undefined && record.correct !== best.correct);
  return [best, opposite ?? order.at(-1)];
}
const nameOf = (record) => visible(String(record.id));

/** Roles of colour by sample: each has its own as long as there are enough, else only those that stand out. */
function roles(problem) {
  const standing = problem.members.length <= PALETTE ? problem.members
    : [...new Set([...problem.pair, ...problem.selected.map(([, at]) => problem.members[at])])].slice(0, PALETTE);
  return new Map(standing.map((record, at) => [record, `series-${at}`]));
}

function problemChart(problem, width) {
  const colours = roles(problem);
  const line = (record) => ({
    values: [0, ...record.cumulative_rewards], role: colours.get(record) ?? "faint",
    dash: record.correct === false ? "5 4" : undefined, width: colours.has(record) ? (problem.pair.includes(record) ? 3 : 1.8) : 1,
    name: colours.has(record) ? `${nameOf(record).slice(0, 40)}${record.correct === undefined ? "" : record.correct ? " ✓" : " ✗"}` : undefined,
  });
  const order = [...problem.members].sort((a, b) => colours.has(a) - colours.has(b));
  const lines = order.map(line), rest = lines.find((each) => !each.name);
  if (rest) rest.name = `${count(problem.members.length - colours.size, "other")}`;
  return chart(lines, width, 260, `Cumulative rewards of ${count(problem.members.length, "sample")}; dashed: answer wrong`);
}

function answerOf(problem, record) {
  const answer = problem.answers?.[record.place];
  if (answer === undefined || answer === null) return "–";
  return el("span", { class: "answer text" }, nodes(answer, 0, answer.length, problem.answer_spans?.[record.place] ?? []));
}

function sampleRow(problem, record, colours, choose) {
  const box = el("input", { type: "checkbox", "aria-label": `Compare ${nameOf(record)}`, checked: problem.pair.includes(record), onchange: () => choose(record) });
  return el("tr", { class: problem.pair.includes(record) ? "compared" : "" },
    el("td", {}, box),
    el("th", { scope: "row" }, el("i", { class: `swatch${record.correct === false ? " dashed" : ""}`, color: onPage(colours.get(record) ?? "faint") }),
      el("a", { href: `#${new URLSearchParams({ id: record.id })}` }, el("bdi", {}, nameOf(record)))),
    el("td", { class: "number" }, signed(record.outcome)),
    el("td", { class: "number wide-only" }, signed(record.lowest)),
    el("td", { class: "wide-only" }, strip(record, `${count(record.steps.length, "step")}${record.marked < 0 ? "" : `, step ${record.marked + 1} marked`}`)),
    ...(problem.answers?.length ? [el("td", {}, answerOf(problem, record))] : []),
    el("td", { class: "verdict" }, record.correct === undefined ? "–" : record.correct ? "✓ right" : "✗ wrong"),
    el("td", {}, selectedBy(problem, record).map((method) => tag(METHODS[method], "chosen"))));
}

function sampleTable(problem, choose, { complete = false } = {}) {
  const colours = roles(problem), order = [...problem.members].sort((a, b) => b.outcome - a.outcome || a.index - b.index);
  const headings = [["compare"], ["sample"], ["outcome", "number"], ["lowest step", "number wide-only"], ["steps", "wide-only"],
    ...(problem.answers?.length ? [["answer"]] : []), ["verdict"], ["selected by"]];
  const rows = el("tbody", {}, order.slice(0, complete ? Infinity : ROWS).map((record) => sampleRow(problem, record, colours, choose)));
  const table = el("table", { class: "samples" }, el("caption", {}, "Samples, highest outcome first"),
    el("thead", {}, el("tr", {}, headings.map(([heading, kind]) => el("th", { scope: "col", class: kind }, heading)))), rows);
  const more = rows.children.length < order.length && button(`Show all ${count(order.length, "sample")}`, () => {
    rows.append(...order.slice(ROWS).map((record) => sampleRow(problem, record, colours, choose)));
    more.remove();
  });
  return el("div", { class: "scroll", role: "region", "aria-label": "Samples of the problem", tabindex: "0" }, table, more || "");
}

function problemBody(problem, options) {
  const node = el("div");
  const choose = (record) => {
    problem.pair = problem.pair.includes(record) ? problem.pair.filter((each) => each !== record) : [...problem.pair, record].slice(-2);
    draw();
    node.querySelector(`input[aria-label="${CSS.escape(`Compare ${nameOf(record)}`)}"]`)?.focus();
  };
  const draw = () => node.replaceChildren(problemText(problem.members[0], options),
    ...(problem.fault ? [el("p", { class: "fault" }, `Nothing is selected: ${visible(problem.fault)}`)] : []),
    sampleTable(problem, choose, options), figure((width) => problemChart(problem, width), `problem-${problem.members[0].id}`),
    comparison(problem, options));
  draw();
  return node;
}

function problemCard(problem, isOpen, options = {}) {
  problem.pair ??= firstPair(problem);
  const [first] = problem.members, known = problem.members.filter((record) => record.correct !== undefined);
  const right = known.filter((record) => record.correct).length;
  const name = el("span", { class: "name" }, el("bdi", {}, visible(String(first.problem_id ?? first.id))), tag(count(problem.members.length, "sample")));
  if (known.length) name.append(tag(`${right} of ${known.length} right`));
  for (const [method, at] of problem.selected) {
    const { correct } = problem.members[at];
    name.append(tag(`${METHODS[method]}${correct === undefined ? "" : correct ? " ✓" : " ✗"}`, "chosen"));
  }
  return folding(problem, isOpen, { class: "card group" },
    el("summary", {}, name, peek(first)), () => [problemBody(problem, options)]);
}
