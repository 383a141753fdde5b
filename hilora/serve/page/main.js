// Which view is seen, and who is asking.

import { call, hasToken, setToken } from "./api.js";
import { offer, startAsking } from "./ask.js";
import { alarm, by } from "./dom.js";
import { refresh, startPool } from "./pool.js";
import { allow, startUploads } from "./upload.js";

const VIEWS = ["ask", "pool"];

function show() {
  const wanted = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  for (const view of VIEWS) {
    by(view).hidden = view !== wanted;
    by(`to-${view}`).toggleAttribute("aria-current", view === wanted);
  }
  if (wanted === "pool") refresh();
}

async function begin() {
  try {
    const about = await call("about");
    const who = about.tenant ? `for ${about.tenant}` : "";
    by("served").textContent = [about.base, `hilora ${about.version}`, who].filter(Boolean).join(" · ");
    offer(about.methods);
    allow(about);
    by("door").hidden = !hasToken() && !about.tenant && about.scopes.includes("admin"); // nobody needs one
    by("door").open = false;
    alarm("");
    show();
  } catch (error) {
    by("served").textContent = "";
    by("door").hidden = false;
    by("door").open = error.status === 401;
    if (error.status === 401) by("token").focus();
    alarm(error.message);
  }
}

by("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(by("token").value.trim());
  by("token").value = "";
  begin();
});
addEventListener("hashchange", show);
startAsking();
startPool();
startUploads();
begin();
