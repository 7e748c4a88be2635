// The steps of a solution, as text or as tokens.
const STEPS = 200;

function step(record, index, { tokens = false, complete = false } = {}) {
  const reward = record.step_rewards[index], marked = index === record.marked;
  const content = el("div", { class: "content" });
  if (marked) content.append(tag(threshold() === null ? "▸ lowest reward" : "▸ first below the threshold", "strong"));
  if (index === record.label) content.append(tag("✗ labelled wrong"));
  content.append(tokens ? tokenBox(record, index) : stepText(record, index, { complete }));
  return el("li", { class: `step ${sign(reward)}${marked ? " marked" : ""}`, t: tokens ? 0 : strength(reward, fullStep) },
    el("span", { class: "number place" }, String(index + 1)), scale(reward),
    el("span", { class: "number reward", title: "step reward" }, signed(reward)),
    el("span", { class: "number total", title: "cumulative reward" }, signed(record.cumulative_rewards[index])), content);
}
const scale = (reward) => el("span", { class: "scale", "aria-hidden": "true" },
  el("i", { class: sign(reward), t: Math.min(Math.abs(reward) / fullStep, 1).toFixed(3) }));
const headings = () => el("li", { class: "step head", "aria-hidden": "true" },
  ["", "", "reward", "cumulative", "step"].map((heading, index) => el("span", { class: index < 4 ? "number" : "" }, heading)));

/** The list of steps with its buttons: more steps, tokens. */
function stepList(record, { complete = false } = {}) {
  const list = el("ol", { class: "steps", "aria-label": "Steps" }, headings());
  let shown = 0, tokens = false;
  const show = (upTo) => {
    for (const end = Math.min(upTo, record.steps.length); shown < end; shown++) list.append(step(record, shown, { tokens, complete }));
    next.hidden = shown === record.steps.length;
    next.textContent = `Show more of ${count(record.steps.length, "step")}`;
  };
  const next = button("", () => show(shown + STEPS));
  const readout = el("output", { class: "number" });
  const actions = el("div", { class: "actions" });
  if (record.tokens) {
    const toggle = button("Tokens", () => {
      tokens = !tokens;
      toggle.setAttribute("aria-pressed", tokens);
      const upTo = shown;
      shown = 0;
      list.replaceChildren(headings(), ...(tokens && record.tokens.response_start ? [promptTokens(record)] : []));
      show(upTo);
      readout.value = tokens ? "Point at a token, or use the arrow keys." : "";
    }, { class: "toggle", "aria-pressed": "false" });
    actions.append(toggle);
    watchTokens(list, record, readout);
  }
  actions.append(next, linkTo(record), readout);
  show(complete ? Infinity : STEPS);
  return [list, actions];
}

/** A link to this solution: its address holds the id alone. */
function linkTo(record) {
  const address = `#${new URLSearchParams({ id: record.id })}`;
  return el("a", { class: "link", href: address, "aria-label": `Link to solution ${visible(String(record.id))}` }, "Link to this solution");
}

// Tokens of a step: those whose log-ratios its reward sums.
let fullToken;
function tokenBox(record, index) {
  const { ends, response_start } = record.tokens;
  return tokenRange(record, index ? ends[index - 1] : response_start, ends[index], `tokens of step ${index + 1}`);
}
const promptTokens = (record) => el("li", { class: "step zero" }, el("span"), el("span"), el("span", { class: "number" }, "prompt"),
  el("span"), el("div", {}, tokenRange(record, 0, record.tokens.response_start, "tokens of the prompt")));
function tokenRange(record, first, end, label) {
  fullToken ??= quantile(ascending(scored.flatMap((each) => (each.tokens?.log_ratios ?? []).map(Math.abs))), 0.98) || 1;
  const box = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": label });
  for (let at = first; at < end; at++) {
    const ratio = at ? record.tokens.log_ratios[at - 1] : 0;
    const shown = visible(record.tokens.texts[at]).split(/(\n+)/)
      .flatMap((part) => (part.startsWith("\n") ? [el("i", {}, "⏎".repeat(part.length)), "\n"] : [part]));
    box.append(el("span", { class: `token ${sign(ratio)}`, t: strength(ratio, fullToken) * 0.75, "data-at": at }, shown));
  }
  return box;
}
function watchTokens(list, record, readout) {
  const point = (token) => {
    if (!token) return;
    list.querySelector(".current")?.classList.remove("current");
    token.classList.add("current");
    const at = Number(token.dataset.at), { texts, log_ratios, policy_logprobs } = record.tokens;
    const what = `token ${at} ${JSON.stringify(texts[at])}: `;
    if (!at) readout.value = `${what}the first, not scored`;
    else readout.value = `${what}${signed(log_ratios[at - 1], 4)} nats = policy ${signed(policy_logprobs[at - 1], 4)}` +
      ` − reference ${signed(policy_logprobs[at - 1] - log_ratios[at - 1], 4)}`;
  };
  list.addEventListener("pointerover", (event) => point(event.target.closest(".token")));
  list.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key], box = event.target.closest(".tokens");
    if (!move || !box) return;
    event.preventDefault();
    const all = [...box.children];
    point(all[Math.min(Math.max(all.indexOf(box.querySelector(".current")) + move, 0), all.length - 1)]);
  });
}
