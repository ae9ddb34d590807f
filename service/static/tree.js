// One step in the panel: its draft tree as nested lists, with what was accepted and what was not.

import { count, make } from "./dom.js";

const title = document.getElementById("step-title");
const words = document.getElementById("step-words");
const place = document.getElementById("tree");
const DEEPEST = 5; // with a colour of its own

export const shade = (depth) => (depth ? Math.min(depth, DEEPEST) : null);

// What a step did, in a sentence.
export function sentence(step) {
  const drafted = Math.max(0, step.nodes.length - 1);
  if (!step.nodes.length) return "The prompt gave this token: nothing was drafted.";
  if (!drafted) return "Nothing was drafted: one token, the model's own.";
  const fates = `${drafted} drafted: ${step.accepted.length} accepted, ${drafted - step.accepted.length} refused.`;
  const own = step.tokens.length > step.accepted.length;
  return `${fates} ${own ? "With the model's own, " : ""}${count(step.tokens.length, "token")}${own ? " in all" : ""}.`;
}

export function show(step, number, of) {
  title.textContent = `Step ${number} of ${of}`;
  words.textContent = sentence(step);
  place.hidden = step.nodes.length < 2;
  place.replaceChildren(make("ul", {}, branch(step, 0, 0)));
  place.scrollTo(0, 0);
}

export function clear() {
  title.textContent = "No step yet";
  words.textContent = "Point at a coloured token, or move along the steps below an answer, to see what was drafted.";
  place.hidden = true;
  place.replaceChildren();
}

function branch(step, node, depth) {
  if (!step.nodes.length) return "";
  const accepted = step.accepted.includes(node);
  const fate = depth === 0 ? "root" : accepted ? "accepted" : "refused";
  const item = make("li", {}, chip(step.nodes[node].text, fate, accepted ? depth : 0));
  const children = step.nodes.flatMap((child, i) => (child.parent === node ? [branch(step, i, depth + 1)] : []));
  if (node === (step.accepted.at(-1) ?? 0)) {
    const own = step.tokens.slice(step.accepted.length);
    children.push(...own.map((token) => make("li", {}, chip(token.text || "the end", "own", 0))));
  }
  if (children.length) item.append(make("ul", {}, ...children));
  return item;
}

const FATES = { root: "where the step began", accepted: "accepted", refused: "refused", own: "the model's own" };

function chip(text, fate, depth) {
  const seen = text.replaceAll(" ", "·").replaceAll("\n", "⏎") || "∅";
  return make(
    "span",
    { class: `chip ${fate}`, "data-depth": shade(depth), title: FATES[fate] },
    seen,
    make("span", { class: "unseen" }, `, ${FATES[fate]}`),
  );
}
