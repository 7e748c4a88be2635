// A chart as a file: drawn here, from its marks; nothing is loaded and nothing leaves the page.

/** Returns the colours of the light theme, whatever the page shows. */
function lightPaint() {
  const probe = el("i");
  probe.style.colorScheme = "light";
  document.body.append(probe);
  const known = new Map();
  const paint = (role) => {
    if (!known.has(role)) {
      probe.style.color = `var(--${role})`;
      known.set(role, getComputedStyle(probe).color);
    }
    return known.get(role);
  };
  return [paint, () => probe.remove()];
}

function svgText(picture) {
  const [paint, done] = lightPaint();
  const svg = drawn(picture, paint);
  svg.removeAttribute("class");
  svg.setAttribute("width", picture.width);
  svg.setAttribute("height", picture.height);
  done();
  return new XMLSerializer().serializeToString(svg);
}

/** Returns a canvas with the chart; an image element would need a policy that lets images load. */
function canvasOf(picture, scale = 2) {
  const [paint, done] = lightPaint();
  const canvas = el("canvas", { width: Math.ceil(picture.width * scale), height: Math.ceil(picture.height * scale) });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = paint("card");
  pen.fillRect(0, 0, picture.width, picture.height);
  for (const mark of picture.marks) PEN[mark.kind](pen, mark, paint);
  done();
  return canvas;
}
function stroke(pen, path, color, width, dash) {
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.setLineDash(dash ? dash.split(" ").map(Number) : []);
  pen.stroke(path);
}
const PEN = {
  line: (pen, m, paint) => stroke(pen, new Path2D(`M${m.x1} ${m.y1}L${m.x2} ${m.y2}`), paint(m.role), 1),
  path: (pen, m, paint) => stroke(pen, new Path2D(pathOf(m.points)), paint(m.role), m.width, m.dash),
  circle: (pen, m, paint) => {
    const path = new Path2D();
    path.arc(m.x, m.y, m.r, 0, 2 * Math.PI);
    pen.fillStyle = paint(m.role);
    pen.fill(path);
    stroke(pen, path, paint(m.rim), 1.5);
  },
  text: (pen, m, paint) => {
    pen.fillStyle = paint(m.role);
    pen.font = `12px ${FONT}`;
    pen.textAlign = m.anchor === "middle" ? "center" : m.anchor;
    pen.fillText(m.text, m.x, m.y);
  },
};

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
const fileName = (id, kind) => `${String(id).replace(/[^\w.-]+/g, "_").slice(0, 80) || "curve"}.${kind}`;

/** A chart in a figure, with buttons that save it; `make` returns the chart for a width. */
function figure(make, id) {
  const picture = make(Math.max(byId("list").clientWidth - 30, 280));
  return el("figure", {}, drawn(picture, onPage), el("figcaption", { class: "files" },
    button("SVG", () => save(new Blob([svgText(picture)], { type: "image/svg+xml" }), fileName(id, "svg")), { "aria-label": "Save curve as SVG" }),
    button("PNG", () => canvasOf(picture).toBlob((blob) => save(blob, fileName(id, "png")), "image/png"), { "aria-label": "Save curve as PNG" })));
}
