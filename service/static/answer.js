// One answer: its coloured text, the steps it came in, and what it took.

import { Failure, chat } from "./api.js";
import { rate } from "./charts.js";
import { count, make, milliseconds, number } from "./dom.js";
import { sentence, shade } from "./tree.js";

let made = 0;

export class Answer {
  // `looked` is called with the answer when another of its steps is to be seen, or there is more of it.
  constructor(heading, looked) {
    this.steps = [];
    this.text = "";
    this.state = "waiting"; // then "streaming", and in the end "whole", "stopped" or "failed"
    this.chosen = -1; // -1: the newest
    this.took = 0; // ms, from the question to the end
    this._looked = looked;
    this._words = make("p", { class: "text" });
    this._step = make("input", { type: "range", id: `steps-${(made += 1)}`, min: 1, max: 1, value: 1 });
    this._label = make("label", { for: this._step.id }, "Steps");
    this._steps = make("div", { class: "steps", hidden: true }, this._label, this._step);
    this._figures = make("p", { class: "figures" });
    this._heading = make("h3", {}, heading);
    this.element = make("section", { class: "answer", "aria-busy": "true" }, this._heading, this._words, this._steps, this._figures);
    this._listen();
  }

  // Asks, and shows what comes; the state says how it ended, and the Failure, if there was one, is returned.
  async stream(body, key, signal) {
    const began = performance.now();
    try {
      for await (const part of chat(body, key, signal)) {
        this.state = "streaming";
        this._add(part);
      }
      this.state = "whole";
      return null;
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed" && !(error instanceof Failure)) throw error;
      return this.state === "failed" ? error : null;
    } finally {
      this.took = performance.now() - began;
      this.element.removeAttribute("aria-busy");
      this._figures.textContent = this._summary();
    }
  }

  get current() {
    return this.chosen < 0 ? this.steps.length - 1 : this.chosen;
  }

  choose(step) {
    this.chosen = step;
    this._mark();
    this._looked(this);
  }

  // No step of it is looked at any more.
  leave() {
    this.chosen = -1;
    for (const token of this._words.querySelectorAll(".chosen")) token.classList.remove("chosen");
  }

  _add({ text, trace }) {
    this.text += text;
    if (trace === null) {
      this._words.append(text); // what was held back when an answer ends early belongs to no step
      return;
    }
    const step = this.steps.push(trace) - 1;
    for (const [i, token] of trace.tokens.entries()) {
      const said = token.text.trimStart();
      const gap = token.text.slice(0, token.text.length - said.length); // without colour: a line may break in it
      const depth = i < trace.accepted.length ? shade(i + 1) : null;
      if (gap) this._words.append(make("span", { "data-step": step }, gap));
      if (said) this._words.append(make("span", { class: "token", "data-step": step, "data-depth": depth }, said));
    }
    this._steps.hidden = false;
    this._step.max = this.steps.length;
    if (this.chosen < 0) this._step.value = this.steps.length;
    this._describe();
    this._looked(this);
  }

  _listen() {
    const wanted = () => this.element.dispatchEvent(new Event("wanted", { bubbles: true }));
    this._words.addEventListener("pointerover", ({ target }) => {
      if (target.dataset.step) this.choose(Number(target.dataset.step));
    });
    this._words.addEventListener("pointerleave", () => this.state === "streaming" && this.leave());
    this._words.addEventListener("click", ({ target }) => target.dataset.step && wanted());
    this._step.addEventListener("focus", () => this.choose(this._step.valueAsNumber - 1));
    this._step.addEventListener("input", () => {
      this.choose(this._step.valueAsNumber - 1);
      wanted();
    });
  }

  _mark() {
    this._step.value = this.current + 1;
    this._describe();
    for (const token of this._words.children) token.classList.toggle("chosen", Number(token.dataset.step) === this.chosen);
  }

  _describe() {
    const text = this.steps[this.current].tokens.map((token) => token.text).join("");
    const words = `${this.current + 1} of ${this.steps.length}: ${text}. ${sentence(this.steps[this.current])}`;
    this._step.setAttribute("aria-valuetext", words);
  }

  _summary() {
    const tokens = this.steps.reduce((sum, step) => sum + step.tokens.length, 0);
    const speed = rate(this.steps);
    const parts = [
      this.state === "stopped" ? "stopped" : null,
      `${count(tokens, "token")} in ${count(this.steps.length, "step")}`,
      tokens ? `first after ${milliseconds(this.steps[0].seconds * 1000)}` : null,
      `${milliseconds(this.took)} in all`,
      speed === null ? null : `${number(speed)} tokens/s`,
    ];
    return parts.filter(Boolean).join(" · ");
  }
}
