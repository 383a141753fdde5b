// Elements of the page. Whatever comes from a server is text here, never markup.

export const by = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function bar(share, text) {
  const width = `${Math.round(1000 * Math.min(1, Math.max(0, share))) / 10}%`;
  return el("span", { class: "bar", "--share": width }, el("span", {}, text));
}

// What cannot be seen in a token is shown by a sign.
export const shown = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";

export const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;

export function alarm(text) {
  by("alert").textContent = text;
  by("alert").hidden = !text;
}
