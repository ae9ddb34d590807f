// A question, its answer, and beside it the same question answered with speculation off.

import { Answer } from "./answer.js";
import { make, milliseconds } from "./dom.js";

export class Exchange {
  // `told` is called with what a screen reader is to say.
  constructor(question, body, looked, told) {
    this.question = question;
    this.body = body;
    this.answer = new Answer(named(body), looked);
    this.replayed = null;
    this._looked = looked;
    this._told = told;
    this._answers = make("div", { class: "answers" }, this.answer.element);
    this._verdict = make("p", { class: "verdict", hidden: true });
    this._errors = make("div", {});
    const heading = make("h2", { class: "question" }, make("span", { class: "unseen" }, "You ask: "), question);
    this.element = make("article", { class: "exchange" }, heading, this._answers, this._verdict, this._errors);
  }

  // Whether it can stand before the next question.
  get said() {
    return this.answer.text !== "" && ["whole", "stopped"].includes(this.answer.state);
  }

  get turns() {
    return [{ role: "user", content: this.question }, { role: "assistant", content: this.answer.text }];
  }

  async ask(key, signal, remedies) {
    this._told("Answering");
    const failure = await this.answer.stream(this.body, key, signal);
    if (failure) this._fail(failure, remedies);
    else this._told(this.answer.state === "stopped" ? "Stopped" : `Answer: ${this.answer.text}`);
  }

  // Only of a whole answer, and once.
  async replay(key, signal, remedies) {
    if (this.replayed !== null || this.answer.state !== "whole") return;
    const body = { ...this.body, speculation: "off" };
    this.replayed = new Answer(named(body), this._looked);
    this._answers.append(this.replayed.element);
    this._answers.classList.add("beside");
    const failure = await this.replayed.stream(body, key, signal);
    if (failure) this._fail(failure, remedies);
    this._compare();
  }

  fail(failure, remedies) {
    this.answer.state = "failed";
    this._fail(failure, remedies);
  }

  // Says whether the texts are equal, character by character, and what each took.
  _compare() {
    const [on, off] = [this.answer, this.replayed];
    this._verdict.hidden = false;
    if (off.state !== "whole") {
      this._verdict.textContent = "The replay did not come to its end: not compared.";
    } else if (on.text === off.text) {
      const times = `${milliseconds(on.took)}, and ${milliseconds(off.took)} with speculation off`;
      const ratio = off.took / on.took;
      const faster = ratio >= 1.05 ? `: ${ratio.toFixed(1)} times as fast` : "";
      this._verdict.replaceChildren(make("strong", {}, "The texts are equal."), ` ${times}${faster}.`);
      this._verdict.dataset.equal = "true";
    } else {
      let at = 0;
      while (on.text[at] === off.text[at]) at += 1;
      this._verdict.textContent = `The texts differ from character ${at + 1} on. Rounding can do that where two tokens are almost equally likely.`;
      this._verdict.dataset.equal = "false";
    }
    this._told(this._verdict.textContent);
  }

  _fail(failure, { again, key }) {
    const words = make("p", { role: "alert" }, make("strong", {}, failure.title), `: ${failure.message}`);
    this._answers.hidden = this.answer.text === "";
    const buttons = [];
    if (failure.remedy === "key") buttons.push(button("Enter a key", key));
    if (failure.remedy !== null) buttons.push(button("Ask again", () => again(this)));
    this._errors.replaceChildren(make("div", { class: "error" }, words, ...buttons));
  }
}

function button(words, pressed) {
  const element = make("button", { type: "button" }, words);
  element.addEventListener("click", pressed);
  return element;
}

const named = ({ speculation }) =>
  typeof speculation === "number" ? `Speculation: ${speculation} nodes` : `Speculation ${speculation}`;
