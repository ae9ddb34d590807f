// Three small charts of one answer: tokens per step, tree size, throughput.

import { draw, make, number } from "./dom.js";
import { shade } from "./tree.js";

const [WIDTH, HEIGHT] = [240, 48]; // of the drawing; it is stretched to its place
const MOST = 80; // steps that are shown, the newest
const WINDOW = 8; // steps over which throughput is taken

const place = document.getElementById("charts");
const charts = {
  tokens: chart("Tokens per step"),
  nodes: chart("Tree size"),
  speed: chart("Tokens per second"),
};

function chart(name) {
  const value = make("span", { class: "value" });
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${name}: nothing yet` });
  place.append(make("figure", {}, make("figcaption", {}, make("span", {}, name), value), svg));
  return { name, value, svg };
}

// Tokens a second at each step, over the steps before it; null where there is no time to divide by.
export function speeds(steps) {
  return steps.map((step, i) => {
    const from = Math.max(0, i - WINDOW);
    const tokens = steps.slice(from + 1, i + 1).reduce((sum, s) => sum + s.tokens.length, 0);
    const seconds = step.seconds - steps[from].seconds;
    return seconds > 0 ? tokens / seconds : null;
  });
}

// Tokens a second of all steps after the first, which a prompt takes part in; null where there is none.
export function rate(steps) {
  if (steps.length < 2) return null;
  const tokens = steps.slice(1).reduce((sum, s) => sum + s.tokens.length, 0);
  return tokens / (steps.at(-1).seconds - steps[0].seconds);
}

// `beside` are the steps of the same answer with speculation off, or none; `chosen` the step that is looked at.
export function show(steps, beside, chosen) {
  place.hidden = !steps.length;
  const first = Math.max(0, steps.length - MOST);
  const seen = steps.slice(first);
  bars(charts.tokens, seen, chosen - first, (s) => s.tokens.length, parts);
  bars(charts.nodes, seen, chosen - first, (s) => s.nodes.length, nodes);
  lines(charts.speed, steps, beside, first);
}

const nodes = (step) => [{ size: step.nodes.length, kind: "size", depth: null }];
const parts = (step) =>
  step.tokens.map((_, i) => ({ size: 1, kind: "token", depth: i < step.accepted.length ? shade(i + 1) : null }));

function bars(chart, steps, chosen, value, partsOf) {
  const values = steps.map(value);
  const top = Math.max(...values, 1);
  const width = WIDTH / Math.max(steps.length, 24);
  const drawn = steps.flatMap((step, i) => {
    let y = HEIGHT;
    return partsOf(step).map(({ size, kind, depth }) => {
      const height = (size / top) * (HEIGHT - 4);
      y -= height;
      return draw("rect", { x: i * width + width * 0.1, y, width: width * 0.8, height, class: kind, "data-depth": depth });
    });
  });
  if (chosen >= 0 && chosen < steps.length) {
    drawn.unshift(draw("rect", { x: chosen * width, y: 0, width, height: HEIGHT, class: "chosen" }));
  }
  finish(chart, drawn, values.length ? `mean ${number(mean(values))}, most ${Math.max(...values)}` : "");
}

function lines(chart, steps, beside, first) {
  const [on, off] = [speeds(steps).slice(first), speeds(beside)];
  const top = Math.max(...[...on, ...off].filter((v) => v !== null), 1);
  const line = (points, kind) => {
    const step = WIDTH / Math.max(points.length - 1, 1);
    const at = points.flatMap((v, i) => (v === null ? [] : [`${i * step},${HEIGHT - 2 - (v / top) * (HEIGHT - 6)}`]));
    return at.length > 1 ? [draw("polyline", { points: at.join(" "), class: kind })] : [];
  };
  const [fast, slow] = [rate(steps), rate(beside)];
  const words = fast === null ? "" : number(fast) + (slow === null ? "" : `, with speculation off ${number(slow)}`);
  finish(chart, [...line(off, "off"), ...line(on, "on")], words);
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function finish({ name, value, svg }, drawn, words) {
  value.textContent = words;
  svg.setAttribute("aria-label", `${name}: ${words || "nothing yet"}`);
  svg.replaceChildren(...drawn);
}
