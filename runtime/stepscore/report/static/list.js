// The list: only what is near the window is in the document, in blocks that keep their height when emptied.
const BLOCK = 30, NEAR = "1500px", GUESS = 75; // items, distance, height of a closed card in px
const list = byId("list");
let items = [], draw, firstOpen;
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? fill : empty)(target);
}, { rootMargin: `${NEAR} 0px` });

const isOpen = (item, at) => item.open ?? at === firstOpen;
function cardAt(at, options) {
  const node = draw(items[at], isOpen(items[at], at), options);
  node.setAttribute("role", node.localName === "details" ? "group" : "note");
  node.dataset.at = at;
  return node;
}
function fill(block) {
  if (block.childElementCount) return;
  const first = Number(block.dataset.first);
  for (let at = first; at < Math.min(first + BLOCK, items.length); at++) block.append(cardAt(at));
  block.style.height = "";
}
function empty(block) {
  if (!block.childElementCount || block.contains(document.activeElement)) return;
  block.style.height = `${block.getBoundingClientRect().height}px`;
  block.replaceChildren();
}

/** Shows the items, each drawn as a card by `card`. */
function show(found, card) {
  watcher.disconnect();
  [items, draw] = [found, card];
  firstOpen = items.findIndex((item) => !item.error);
  const blocks = [];
  for (let first = 0; first < items.length; first += BLOCK) {
    const block = el("div", { class: "block", "data-first": first });
    block.style.height = `${Math.min(BLOCK, items.length - first) * GUESS}px`;
    blocks.push(block);
  }
  list.replaceChildren(...blocks);
  if (blocks.length) fill(blocks[0]);
  for (const block of blocks) watcher.observe(block);
}

const focusable = (at) => list.children[Math.floor(at / BLOCK)].querySelector(`[data-at="${at}"] > summary`);
/** Brings an item into view and focuses it. */
function reveal(at) {
  fill(list.children[Math.floor(at / BLOCK)]);
  const head = focusable(at);
  (head ?? list).scrollIntoView({ block: "start" });
  head?.focus({ preventScroll: true });
}
/** Focuses the next item that opens, or the previous one. */
function move(by) {
  const now = document.activeElement?.closest?.("[data-at]");
  let at = now ? Number(now.dataset.at) + by : by > 0 ? 0 : -1;
  while (items[at]?.error) at += by;
  if (at < 0 || at >= items.length) return;
  fill(list.children[Math.floor(at / BLOCK)]);
  focusable(at)?.focus();
}
