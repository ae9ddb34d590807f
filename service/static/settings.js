// What people may set, and where the browser keeps it.

const PLACE = "gorgon.settings";
const DEFAULTS = { temperature: 0, maxTokens: 256, seed: null, speculation: "auto", nodes: 16, key: "" };

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const field = (id) => document.getElementById(id);

export let settings = { ...DEFAULTS, ...stored() };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch {
    return {}; // nothing is kept here, or not by this page
  }
}

// The fields of a request, but for its messages. Without a seed of their own, questions get one each, so that a replay
// draws the same numbers.
export function parameters() {
  const { temperature, maxTokens, seed, speculation, nodes } = settings;
  return {
    temperature,
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    seed: seed ?? crypto.getRandomValues(new Uint32Array(1))[0],
    speculation: speculation === "number" ? nodes : speculation,
  };
}

export function open() {
  field("temperature").value = settings.temperature;
  field("max-tokens").value = settings.maxTokens ?? "";
  field("seed").value = settings.seed ?? "";
  field("speculation").value = settings.speculation;
  field("nodes").value = settings.nodes;
  field("key").value = settings.key;
  fix();
  dialog.showModal();
}

// `changed` is called when other settings than before are saved.
export function start(changed) {
  field("open-settings").addEventListener("click", open);
  field("cancel-settings").addEventListener("click", () => dialog.close());
  field("speculation").addEventListener("change", fix);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
    dialog.close();
    changed();
  });
}

function fix() {
  field("nodes").disabled = field("speculation").value !== "number";
}

function save() {
  const number = (id) => (field(id).value === "" ? null : Number(field(id).value));
  settings = {
    temperature: number("temperature"),
    maxTokens: number("max-tokens"),
    seed: number("seed"),
    speculation: field("speculation").value,
    nodes: number("nodes") ?? DEFAULTS.nodes,
    key: field("key").value.trim(),
  };
  try {
    localStorage.setItem(PLACE, JSON.stringify(settings));
  } catch {
    field("kept").textContent = "This browser keeps nothing: they last until the page is closed.";
  }
}
