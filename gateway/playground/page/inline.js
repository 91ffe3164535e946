// Turns the marks inside a paragraph into elements: emphasis, code and links. Everything else stays text.
//
// The text comes from a model, so it may be hostile. Links lead only to the web or to a mail program. Pictures become
// links, because the page must not load anything from other hosts.

import { el } from "./dom.js";

const DEEPEST = 8; // nested marks; deeper marks are text
const ELEMENTS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };
const PLAIN = /[^\\`*_~[\]!<h]+/y;
const ADDRESS = /https?:\/\/[^\s<>"`*]*[^\s<>"`*.,:;!?'_~)\]]\)*/iy;
const BRACKETED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
const TARGET = /\(\s*(?:<([^<>\n]*)>|([^\s()]*(?:\([^\s()]*\)[^\s()]*)*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const WORD = /[\p{L}\p{N}]/u;

/**
 * The nodes for `text`. If `open`, the text is not complete: a mark that is still open counts as closed at the end, so
 * that the text does not change when the closing mark arrives.
 *
 * `safe` is a number of characters that no later text can change.
 */
export function inline(text, open = false) {
  const frames = [{ mark: "", nodes: [] }]; // marks that are open, the outermost first
  const lonely = new Set(); // lengths of runs of backticks without a closing run
  let safe = 0;
  let at = 0;

  const add = (...nodes) => {
    const { nodes: list } = frames.at(-1);
    for (const node of nodes) {
      if (typeof node === "string" && typeof list.at(-1) === "string") list.push(list.pop() + node);
      else list.push(node);
    }
  };
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  /** Closes frames until only `count` are left; their marks become text. */
  const giveUp = (count) => {
    while (frames.length > count) {
      const { mark, nodes } = frames.pop();
      add(mark, ...nodes);
    }
  };
  const wrap = () => {
    const { mark, nodes } = frames.pop();
    if (nodes.length) add(el(ELEMENTS[mark], {}, ...nodes));
  };

  const takeCode = () => {
    const [run] = match(/`+/y);
    let end = lonely.has(run.length) ? -1 : closing(text, at + run.length, run.length);
    if (end < 0 && !open) {
      lonely.add(run.length);
      add(run);
      at += run.length;
      return;
    }
    if (end < 0) end = text.length;
    const code = text.slice(at + run.length, end).replaceAll("\n", " ").replace(/^ (.*[^ ].*) $/, "$1");
    if (code) add(el("code", {}, code));
    at = end + run.length;
  };

  const takeMark = () => {
    const [run] = match(/\*+|_+|~+/y);
    const [before, after] = [text[at - 1] ?? " ", text[at + run.length] ?? " "];
    at += run.length;
    if (open && at === text.length) return; // its meaning depends on the next text
    const inWord = (letter) => run[0] === "_" && WORD.test(letter);
    const opens = !/\s/.test(after) && !inWord(before);
    const closes = !/\s/.test(before) && !inWord(after);
    let left = run;
    while (left) {
      const found = closes ? frames.findLastIndex(({ mark }) => mark && mark !== "[" && left.startsWith(mark)) : -1;
      if (found > 0) {
        const { mark } = frames[found];
        giveUp(found + 1);
        wrap();
        left = left.slice(mark.length);
        continue;
      }
      const mark = left.slice(0, 2) in ELEMENTS ? left.slice(0, 2) : left[0];
      if (!opens || run.length > 3 || !(mark in ELEMENTS) || frames.length > DEEPEST) break;
      frames.push({ mark, nodes: [] });
      left = left.slice(mark.length);
    }
    if (left) add(left);
  };

  const takeBracket = () => {
    const found = frames.findLastIndex(({ mark }) => mark === "[" || mark === "![");
    at += 1;
    if (found < 0) {
      add("]");
      return;
    }
    giveUp(found + 1);
    const { mark, nodes } = frames.pop();
    const target = match(TARGET);
    if (target) {
      at += target[0].length;
      const label = nodes.length ? nodes : [target[1] ?? target[2]];
      add(...link(target[1] ?? target[2], mark === "![" ? ["picture: ", ...label] : label));
    } else if (open && match(/(?:\([^\s()]*)?$/y)) {
      at = text.length;
      add(...nodes);
    } else {
      add(mark, ...nodes, "]");
    }
  };

  while (at < text.length) {
    const letter = text[at];
    const plain = match(PLAIN);
    const inLink = frames.some(({ mark }) => mark.endsWith("["));
    if (plain) {
      if (frames.length === 1) safe = Math.max(safe, at + 1 + Math.max(plain[0].lastIndexOf(" "), plain[0].lastIndexOf("\n")));
      add(plain[0]);
      at += plain[0].length;
    } else if (letter === "`") {
      takeCode();
    } else if ("*_~".includes(letter)) {
      takeMark();
    } else if (letter === "[" || (letter === "!" && text[at + 1] === "[")) {
      const mark = letter === "[" ? "[" : "![";
      if (inLink || frames.length > DEEPEST) add(mark);
      else frames.push({ mark, nodes: [] });
      at += mark.length;
    } else if (letter === "]") {
      takeBracket();
    } else if (letter === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      add(text[at + 1]);
      at += 2;
    } else {
      const found = inLink || WORD.test(text[at - 1] ?? " ") ? null : match(letter === "<" ? BRACKETED : ADDRESS);
      const address = found && (found[1] ?? balanced(found[0]));
      if (address) add(...link(address, [address]));
      else add(letter);
      at += found ? (found[1] ? found[0] : address).length : 1;
    }
  }
  if (open) while (frames.length > 1 && frames.at(-1).mark in ELEMENTS) wrap();
  giveUp(1);
  return { nodes: frames[0].nodes, safe };
}

/** Index of the next run of exactly `count` backticks, from `start` on; -1 if there is none. */
function closing(text, start, count) {
  const runs = /`+/g;
  runs.lastIndex = start;
  for (let run = runs.exec(text); run; run = runs.exec(text)) {
    if (run[0].length === count) return run.index;
  }
  return -1;
}

/** An address without closing parentheses that belong to the sentence around it. */
function balanced(address) {
  let end = address.length;
  let extra = address.split(")").length - address.split("(").length;
  for (; extra > 0 && address[end - 1] === ")"; extra--) end -= 1;
  return address.slice(0, end);
}

/** A link if the address leads to the web or to a mail program; otherwise only its text. */
function link(address, nodes) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address) || !URL.canParse(address)) return nodes;
  return [el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...nodes)];
}
