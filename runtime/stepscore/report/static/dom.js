// Elements, text and numbers. All text is set as text, never as markup.
const byId = (id) => document.getElementById(id);
const SVG = new Set(["svg", "path", "line", "circle", "text", "title"]);
const NAMESPACES = { svg: "http://www.w3.org/2000/svg", math: "http://www.w3.org/1998/Math/MathML" };

/** Creates an element with attributes and children; a string becomes a text node. */
function el(name, attributes = {}, ...children) {
  const node = SVG.has(name) ? document.createElementNS(NAMESPACES.svg, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "t") node.style.setProperty("--t", value);
    else if (key === "color") node.style.setProperty("--color", value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined));
  return node;
}
const button = (label, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, label);
const tag = (text, kind = "") => el("span", { class: `tag ${kind}` }, text);

/** Escapes invisible control characters, such as those that change the text direction. */
const visible = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
  (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);

const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const quantile = (sorted, q) => sorted[Math.floor(q * (sorted.length - 1))] ?? 0;
const ascending = (values) => Float64Array.from(values).sort();
const grouped = (n) => n.toLocaleString("en");
const count = (n, noun) => `${grouped(n)} ${noun}${n === 1 ? "" : "s"}`;
const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;
