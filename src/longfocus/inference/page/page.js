"use strict";
// Marks where a token of the answer looked, numbers the lines of a hidden stretch when it is opened, and lets the strip
// of a document be clicked. Without it the page keeps its links and opens its stretches, without line numbers.
(() => {
  const LINES = 200;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const made = (name, ...children) => {
    const element = document.createElement(name);
    element.append(...children);
    return element;
  };

  // A hidden stretch is one long text. Blocks let the browser lay out only what is in view.
  const fill = (pre) => {
    if (pre.classList.contains("filled")) return;
    pre.classList.add("filled");
    const nodes = [...pre.childNodes];
    const first = nodes.shift();
    let line = Number(first.dataset.n);
    let block, lines = LINES, isLineStart = true;
    const put = (node, isLineEnd) => {
      if (isLineStart && lines === LINES) {
        block = made("div");
        block.className = "block";
        pre.append(block);
        lines = 0;
      }
      if (isLineStart) {
        const number = pre.contains(first) ? made("i") : first;
        number.dataset.n = line++;
        block.append(number);
        lines++;
        block.style.containIntrinsicBlockSize = `auto ${lines}lh`;
      }
      block.append(node);
      isLineStart = isLineEnd;
    };
    pre.replaceChildren();
    for (const node of nodes) {
      if (node.nodeType !== Node.TEXT_NODE) put(node, false);
      else for (const piece of node.data.match(/[^\n]*\n|[^\n]+/g) ?? []) put(piece, piece.endsWith("\n"));
    }
  };
  const open = (part) => {
    part.open = true;
    all(":scope > pre", part).forEach(fill);
  };
  all(".cold").forEach((part) => part.addEventListener("toggle", () => part.open && open(part)));

  // The strip of a document: to the part that holds the character, and down in it to its line. Characters are code
  // points here and UTF-16 in the browser, so inside a part only the share counts.
  const go = (map, share) => {
    const parts = all("[data-a]", map.closest(".document"));
    const character = share * Number(map.dataset.n);
    const part = parts.findLast((part) => Number(part.dataset.a) <= character);
    if (part.matches("details")) open(part);
    const start = Number(part.dataset.a);
    const end = Number(parts[parts.indexOf(part) + 1]?.dataset.a ?? map.dataset.n);
    const text = part.querySelector("pre") ?? part;
    let left = ((character - start) / (end - start)) * text.textContent.length;
    let number = part;
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (node.nodeName === "I") number = node;
      if (node.nodeType !== Node.TEXT_NODE) continue;
      if (left < node.length) return center(number, node, Math.floor(left));
      left -= node.length;
    }
    center(number, text, 0);
  };
  const center = (number, node, offset) => {
    // a block that was never laid out has an estimated height
    number.closest(".block")?.style.setProperty("content-visibility", "visible");
    number.scrollIntoView({ block: "center" });
    const range = document.createRange();
    range.setStart(node, offset);
    window.scrollBy(0, range.getBoundingClientRect().top - window.innerHeight / 2);
  };
  all(".map").forEach((map) => map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    if (!event.target.closest("a")) go(map, (event.clientX - box.left) / box.width);
  }));

  // Tokens of the answer. data-at: the marks, their share of the token's attention, and their part of the strip.
  const tokens = all("#answer a[data-at]");
  const panel = document.getElementById("looked");
  const places = all("#places li").map((item) => ({ item, range: item.dataset.marks.split(" ").map(Number) }));
  const parsed = (id) => id.slice(1).split("-").map(Number);
  let pinned = null;
  // Outside of its own box nothing may turn the direction of writing.
  const plain = (text) => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
  const around = (marks) => {
    const range = document.createRange();
    const stretch = marks[0].closest("pre");
    range.setStart(stretch, 0);
    range.setEndBefore(marks[0]);
    const before = plain(range.toString()).split("\n").at(-1);
    range.setStartAfter(marks.at(-1));
    range.setEnd(stretch, stretch.childNodes.length);
    const behind = plain(range.toString()).split("\n")[0];
    const lit = made("mark", ...marks.map((mark) => plain(mark.textContent)));
    lit.className = marks[0].className;
    // by code points, so that no character is cut in half
    return made("q", [...before.trimStart()].slice(-40).join(""), lit, [...behind].slice(0, 40).join(""));
  };
  const entry = (at) => {
    const [, ids, share, bin] = /^(.*)=(.*)@(.*)$/.exec(at);
    const marks = ids.split(",").map((id) => document.getElementById(id));
    const home = marks[0].closest(".document");
    const quote = around(marks);
    marks.forEach((mark) => mark.classList.add("on"));
    const [from, mark] = parsed(marks[0].id);
    places.forEach(({ item, range: [of, first, behind] }) => {
      if (of === from && first <= mark && mark < behind) item.classList.add("on");
    });
    const tick = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ class: "on", x: bin, y: 0, width: 2, height: 7 })) tick.setAttribute(name, value);
    home.querySelector(".map").append(tick);
    const link = made("a", `${share}, ${plain(home.querySelector("h3").textContent)}, ${marks[0].title.split(":")[0]}`);
    link.href = `#${marks[0].id}`;
    return made("li", link, quote);
  };
  const show = (token) => {
    all("rect.on").forEach((tick) => tick.remove());
    all(".on").forEach((element) => element.classList.remove("on"));
    if (!token) return panel.replaceChildren();
    const entries = token.dataset.at.split(" ").map(entry);
    token.classList.add("on");
    panel.replaceChildren(made("ol", ...entries));
  };
  tokens.forEach((token, index) => {
    token.tabIndex = index ? -1 : 0;
    token.addEventListener("mouseenter", () => show(token));
    token.addEventListener("mouseleave", () => show(pinned));
    token.addEventListener("focus", () => {
      tokens.forEach((other) => { other.tabIndex = other === token ? 0 : -1; });
      show(pinned = token);
    });
    token.addEventListener("click", () => show(pinned = token));
    token.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) tokens[index + step]?.focus();
    });
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") show(pinned = null); });
  if (tokens.length) {
    document.querySelector(".hint").textContent =
      "Point at a token, or move with the arrow keys: the places it looked at are listed here and outlined in the text. " +
      "Press Enter or click to go to the first. Escape clears.";
  }
})();
