// A chart is a list of marks, so that the page, an SVG file and a PNG file draw the same thing.
// A mark names its colour by role: the page takes it from the style sheet, a file from the light theme.
const PALETTE = 8;
const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/** Returns about `wanted` round numbers that span [low, high]. */
function ticks(low, high, wanted) {
  const span = high - low || Math.abs(high) || 1, power = 10 ** Math.floor(Math.log10(span / wanted));
  const step = power * ([1, 2, 5, 10].find((factor) => span / (factor * power) <= wanted) ?? 10);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

/**
 * Draws cumulative rewards over one another. A line has `values` (from 0), `role`, and may have `dash`, `width`,
 * `name` for the legend and `dots`, by step, of [role, marked, title].
 */
function chart(lines, width, height, title) {
  const left = 10 + 7 * Math.max(...lines.flatMap((line) => [least(line.values), most(line.values)]).map((v) => tickText(v, v).length));
  const [right, top, bottom, gapBelow] = [12, 30, 34, 8];
  const steps = most(lines.map((line) => line.values.length - 1));
  let low = least(lines.map((line) => least(line.values))), high = most(lines.map((line) => most(line.values)));
  if (low === high) [low, high] = [low - (Math.abs(low) || 1), high + (Math.abs(high) || 1)];
  const x = (index) => left + (index / Math.max(steps, 1)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom - gapBelow);
  const marks = [];
  const levels = ticks(low, high, 4), gap = levels.length > 1 ? levels[1] - levels[0] : high - low;
  for (const value of levels) {
    marks.push({ kind: "line", x1: left, x2: width - right, y1: y(value), y2: y(value), role: value === 0 ? "soft" : "line" });
    marks.push({ kind: "text", x: left - 6, y: y(value) + 4, text: tickText(value, gap), role: "soft", anchor: "end" });
  }
  for (const value of ticks(0, steps, Math.min(10, width / 60)).filter(Number.isInteger))
    marks.push({ kind: "text", x: x(value), y: height - bottom + 16, text: String(value), role: "soft", anchor: "middle" });
  marks.push({ kind: "text", x: (left + width - right) / 2, y: height - 3, text: "step", role: "soft", anchor: "middle" });
  marks.push({ kind: "text", x: left, y: 12, text: "cumulative reward", role: "soft", anchor: "start" });
  for (const line of lines) {
    const points = line.values.map((value, index) => [x(index), y(value)]);
    marks.push({ kind: "path", points, role: line.role, width: line.width ?? 1.8, dash: line.dash });
    for (const [index, [role, marked, about]] of (line.dots ?? []).entries())
      marks.push({ kind: "circle", x: points[index][0], y: points[index][1], r: marked ? 6.5 : 4, role, rim: marked ? "ink" : "card", title: about });
  }
  return { width, height: legend(lines.filter((line) => line.name), width, height, left, marks), marks, title };
}

/** Adds a legend below the chart, in as many rows as it takes; returns the new height. */
function legend(lines, width, height, left, marks) {
  let [x, y] = [left, height + 14];
  for (const line of lines) {
    const size = 34 + 6.6 * line.name.length;
    if (x + size > width && x > left) [x, y] = [left, y + 18];
    marks.push({ kind: "path", points: [[x, y - 4], [x + 22, y - 4]], role: line.role, width: line.width ?? 1.8, dash: line.dash });
    marks.push({ kind: "text", x: x + 28, y, text: line.name, role: "ink", anchor: "start" });
    x += size + 14;
  }
  return lines.length ? y + 8 : height;
}
function tickText(value, gap) {
  const places = gap ? Math.min(Math.max(-Math.floor(Math.log10(Math.abs(gap)) + 1e-9), 0), 9) : 0;
  return `${value < -1e-12 ? "−" : ""}${Math.abs(value).toFixed(places)}`;
}

/** Returns a chart as an SVG element; `paint` turns a role into a colour. */
function drawn({ width, height, marks, title }, paint) {
  const svg = el("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    el("title", {}, title));
  for (const mark of marks) svg.append(DRAW[mark.kind](mark, paint));
  return svg;
}
const place = (value) => Number(value.toFixed(2));
const DRAW = {
  line: (m, paint) => el("line", { x1: m.x1, x2: m.x2, y1: place(m.y1), y2: place(m.y2), stroke: paint(m.role) }),
  path: (m, paint) => el("path", { d: pathOf(m.points), fill: "none", stroke: paint(m.role), "stroke-width": m.width,
    "stroke-dasharray": m.dash, "stroke-linejoin": "round" }),
  circle: (m, paint) => el("circle", { cx: place(m.x), cy: place(m.y), r: m.r, fill: paint(m.role), stroke: paint(m.rim),
    "stroke-width": 1.5 }, el("title", {}, m.title)),
  text: (m, paint) => el("text", { x: place(m.x), y: place(m.y), fill: paint(m.role), "text-anchor": m.anchor,
    "font-size": 12, "font-family": FONT }, m.text),
};
const pathOf = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${place(x)} ${place(y)}`).join("");
const onPage = (role) => `var(--${role})`;

const DOTS = 80;
/** The curve of one solution; each step is a dot in the colour of its reward. */
function solutionChart(record, width) {
  const values = [0, ...record.cumulative_rewards];
  const dots = values.length > DOTS ? [] : values.map((value, index) => index
    ? [sign(record.step_rewards[index - 1]), index - 1 === record.marked,
      `step ${index}: ${signed(record.step_rewards[index - 1])}, cumulative ${signed(value)}`]
    : ["soft", false, "0"]);
  return chart([{ values, role: "ink", dots }], width, 150, `Cumulative reward of ${visible(String(record.id))}, from 0 to ${signed(record.outcome)}`);
}
