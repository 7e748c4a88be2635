// Printing: what is open, completely, and nothing else.
const WIDEST = 640; // px: a page of A4; a wider formula is printed as typed, which breaks into lines
function printed() {
  const open = items.map((item, at) => [item, at]).filter(([item, at]) => isOpen(item, at));
  const note = el("p", { class: "print-note" }, `${count(open.length, "card")} of ${grouped(items.length)}: those that are open`);
  watcher.disconnect();
  list.replaceChildren(note, ...open.map(([, at]) => cardAt(at, { complete: true })));
  for (const node of list.querySelectorAll(".formula.block")) if (node.scrollWidth > WIDEST) node.replaceWith(node.title);
}
addEventListener("beforeprint", printed);
addEventListener("afterprint", () => show(items, draw));

const MOST_OPEN = 200;
/** Opens or closes what is found: at most MOST_OPEN cards are opened, from the first on. */
function openAll(open) {
  for (const [at, item] of items.entries()) item.open = open && at < MOST_OPEN;
  show(items, draw);
  if (open && items.length > MOST_OPEN) byId("count").textContent += `; the first ${MOST_OPEN} are open`;
}
