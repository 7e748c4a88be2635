// Printing: what is open, completely, and nothing else.
const MOST_OPEN = 200; // cards, opened or printed closed at once
const WIDEST = 640; // px: a page of A4; a wider formula is printed as typed, which breaks into lines
function printed() {
  const all = items.map((item, at) => [item, at]), open = all.filter(([item, at]) => isOpen(item, at));
  const chosen = open.length ? open : all.slice(0, MOST_OPEN);
  const note = `${count(chosen.length, "card")} of ${grouped(items.length)}${open.length ? ": those that are open" : ", none of them open"}`;
  watcher.disconnect();
  list.replaceChildren(el("p", { class: "print-note" }, note), ...chosen.map(([, at]) => cardAt(at, { complete: true })));
  for (const node of list.querySelectorAll(".formula.block")) if (node.scrollWidth > WIDEST) node.replaceWith(node.title);
}
addEventListener("beforeprint", printed);
addEventListener("afterprint", () => show(items, draw));

/** Opens or closes what is found: at most MOST_OPEN cards are opened, from the first on. */
function openAll(open) {
  for (const [at, item] of items.entries()) item.open = open && at < MOST_OPEN;
  show(items, draw);
  if (open && items.length > MOST_OPEN) byId("count").textContent += `; the first ${MOST_OPEN} are open`;
}
