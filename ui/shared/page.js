/* The script that both pages add to Gradio: it runs actions in order, reports an ended session or an unreachable server,
   brings what is asked for into view, and sets the direction of text. */
"use strict";
(() => {
  const BEAT_MS = 2000, PATIENCE_MS = 3500, LONGEST_TURN_MS = 30000;
  const DRAFT = "nightschool-draft";
  const ask = window.fetch.bind(window);
  const pause = ms => new Promise(go => setTimeout(go, ms));
  const find = selector => document.querySelector(selector);
  const home = path => new URL(find("meta[name=nightschool-home]").content + path, location.href).href;  // a proxy may add a prefix

  /* Actions run one after another, in the order of the clicks. A key that is waiting or running is not queued again. */
  const waiting = [];
  let acting = null, patience = 0;
  function next() {
    if (acting || !waiting.length) return;
    acting = waiting.shift();
    patience = setTimeout(over, LONGEST_TURN_MS);  // an action that never ends must not hold up all others
    acting.go();
  }
  function over() {
    clearTimeout(patience);
    acting = null;
    next();
  }
  function turn(key) {
    const same = each => key && each && each.key === key;
    if (same(acting) || waiting.some(same)) return new Promise(() => {});
    return new Promise(go => { waiting.push({key, go}); next(); });
  }

  /* Messages of the page itself, for when its server cannot send any. */
  function tell(words, link, where) {
    const place = find("#headline") || find("#notice");
    const before = find(".page-says");
    if (!place || before?.textContent === words + (link ? ` ${link}` : "")) return;
    hush();
    const said = document.createElement("div");
    said.className = "page-says";
    said.setAttribute("role", "alert");
    said.append(words);
    if (link) {
      const way = document.createElement("a");
      way.href = where;
      way.textContent = link;
      said.append(" ", way);
    }
    place.append(said);
    find("#operate")?.classList.add("stale");
    if (!before) said.scrollIntoView({block: "nearest"});
  }
  function hush() {
    document.querySelectorAll(".page-says").forEach(each => each.remove());
    find("#operate")?.classList.remove("stale");
  }

  /* A session that has ended: the answer is withheld, so that Gradio puts no "Error" in place of the chat. */
  let ended = false;
  window.fetch = async (input, init) => {
    const answer = await ask(input, init);
    const {pathname} = new URL(input.url || input, location.href);
    if (!pathname.includes("/gradio_api/") || ![401, 403].includes(answer.status)) return answer;
    if (!ended) {
      ended = true;
      keep();
      const {error} = await answer.json().catch(() => ({}));
      if (answer.status === 401)
        tell("You have been logged out.", "Log in again",
             home("login?next=") + encodeURIComponent(location.pathname));
      else tell(`Not allowed: ${error || "your role has changed"}.`, "Load the page again", location.pathname);
    }
    return new Promise(() => {});
  };
  addEventListener("focus", async () => {  // the person may have logged in again in another tab
    if (ended && (await ask(home("api/status")).catch(() => ({}))).ok) location.reload();
  });

  /* Unsent text, kept for the same person in the same window until the page is loaded again. */
  const person = () => window.gradio_config?.username ?? "";
  const text = selector => find(selector)?.value.trim() ? find(selector).value : "";
  function keep() {
    const draft = {person: person(), chat: find("#chats input:checked")?.value ?? "", box: text("#box textarea")};
    if (!find("#about .which")) draft.corrected = text("#corrected-text textarea");  // of the last reply
    if (draft.box || draft.corrected) sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  }
  let leaving = false;
  addEventListener("submit", event => { leaving ||= event.target.action === home("logout"); });
  addEventListener("pagehide", () => { if (!leaving) keep(); });
  function draft() {
    const kept = JSON.parse(sessionStorage.getItem(DRAFT) || "{}");
    return kept.person === person() ? kept : {};
  }
  function write(selector, words) {
    const box = find(selector);
    if (!box || !words || box.value) return;
    box.value = words;
    box.dispatchEvent(new Event("input", {bubbles: true}));
  }
  async function opened() {
    const kept = draft();
    sessionStorage.removeItem(DRAFT);
    write("#box textarea", kept.box);
    if (!kept.corrected || !await there("#correct")) return;
    find("#correct").click();
    const box = await there("#corrected-text textarea");
    if (box) box.value = "";
    write("#corrected-text textarea", kept.corrected);
  }

  /* Checks whether the server can be reached, for a page that shows the current state. */
  async function watch() {
    for (let since = null; !ended; await pause(since ? BEAT_MS / 2 : BEAT_MS)) {
      const signal = AbortSignal.timeout(PATIENCE_MS);
      const answer = await ask(home("healthz"), {cache: "no-store", signal}).catch(() => null);
      if (ended) return;
      if (answer?.ok) {
        if (since) hush();
        since = null;
        continue;
      }
      since ||= new Date();
      const at = since.toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"});
      const wrong = answer?.status === 503 && (await answer.json().catch(() => ({}))).error;
      tell(wrong ? `The server is not well: ${wrong}.` : `The server is not reached, since ${at}. What is below is how it was.`);
    }
  }

  /* Brings what was asked for into view and focus, and returns to what was clicked once it is done. */
  let opener = null;
  async function there(selector) {
    for (let tries = 0; tries < 40; tries++) {
      const found = find(selector);
      if (found?.offsetParent) return found;
      await pause(50);
    }
    return null;
  }
  async function show(selector, focus) {
    opener = document.activeElement;
    const found = await there(selector);
    (await there(focus))?.focus({preventScroll: true});
    for (let tries = 0; tries < 5 && found; tries++) {  // its contents appear one by one
      found.scrollIntoView({block: found.offsetHeight > innerHeight ? "start" : "nearest"});
      await pause(60);
    }
  }
  async function seen(selector) {
    const found = await there(selector);
    if (!found) return;
    found.tabIndex = -1;
    found.scrollIntoView({block: found.getBoundingClientRect().top < 0 ? "start" : "nearest"});
    found.focus({preventScroll: true});
  }
  async function back() {
    for (let tries = 0; tries < 40 && find("#promotion"); tries++) await pause(50);
    const name = opener?.dataset.name;
    const again = opener?.isConnected ? opener : name && find(`button.promote[data-name="${CSS.escape(name)}"]`);
    (again || find("#rollback"))?.focus();
  }
  addEventListener("keydown", event => {
    if (event.key === "Escape" && !event.isComposing) (find("#close-promotion") || find("#close-why"))?.click();
  });

  /* Text takes its direction from its first letter, and a thumb announces whether it is given. */
  const EITHER_WAY = ["[data-testid=user]", "[data-testid=bot]", ".prose ul", ".prose ol", ".prose table", "blockquote",
    "textarea", "input[type=text]", "#chats label span", ".which", "#your-rating", "p.line"]
    .map(each => `${each}:not([dir=auto])`).join();
  function tend() {
    document.querySelectorAll(EITHER_WAY).forEach(each => { each.dir = "auto"; });
    document.querySelectorAll("#chat .message-buttons-left").forEach(row => {
      for (const thumb of [...row.querySelectorAll("button")].slice(-2)) {  // Gradio puts them last
        const given = String(["Liked", "Disliked"].includes(thumb.ariaLabel));
        if (thumb.ariaPressed !== given) thumb.ariaPressed = given;
      }
    });
  }
  let tending = false;
  new MutationObserver(() => {
    if (tending) return;
    tending = true;
    requestAnimationFrame(() => { tending = false; tend(); });
  }).observe(document.documentElement, {childList: true, subtree: true, attributes: true, attributeFilter: ["aria-label", "title"]});

  window.nightschool = {turn, over, draft, opened, watch, show, seen, back};
})();
