// A text with its spans: formulas, bold, headings, list items.
const LONG = 3000;
const BOLD = -1, HEADING = -2, ITEM = -3;

/** Builds a MathML tree: the build of the page has left only elements and attributes that it knows. */
function math([name, attributes, ...children]) {
  const isHtml = ["b", "i", "em", "strong"].includes(name);
  const node = isHtml ? document.createElement(name) : document.createElementNS(NAMESPACES.math, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key !== "style") node.setAttribute(key, value);
    else for (const style of value.split(";")) {
      const [property, setting] = style.split(":");
      if (setting) node.style.setProperty(property.trim(), setting.trim()); // the policy forbids the attribute
    }
  }
  node.append(...children.map((child) => (typeof child === "string" ? visible(child) : math(child))));
  return node;
}

/** Without a math font a browser leaves indices on the line: the style sheet then moves them. */
function checkMathFont() {
  const probe = math(["math", {}, ["msub", {}, ["mn", {}, "1"], ["mn", {}, "1"]]]);
  document.body.append(probe);
  const [base, index] = [...probe.firstChild.children].map((node) => node.getBoundingClientRect());
  document.body.classList.toggle("no-math-font", index.bottom < base.bottom + 1);
  probe.remove();
}

/** Returns the nodes of text[start, end), by the flat spans from `at` on; spans nest, outer ones first. */
function nodes(text, start, end, spans, at = 0) {
  const found = [];
  let from = start;
  const plain = (to) => to > from && found.push(visible(text.slice(from, to)));
  while (at < spans.length && spans[at] < end) {
    const [first, last, kind] = spans.slice(at, at + 3);
    if (first < from || last > end) { at += 3; continue; }
    plain(first);
    from = last;
    if (kind >= 0) found.push(formula(page.formulas[kind], text.slice(first, last)));
    else {
      const [left, right] = kind === BOLD ? [2, 2] : kind === HEADING ? [text.slice(first, last).search(/[^#\s]/), 0] : [0, 0];
      const inside = nodes(text, first + left, last - right, spans, at + 3);
      found.push(el(kind === ITEM ? "span" : "strong", { class: ["", "bold", "heading", "item"][-kind] }, ...inside));
    }
    at += 3;
  }
  plain(end);
  return trimmed(found);
}
function formula(tree, typed) {
  const block = tree[1].display === "block";
  return el("span", { class: block ? "formula block" : "formula", title: visible(typed) }, math(tree));
}

/** Drops the line ends around blocks, which break lines by themselves. */
function trimmed(found) {
  const isBlock = (node) => /\b(block|heading|item)\b/.test(node?.className ?? "");
  return found.map((node, at) => {
    if (typeof node !== "string") return node;
    let text = node;
    if (isBlock(found[at + 1])) text = text.replace(/[ \t]*\n?[ \t]*$/, "");
    return isBlock(found[at - 1]) ? text.replace(/^[ \t]*\n?/, "") : text;
  });
}

/** A block of text in its own direction; a very long one is cut, with a button for the rest. */
function text(value, spans = [], { kind = "", complete = false } = {}) {
  const whole = () => nodes(value, 0, value.length, spans);
  if (value.length <= LONG || complete) return el("div", { class: `text ${kind}`, dir: "auto" }, whole());
  let cut = LONG - (value.codePointAt(LONG - 1) > 0xffff); // never between two surrogates
  for (let at = 0; at < spans.length; at += 3) if (spans[at] < cut && spans[at + 1] > cut) cut = spans[at]; // nor in a span
  const node = el("div", { class: `text ${kind}`, dir: "auto" }, nodes(value, 0, cut, spans), "… ");
  node.append(button(`Show all ${grouped(value.length)} characters`, () => node.replaceChildren(...whole())));
  return node;
}
const problemText = (record, options) => text(record.problem, record.spans?.[0], { kind: "problem", ...options });
const stepText = (record, index, options) => text(record.steps[index], record.spans?.[index + 1], options);
