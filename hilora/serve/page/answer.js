// One answer as it comes, the adapters that give it, and what its tokens use of them.

import { call, stream } from "./api.js";
import { bar, el, percent } from "./dom.js";
import { tokenMap } from "./map.js";

const SEEN = new Map([[true, ["seen", "It knows such prompts."]], [false, ["unseen", "It does not know such prompts."]]]);

export class Answer {
  constructor(way, request) {
    this.way = way;
    this.request = request;
    this.text = el("p", { class: "text", "aria-live": "polite" });
    this.state = el("p", { class: "quiet", role: "status" }, "waiting …");
    this.adapters = el("div", { class: "scroll" });
    this.map = el("div", {});
    this.element = el(
      "article",
      { class: "answer", "aria-busy": "true" },
      el("h3", {}, way.adapter ?? way.id),
      el("p", { class: "quiet" }, way.summary),
      this.text,
      this.state,
      this.adapters,
      this.map,
    );
  }

  async run(signal) {
    const began = performance.now();
    let first = 0;
    let usage = null;
    let why = null;
    let reason = "";
    try {
      for await (const chunk of stream("chat/completions", this.request, signal)) {
        if (chunk.hilora) this.tell((why = chunk.hilora));
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (choice?.delta?.content) {
          first ||= performance.now() - began;
          this.text.append(choice.delta.content);
        }
        reason = choice?.finish_reason ?? reason;
      }
      this.finish(why, usage, reason, first, performance.now() - began);
      if (why.adapters.length) await this.look(why, signal);
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.state.textContent = stopped ? "stopped" : error.message;
      this.state.classList.toggle("wrong", !stopped);
    } finally {
      this.element.setAttribute("aria-busy", "false");
    }
  }

  tell(why) {
    this.state.textContent = "answering …";
    const kind = this.way.score;
    const heads = ["Adapter", "Weight", kind ? kind.name : "score", "ROCs"];
    const rows = why.adapters.map((part) => {
      const [word, meaning] = SEEN.get(part.seen) ?? ["", ""];
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, part.name, " ", word && el("span", { class: word, title: meaning }, word)),
        el("td", {}, bar(part.weight ?? 0, percent(part.weight ?? 0))),
        el("td", { class: "number" }, this.score(part.score)),
        el("td", {}, bar(part.rocs / part.rank, `${part.rocs} of ${part.rank}`)),
      );
    });
    const head = heads.map((text, place) => el("th", { scope: "col", title: place === 2 && kind ? kind.meaning : "" }, text));
    const table = el("table", { class: "adapters" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
    this.adapters.replaceChildren(...(rows.length ? [table] : [el("p", {}, "The base model answers alone.")]));
    if (why.note) this.adapters.append(el("p", { class: "note" }, why.note));
  }

  score(value) {
    if (value === null || value === undefined) return "";
    return this.way.score?.name === "probability" ? percent(Math.exp(Math.min(0, value))) : value.toFixed(3);
  }

  finish(why, usage, reason, first, whole) {
    if (!this.text.textContent) this.text.append(el("em", {}, why.abstained ? "no answer: no adapter fits" : "an empty answer"));
    const seconds = (value) => `${(value / 1000).toFixed(value < 10000 ? 2 : 0)} s`;
    const count = usage.completion_tokens;
    const told = [`${count} ${count === 1 ? "token" : "tokens"} in ${seconds(whole)}`, first && `the first after ${seconds(first)}`];
    told.push(reason === "length" && "cut at the most tokens", `seed ${why.seed}`, why.epoch && `epoch ${why.epoch.slice(0, 8)}`);
    this.state.textContent = told.filter(Boolean).join(" · ");
  }

  async look(why, signal) {
    const { max_tokens, temperature, ...asked } = this.request;
    this.map.replaceChildren(el("p", { class: "quiet" }, "looking at its tokens …"));
    try {
      const body = { ...asked, seed: why.seed, answer: this.text.textContent };
      const map = tokenMap(await call("activations", { method: "POST", body, signal }));
      this.map.replaceChildren(map);
      const answer = map.querySelector(".said");
      if (answer) answer.closest(".scroll").scrollLeft = answer.offsetLeft - map.clientWidth / 2;
    } catch (error) {
      this.map.replaceChildren(el("p", { class: "quiet" }, `No map of its tokens: ${error.message}`));
    }
  }
}
