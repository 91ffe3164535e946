// Shows Markdown while a model writes it: the blocks. inline.js has the marks inside a block.
//
// Each block is made once, when the first letters of its line show its kind. When more text arrives, only the last
// paragraph is made again. So the text does not flicker, and the work is proportional to the length of the answer. If
// the first letters do not show the kind ("1", "1.", "1. "), they appear with the next letters. Raw HTML stays text.

import { el } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 10; // nested quotes and lists; deeper marks are text
const SETTLED = 1000; // letters of a paragraph after which its beginning is not made again
const LONGEST = 8000; // most letters of a paragraph that are made again, even if marks are open
const UNKNOWN = 200; // letters of a line after which its kind is decided

const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])(?: +|$)/;
const TASK = /^\[([ xX])\] /;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)/;
const FENCE = /^( *)(`{3,}|~{3,})[^`]*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const ROW = /^ *\|/;
const DIVIDER = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

const MARKERS = "^(?:[ >]|[-*+](?= )|\\d{1,9}[.)](?= ))*";
const MAY_CHANGE = new RegExp(`${MARKERS}(?:\\+|[-*_][-*_ ]*|\\d{1,9}[.)]?|#{1,6} *|\`{1,2}|~{1,2}|\\[[ xX]?\\]?)?$`);
const WHOLE = new RegExp(`${MARKERS}(?:\`{3}|~{3}|\\|)`); // a line whose kind is known at its end
const MAY_END_CODE = /^ *[`~]* *$/;

export class Markdown {
  #root; // the outermost container: {element, list}
  #stack = []; // quotes and items that are open, the outermost first
  #leaf = null; // the block that takes text: {kind, element, text}
  #line = ""; // the current line, until its kind is known
  #flowing = false; // whether the current line continues in the leaf
  #level = 1; // of the latest heading
  #planned = false; // whether the leaf will be drawn in the next frame

  /** Shows the text in `element`. */
  constructor(element) {
    this.#root = { element, list: null };
  }

  /** Adds a piece of the text. */
  write(piece) {
    piece.replaceAll("\r", "").replaceAll("\t", "    ").split("\n").forEach((part, i) => {
      if (i) this.#endLine();
      this.#take(part);
    });
    if (this.#leaf?.text.length > LONGEST) this.#draw(true); // a hidden tab gets no frames
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => {
      this.#planned = false;
      this.#draw(true);
    });
  }

  /** Shows the rest, because the text is complete. */
  end() {
    this.#endLine();
    this.#close(0);
  }

  #take(part) {
    if (!part) return;
    if (this.#flowing) {
      if (!this.#leaf) this.#open("text", this.#add(el("p")), "");
      this.#leaf.text += part;
      return;
    }
    this.#line += part;
    const start = this.#line.slice(0, UNKNOWN);
    const { isCode, rest } = this.#match(start);
    if (!isCode && WHOLE.test(start)) return;
    if (this.#line.length > UNKNOWN || !(isCode ? MAY_END_CODE.test(rest) : MAY_CHANGE.test(start))) this.#begin();
  }

  #endLine() {
    if (!this.#flowing) this.#begin();
    this.#flowing = false;
  }

  /**
   * How many of the open containers a line belongs to, the rest of the line without their marks, and whether the line
   * belongs to an open block of code.
   */
  #match(line) {
    let rest = line;
    let depth = 0;
    for (; depth < this.#stack.length; depth++) {
      const inner = this.#stack[depth].strip(rest);
      if (inner === null) break;
      rest = inner;
    }
    return { depth, rest, isCode: this.#leaf?.kind === "code" && depth === this.#stack.length };
  }

  /** Finds the kind of the line, which may be incomplete, and adds it to its leaf. */
  #begin() {
    const { depth, rest, isCode } = this.#match(this.#line);
    this.#line = "";
    this.#flowing = true;
    if (isCode) {
      this.#takeCode(rest);
      return;
    }
    const lazy = this.#leaf?.kind === "text" && rest.trim() && !this.#starts(rest, depth);
    if (depth < this.#stack.length && !lazy) this.#close(depth);
    if (!rest.trim()) {
      this.#closeLeaf();
      return;
    }
    this.#addBlock(lazy ? rest : this.#enter(rest));
  }

  /** Whether a line begins a block in the container at `depth`. Otherwise it continues a paragraph. */
  #starts(line, depth) {
    return [QUOTE, HEADING, FENCE, RULE].some((pattern) => pattern.test(line)) || this.#isItem(line, this.#container(depth));
  }

  /** Whether a line begins an item. In a paragraph outside lists, only a mark with text does, and only the number 1. */
  #isItem(line, { list }) {
    const item = ITEM.exec(line);
    if (!item || RULE.test(line)) return false;
    return Boolean(list) || this.#leaf?.kind !== "text" || ((item[3] ?? "1") === "1" && item[0].length < line.length);
  }

  #container(depth = this.#stack.length) {
    return depth ? this.#stack[depth - 1] : this.#root;
  }

  /** Opens the quotes and items that begin in a line. Returns the rest of the line. */
  #enter(line) {
    let rest = line;
    while (this.#stack.length < DEEPEST) {
      const quote = QUOTE.exec(rest);
      const container = this.#container();
      if (quote) {
        rest = rest.slice(quote[0].length);
        const strip = (next) => (QUOTE.test(next) ? next.replace(QUOTE, "") : null);
        this.#stack.push({ element: this.#add(el("blockquote")), list: null, strip });
      } else if (this.#isItem(rest, container)) {
        const [mark, spaces, sign, number] = ITEM.exec(rest);
        rest = rest.slice(mark.length);
        const task = TASK.exec(rest);
        if (task) rest = (task[1] === " " ? "☐ " : "☑ ") + rest.slice(task[0].length);
        const kind = sign.at(-1);
        this.#closeLeaf();
        if (container.list?.kind !== kind) {
          const element = this.#add(number === undefined ? el("ul") : el("ol", { start: Number(number) }));
          container.list = { element, kind };
        }
        const item = el("li");
        container.list.element.append(item);
        // Many models indent the contents of an item by less than the item's text.
        const inside = " ".repeat(spaces.length + 2);
        const strip = (next) => (!next.trim() ? "" : next.startsWith(inside) ? next.slice(inside.length) : null);
        this.#stack.push({ element: item, list: null, strip });
      } else {
        return rest;
      }
    }
    return rest;
  }

  /** Adds a line, without the marks of containers, to a new block or to the open block. */
  #addBlock(line) {
    const heading = HEADING.exec(line);
    const fence = FENCE.exec(line);
    if (this.#leaf?.kind === "table" && !ROW.test(line)) this.#closeLeaf();
    if (heading) {
      this.#level = Math.min(heading[1].length + 1, this.#level + 1, 6); // no level is left out
      this.#open("heading", this.#add(el(`h${this.#level}`)), line.slice(heading[0].length));
    } else if (fence) {
      const code = el("code");
      this.#add(el("pre", { tabIndex: 0 }, code));
      this.#open("code", code, "");
      Object.assign(this.#leaf, { fence: fence[2], indent: fence[1].length, first: true });
    } else if (RULE.test(line)) {
      this.#add(el("hr"));
    } else if (ROW.test(line)) {
      this.#takeRow(line);
    } else if (this.#leaf?.kind === "text") {
      this.#goOn(line);
    } else {
      this.#open("text", this.#add(el("p")), line.trimStart());
    }
  }

  /** Continues a paragraph. */
  #goOn(line) {
    this.#leaf.text += `\n${line.trimStart()}`;
    this.#leaf.head = null;
  }

  #takeCode(line) {
    const leaf = this.#leaf;
    const sign = line.trim();
    if (sign.length >= leaf.fence.length && sign === leaf.fence[0].repeat(sign.length)) {
      this.#closeLeaf();
      return;
    }
    const spaces = Math.min(leaf.indent, line.length - line.trimStart().length);
    leaf.text += (leaf.first ? "" : "\n") + line.slice(spaces);
    leaf.first = false;
  }

  /** A table has a divider below its head. Otherwise its first line is text. */
  #takeRow(line) {
    const cells = line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
      .map((cell) => inline(cell.trim().replaceAll("\\|", "|")).nodes);
    if (this.#leaf?.kind === "table") {
      this.#leaf.element.append(el("tr", {}, ...cells.slice(0, this.#leaf.width).map((cell) => el("td", {}, ...cell))));
    } else if (this.#leaf?.kind === "text" && this.#leaf.head?.length === cells.length && DIVIDER.test(line)) {
      const head = el("tr", {}, ...this.#leaf.head.map((cell) => el("th", { scope: "col" }, ...cell)));
      const body = el("tbody");
      this.#leaf.element.replaceWith(el("div", { class: "scroll", tabIndex: 0 }, el("table", {}, el("thead", {}, head), body)));
      this.#leaf = { kind: "table", element: body, text: "", width: cells.length };
    } else if (this.#leaf?.kind === "text") {
      this.#goOn(line);
    } else {
      this.#open("text", this.#add(el("p")), line.trimStart());
      this.#leaf.head = cells;
    }
  }

  /** Adds an element to the innermost container, as a separate block. */
  #add(element) {
    this.#closeLeaf();
    const container = this.#container();
    container.list = null;
    container.element.append(element);
    return element;
  }

  #open(kind, element, text) {
    this.#leaf = { kind, element, text, head: null, fresh: [] }; // head: cells of a line that may be the head of a table
  }

  /** Closes the containers below `depth`, and the leaf. */
  #close(depth) {
    this.#closeLeaf();
    this.#stack.length = depth;
  }

  #closeLeaf() {
    this.#draw(false);
    this.#leaf = null;
  }

  /** Draws the text of the leaf. `open`: more text may come. */
  #draw(open) {
    const leaf = this.#leaf;
    if (leaf?.kind === "code") {
      leaf.element.append(leaf.text);
      leaf.text = "";
    } else if (leaf?.fresh && !(open && leaf.head)) {
      for (const node of leaf.fresh) node.remove();
      let { nodes, safe } = inline(leaf.text, open);
      if (open && leaf.text.length > LONGEST && !safe) safe = leaf.text.length;
      if (open && leaf.text.length > SETTLED && safe) {
        leaf.element.append(...inline(leaf.text.slice(0, safe)).nodes);
        leaf.text = leaf.text.slice(safe);
        nodes = inline(leaf.text, true).nodes;
      }
      leaf.fresh = nodes.map((node) => (typeof node === "string" ? new Text(node) : node));
      leaf.element.append(...leaf.fresh);
    }
  }
}
