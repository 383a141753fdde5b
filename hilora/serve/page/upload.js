// Adapters are dropped on the page, sent, and followed until they are live or refused.

import { call, send } from "./api.js";
import { alarm, by, el } from "./dom.js";
import { letRemove, refresh } from "./pool.js";

const FIELDS = { "adapter_config.json": "config", "adapter_model.safetensors": "weights", "samples.jsonl": "samples" };
const OPEN = ["received", "checking"];
const PAUSE = 700; // milliseconds between two looks at a state
let chosen = new Map();

export function allow(about) {
  const may = about.scopes.includes("admin") || (about.scopes.includes("upload") && about.tenant);
  by("upload-form").hidden = !(about.uploads && may);
  by("own").hidden = !about.tenant;
  by("private").disabled = !about.scopes.includes("admin");
  letRemove(() => about.uploads && may);
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.filter((each) => each.isFile).map(filesOf))).flat();
}

function choose(files, folder = "") {
  for (const file of files) if (FIELDS[file.name]) chosen.set(FIELDS[file.name], file);
  if (folder && !by("name").value) by("name").value = folder;
  const others = files.filter((file) => !FIELDS[file.name]).map((file) => file.name);
  const lines = Object.entries(FIELDS).map(([name, field]) => {
    const file = chosen.get(field);
    return file ? `✓ ${name}, ${file.size.toLocaleString()} bytes` : `${name} is missing`;
  });
  if (others.length) lines.push(`not used: ${others.slice(0, 5).join(", ")}${others.length > 5 ? " …" : ""}`);
  by("chosen").replaceChildren(...lines.map((line) => el("li", {}, line)));
}

async function drop(event) {
  event.preventDefault();
  by("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  try {
    const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...event.dataTransfer.files];
    choose(files, folder?.name);
  } catch (error) {
    alarm(`The files cannot be read: ${error.message}`);
  }
}

async function upload(event) {
  event.preventDefault();
  const name = by("name").value.trim();
  if (!chosen.has("config") || !chosen.has("weights")) {
    alarm("adapter_config.json and adapter_model.safetensors are needed.");
    return;
  }
  alarm("");
  const form = new FormData();
  form.append("name", name);
  if (!by("own").hidden) form.append("private", String(by("private").checked));
  for (const [field, file] of chosen) form.append(field, file, file.name);
  const state = el("span", { class: "state" }, "sending");
  const sent = el("progress", { max: 1, value: 0, "aria-label": `Sent of ${name}` });
  const told = el("span", {});
  by("uploads").prepend(el("li", {}, el("strong", {}, name), " ", state, " ", sent, " ", told));
  const path = `adapters/${encodeURIComponent(name)}`;
  const replaces = by("replace").checked;
  chosen = new Map();
  by("files").value = by("name").value = "";
  by("chosen").replaceChildren();
  try {
    let found = await send(replaces ? "PUT" : "POST", replaces ? path : "adapters", form, (share) => (sent.value = share));
    sent.remove();
    const id = found.id;
    for (;;) {
      state.textContent = found.state;
      if (!OPEN.includes(found.state)) break;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
      const looked = await call(path);
      found = looked.upload?.id === id ? looked.upload : { state: "live" }; // another has come meanwhile
    }
    told.textContent = found.reason ?? "";
    if (found.state === "live") refresh();
  } catch (error) {
    sent.remove();
    state.textContent = "refused";
    told.textContent = error.message;
  }
  state.classList.add(state.textContent);
}

export function startUploads() {
  const place = by("drop");
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", drop);
  by("files").addEventListener("change", () => choose([...by("files").files]));
  by("upload-form").addEventListener("submit", upload);
}
