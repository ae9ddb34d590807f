// Whether the server is there, and which model it has: asked again while it is not, looked after while it is.

import * as api from "./api.js";
import { settings } from "./settings.js";

const AGAIN = 1000; // ms
const LOOK = 3000; // ms, only while the page is seen

const line = document.getElementById("connection");
const state = document.getElementById("state");
const rows = document.getElementById("rows");

let name = null;
let timer = null;

// The model's name; raises the Failure that keeps it from being known.
export async function model() {
  if (name === null) await probe();
  if (name === null) throw failure;
  return name;
}

let failure = null;

export async function probe() {
  clearTimeout(timer);
  try {
    if (name === null) name = await api.model(settings.key);
    const figures = await api.health();
    show("ready", name, `${figures.rows_in_use} of ${figures.rows} rows busy`);
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    [name, failure] = [null, error]; // another model may come back
    show(error.remedy === "key" ? "key" : "away", `${error.title}${error.remedy === "key" ? "" : ", trying again …"}`, "");
  }
  if (!document.hidden && line.dataset.state !== "key") {
    timer = setTimeout(probe, line.dataset.state === "ready" ? LOOK : AGAIN);
  }
}

// Asks for the name again: another key may open what this one did not, another server have another model.
export function forget() {
  name = null;
  probe();
}

function show(kind, words, busy) {
  line.dataset.state = kind;
  if (state.textContent !== words) state.textContent = words; // said once, not at each look
  rows.textContent = busy;
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) probe();
});
