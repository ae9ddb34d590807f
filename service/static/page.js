// The page: what is asked, and which answer the panel shows.

import { Failure } from "./api.js";
import * as charts from "./charts.js";
import * as connection from "./connection.js";
import { Exchange } from "./exchange.js";
import * as settings from "./settings.js";
import * as tree from "./tree.js";

const element = (id) => document.getElementById(id);
const [conversation, welcome, question, send] = ["conversation", "welcome", "question", "send"].map(element);
const [replay, panel, openPanel] = ["replay", "panel", "open-panel"].map(element);

let exchanges = [];
let running = null; // the AbortController of what streams
let shown = null; // the answer in the panel
let drawing = false;

async function ask(text) {
  begin();
  const signal = running.signal;
  const messages = [...exchanges.filter((e) => e.said).flatMap((e) => e.turns), { role: "user", content: text }];
  const exchange = new Exchange(text, { messages, ...settings.parameters() }, look, tell);
  exchanges.push(exchange);
  welcome.hidden = true;
  conversation.append(exchange.element);
  follow(true);
  try {
    exchange.body.model = await connection.model();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    exchange.fail(failure, remedies);
    end();
    return;
  }
  await exchange.ask(settings.settings.key, signal, remedies);
  if (wanted() && !signal.aborted) await exchange.replay(settings.settings.key, signal, remedies);
  if (exchange.answer.state === "failed") connection.forget();
  if (running?.signal === signal) end();
}

function begin() {
  running = new AbortController();
  send.textContent = "Stop";
  if (shown) shown.leave();
}

function end() {
  follow();
  running = null;
  send.textContent = "Send";
}

function stop() {
  running?.abort();
}

const remedies = {
  again(exchange) {
    if (running) return;
    exchanges = exchanges.filter((other) => other !== exchange);
    exchange.element.remove();
    question.focus();
    ask(exchange.question);
  },
  key: settings.open,
};

// Of the newest answer only: what stands above has been read.
async function replayLast() {
  const last = exchanges.at(-1);
  if (running || !last) return;
  running = new AbortController();
  const signal = running.signal;
  send.textContent = "Stop";
  await last.replay(settings.settings.key, signal, remedies);
  if (running?.signal === signal) end();
}

const wanted = () => replay.getAttribute("aria-checked") === "true";

function tell(words) {
  element("announcer").textContent = words;
}

// Draws once a frame, however many steps came since.
function look(answer) {
  const exchange = exchanges.find((e) => e.replayed === answer || e.answer === answer);
  if (!exchange) return; // of a chat that is left
  if (shown && shown !== answer && answer.chosen >= 0) shown.leave();
  if (answer === exchange.replayed && answer.chosen < 0) answer = exchange.answer; // its line is drawn beside
  shown = answer;
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    follow();
    if (!shown?.steps.length) return;
    const of = exchanges.find((e) => e.replayed === shown || e.answer === shown);
    const beside = of?.answer === shown ? (of.replayed?.steps ?? []) : [];
    tree.show(shown.steps[shown.current], shown.current + 1, shown.steps.length);
    charts.show(shown.steps, beside, shown.chosen);
  });
}

let atEnd = true; // the reader has not scrolled up
let seen = 0; // scrollY when it was looked at last
addEventListener("scroll", () => {
  // Told a frame later: that the end is far may be what came since, and no reader's doing.
  if (innerHeight + scrollY > document.documentElement.scrollHeight - 80) atEnd = true;
  else if (scrollY < seen) atEnd = false;
  seen = scrollY;
});

function follow(always = false) {
  if (always) atEnd = true;
  else if (!atEnd || !running) return;
  scrollTo(0, document.documentElement.scrollHeight);
  seen = scrollY;
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function submit() {
  const text = question.value.trim();
  if (!text || running) return;
  question.value = "";
  fit();
  ask(text);
}

function togglePanel(open) {
  document.body.classList.toggle("panel-open", open);
  openPanel.setAttribute("aria-expanded", open);
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) stop();
  else submit();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || element("settings").open) return;
  if (running) stop();
  else togglePanel(false);
});
element("suggestions").addEventListener("click", (event) => {
  if (event.target.matches("button") && !running) {
    question.focus();
    ask(event.target.textContent);
  }
});
replay.addEventListener("click", () => {
  replay.setAttribute("aria-checked", !wanted());
  if (wanted()) replayLast();
});
element("new-chat").addEventListener("click", () => {
  stop();
  running = shown = null;
  send.textContent = "Send";
  exchanges = [];
  conversation.replaceChildren(welcome);
  welcome.hidden = false;
  tree.clear();
  charts.show([], [], -1);
  question.focus();
});
openPanel.addEventListener("click", () => {
  togglePanel(!document.body.classList.contains("panel-open"));
  if (document.body.classList.contains("panel-open")) element("panel-title").focus();
});
element("close-panel").addEventListener("click", () => {
  togglePanel(false);
  openPanel.focus();
});
conversation.addEventListener("wanted", () => {
  togglePanel(true);
  conversation.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
});

settings.start(connection.forget);
charts.show([], [], -1);
connection.probe();
if (!matchMedia("(pointer: coarse)").matches) question.focus(); // there, a keyboard would cover half of the page
