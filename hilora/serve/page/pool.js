// The adapters that the reader sees, and how many prompts each has answered.

import { call } from "./api.js";
import { pin } from "./ask.js";
import { alarm, bar, by, el } from "./dom.js";

const MOST = 200; // rows at once
const EVERY = 5000; // milliseconds
let models = [];
let counts = new Map();
let since = "";
let mayRemove = () => false;

export const letRemove = (test) => (mayRemove = test);

function draw() {
  const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = models.filter((each) => words.every((word) => each.id.toLowerCase().includes(word)));
  const most = Math.max(1, ...counts.values());
  const order = (a, b) => (counts.get(b.id) ?? 0) - (counts.get(a.id) ?? 0) || a.id.localeCompare(b.id);
  const rows = fits.sort(order).slice(0, MOST).map((each) => row(each, counts.get(each.id) ?? 0, most));
  const held = by("adapters").contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  by("adapters").tBodies[0].replaceChildren(...rows);
  if (held) by("adapters").querySelector(`[aria-label="${CSS.escape(held)}"]`)?.focus();
  const count = words.length ? `${fits.length} of ${models.length}` : String(models.length);
  by("found").textContent = `${count} adapters; prompts since ${since}`;
  by("more").textContent = fits.length > MOST ? `The first ${MOST} are shown; search for others.` : "";
}

function row(each, count, most) {
  const name = each.id;
  const buttons = [el("button", { class: "plain", type: "button", onclick: () => pin(name), "aria-label": `Ask ${name}` }, "Ask")];
  if (mayRemove(each))
    buttons.push(el("button", { class: "plain", type: "button", onclick: () => remove(name), "aria-label": `Take out ${name}` }, "Remove"));
  return el(
    "tr",
    {},
    el("th", { scope: "row", title: `content ${each.hilora.hash}` }, name),
    el("td", {}, bar(count / most, String(count))),
    el("td", { class: "number wide" }, String(each.hilora.rank)),
    el("td", { class: "number wide" }, String(each.hilora.samples)),
    el("td", {}, each.hilora.enabled ? "live" : "disabled"),
    el("td", { class: "actions" }, ...buttons),
  );
}

async function remove(name) {
  by("sure-text").textContent = `Take ${name} out of the pool? Nothing is routed to it from then on.`;
  by("sure").showModal();
  await new Promise((resolve) => by("sure").addEventListener("close", resolve, { once: true }));
  if (by("sure").returnValue !== "yes") return;
  try {
    await call(`adapters/${encodeURIComponent(name)}`, { method: "DELETE" });
    alarm("");
  } catch (error) {
    alarm(error.message);
  }
  await refresh();
}

export async function refresh() {
  try {
    const [listed, traffic] = await Promise.all([call("models"), call("traffic")]);
    models = listed.data.filter((each) => each.hilora);
    counts = new Map(traffic.data.map((each) => [each.name, each.prompts]));
    since = new Date(1000 * traffic.since).toLocaleString();
    draw();
  } catch (error) {
    if (error.status !== 401) alarm(error.message);
  }
}

export function startPool() {
  by("search").addEventListener("input", draw);
  setInterval(() => by("pool").hidden || document.hidden || refresh(), EVERY);
}
