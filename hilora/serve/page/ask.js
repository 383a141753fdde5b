// A prompt goes to one or two ways of serving it.

import { Answer } from "./answer.js";
import { by, el } from "./dom.js";

const BASE = { id: "base", summary: "The base model alone, without adapters.", score: null };
let ways = [];
let stopping = null;

const option = (way, text = way.id) => el("option", { value: way.id, title: way.summary }, text);

export function offer(methods) {
  ways = [...methods, BASE];
  const kept = [by("method").value, by("other").value];
  by("method").replaceChildren(...ways.map((way) => option(way)));
  by("other").replaceChildren(el("option", { value: "" }, "nothing"), ...ways.map((way) => option(way)));
  for (const [id, value] of [["method", kept[0]], ["other", kept[1]]]) if (value) by(id).value = value;
}

// An adapter of the pool becomes a way of serving, too.
export function pin(name) {
  const id = `adapter:${name}`;
  if (!ways.some((way) => way.id === id)) {
    ways.push({ id, summary: `The adapter ${name}, whatever the prompt.`, score: null, adapter: name });
    for (const select of ["method", "other"]) by(select).append(option(ways.at(-1), `${name} (pinned)`));
  }
  by("method").value = id;
  addEventListener("hashchange", () => by("prompt").focus(), { once: true }); // it cannot be seen yet
  location.hash = "ask";
}

function request(way, seed) {
  const body = { messages: [{ role: "user", content: by("prompt").value }], hilora: { explain: true }, seed };
  if (by("most").value) body.max_tokens = Number(by("most").value);
  if (by("temperature").value) body.temperature = Number(by("temperature").value);
  if (way.adapter !== undefined) return { ...body, model: way.adapter };
  if (way === BASE) return { ...body, model: "base" };
  return { ...body, model: "auto", hilora: { explain: true, method: way.id } };
}

async function ask(event) {
  event.preventDefault();
  stopping?.abort();
  const mine = (stopping = new AbortController());
  const wanted = [by("method").value, by("other").value].filter(Boolean);
  const chosen = wanted.map((id) => ways.find((way) => way.id === id));
  const seed = by("seed").value || String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1); // one for both
  const answers = chosen.map((way) => new Answer(way, request(way, Number(seed))));
  by("answers").replaceChildren(...answers.map((answer) => answer.element));
  by("answers").classList.toggle("two", answers.length > 1);
  by("stop").disabled = false;
  await Promise.all(answers.map((answer) => answer.run(mine.signal)));
  if (stopping === mine) by("stop").disabled = true;
}

export function startAsking() {
  by("ask-form").addEventListener("submit", ask);
  by("stop").addEventListener("click", () => stopping?.abort());
  by("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("ask-form").requestSubmit();
  });
}
