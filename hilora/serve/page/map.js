// Token by adapter: how many of its rank-one components a token uses, and whose part is how large.

import { el, percent, shown } from "./dom.js";

let number = 0;

export function tokenMap(found) {
  const ranks = new Map(found.hilora.adapters.map((part) => [part.name, part.rank]));
  const { tokens, prompt_tokens: own, adapters } = found;
  const head = el("tr", {}, el("th", { scope: "col" }, "Adapter"));
  tokens.forEach((token, place) =>
    head.append(el("th", { scope: "col", class: place < own ? "given" : "said" }, el("span", {}, shown(token)))),
  );
  const body = el("tbody", {});
  const cells = adapters.map((name, column) => {
    const row = el("tr", {}, el("th", { scope: "row", title: name }, name));
    body.append(row);
    return tokens.map((token, place) => {
      const used = found.rocs_used[place][column];
      const added = found.share_added[place][column];
      const told = `${shown(token)}: ${used.toFixed(1)} of ${ranks.get(name)} ROCs of ${name}, ${percent(added)} of what is added`;
      const cell = el("td", { title: told, class: place === own ? "first" : "" }, el("span", { class: "hidden" }, told));
      row.append(cell);
      return { cell, used: used / Math.max(1, ranks.get(name)), added };
    });
  });
  const paint = (by) => cells.flat().forEach((each) => each.cell.style.setProperty("--share", `${100 * each[by]}%`));
  const group = `map-${(number += 1)}`;
  const choice = (by, text, checked) =>
    el("label", {}, el("input", { type: "radio", name: group, checked, onchange: () => paint(by) }), ` ${text}`);
  paint("added");
  return el(
    "figure",
    {},
    el("figcaption", {}, `What ${own} tokens of the prompt and ${tokens.length - own} of the answer use `),
    el(
      "fieldset",
      {},
      el("legend", { class: "hidden" }, "What the map shows"),
      choice("added", "share of what is added", true),
      choice("used", "share of its ROCs", false),
    ),
    el(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Tokens by adapters" },
      el("table", { class: "map" }, el("thead", {}, head), body),
    ),
  );
}
