// What ties the page together: state, address, keys.
const initial = () => [["view", usualView], ...(page.threshold === undefined ? [] : [["threshold", page.threshold]])];

function update() {
  mark();
  const found = matching(), asProblems = several && form.elements.view.value === "problems";
  const shown = asProblems ? problemsOf(found) : found;
  show(shown, asProblems ? (item, ...rest) => (item.members ? problemCard : solutionCard)(item, ...rest) : solutionCard);
  byId("count").textContent = (found.length === page.records.length
    ? count(found.length, "solution") : `${grouped(found.length)} of ${count(page.records.length, "solution")}`) +
    (asProblems ? ` in ${count(shown.filter((item) => item.members).length, "problem")}` : "");
  describe();
  placeSlider();
}
function remember() {
  const usual = new Map(initial().map(([name, value]) => [name, String(value)]));
  const fields = [...new FormData(form)].filter(([name, value]) => value !== (usual.get(name) ?? "") && (name !== "view" || several));
  const state = new URLSearchParams(fields).toString();
  if (state !== location.hash.slice(1)) history.replaceState(null, "", state ? `#${state}` : location.pathname + location.search);
}
function restore(given) {
  for (const field of form.elements) if (field.name) field.value = "";
  const state = [...initial(), ...given];
  for (const [name, value] of state) if (form.elements[name]) form.elements[name].value = value;
  for (const name of ["show", "sort"]) if (form.elements[name].selectedIndex < 0) form.elements[name].value = "";
  if (form.elements.view.selectedIndex < 0) form.elements.view.value = usualView;
  const id = new Map(given).get("id");
  if (id === undefined) return update();
  form.elements.view.value = "solutions";
  update();
  const record = page.records.find((each) => String(each.id) === id), at = items.indexOf(record);
  if (at < 0) { byId("count").textContent += `; there is no solution ${JSON.stringify(visible(id))} here`; return; }
  record.open = true;
  show(items, draw);
  reveal(at);
}
const fromAddress = () => restore([...new URLSearchParams(location.hash.slice(1))]);

document.title = `${page.source} · stepscore`;
const { pair, convention, beta, version, date } = page.origin ?? {};
for (const [name, value, title] of [
  ["file", page.source], ["pair", pair?.slice(0, 12), pair], ["beta", beta && `${beta} per nat`],
  ["convention", convention, convention === "card" ? "the first step's reward includes the prompt's" : undefined],
  ["stepscore", version], ["scored", date?.replace("T", " ").replace(/\.\d+Z$/, " UTC"), date]])
  if (value !== undefined && value !== "") byId("origin").append(el("div", { title }, el("dt", {}, name), el("dd", {}, visible(String(value)))));
for (const note of page.notes ?? []) byId("origin").after(el("p", { class: "note" }, visible(note)));
byId("legend").append("step reward ", el("span", { class: "number" }, signed(-fullStep)), " ",
  ...[-1, -0.4, -0.1, 0, 0.1, 0.4, 1].map((part) => el("i", { class: `tint ${sign(part)}`, t: strength(part, 1) })),
  " ", el("span", { class: "number" }, signed(fullStep)));

let waiting;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { update(); remember(); }, 120);
});
form.addEventListener("reset", () => setTimeout(() => { restore([]); remember(); }));
form.addEventListener("submit", (event) => event.preventDefault());
byId("open").addEventListener("click", () => openAll(true));
byId("close").addEventListener("click", () => openAll(false));
addEventListener("hashchange", fromAddress);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select")) return;
  if (event.key === "/") { event.preventDefault(); form.elements.q.focus(); }
  if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
});
checkMathFont();
fromAddress();
