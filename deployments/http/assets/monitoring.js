// Renews the page every 30 seconds in its place: what a reader opened, scrolled to or stands on stays.
"use strict";
(() => {
  const every = 30000;
  let paused = sessionStorage.getItem("paused") === "yes";
  let under = false;

  const show = () => {
    const button = document.getElementById("pause");
    button.hidden = false;
    button.textContent = paused ? "Renew every 30 s" : "Stop renewing";
  };

  const tell = (words) => {
    const note = document.getElementById("renewal");
    note.hidden = !words;
    if (note.textContent !== words) {
      note.textContent = words;
    }
  };

  // An open table, and the place in a wide one, are the reader's.
  const keep = (from, to) => {
    for (const open of from.querySelectorAll("details[open]")) {
      const same = open.id && to.querySelector("#" + CSS.escape(open.id));
      if (same) {
        same.open = true;
      }
    }
  };

  const replace = (part, fresh) => {
    keep(part, fresh);
    if (part.innerHTML === fresh.innerHTML && part.className === fresh.className) {
      return;
    }
    const reachable = "a, button, summary, [tabindex]";
    const place = [...part.querySelectorAll(reachable)].indexOf(document.activeElement);
    const scrolled = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    part.replaceWith(fresh);
    fresh.querySelectorAll(".scroll").forEach((one, at) => {
      one.scrollLeft = scrolled[at] || 0;
    });
    if (place >= 0) {
      fresh.querySelectorAll(reachable)[place]?.focus({ preventScroll: true });
    }
  };

  const renew = async () => {
    if (paused || under || document.visibilityState !== "visible" || String(getSelection())) {
      return;
    }
    under = true;
    try {
      const response = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(20000) });
      if (!response.ok) {
        throw new Error("the service answered " + response.status);
      }
      const found = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const part of document.querySelectorAll("#now, #figures, main > section")) {
        const fresh = found.getElementById(part.id);
        if (fresh) {
          replace(part, document.adoptNode(fresh));
        }
      }
      document.title = found.title;
      tell("");
      show();
    } catch (error) {
      tell("This page is old: it could not be renewed (" + error.message + ").");
    } finally {
      under = false;
    }
  };

  document.addEventListener("click", (event) => {
    if (event.target.id === "pause") {
      paused = !paused;
      sessionStorage.setItem("paused", paused ? "yes" : "no");
      show();
      renew();
    }
  });
  document.addEventListener("visibilitychange", renew);
  show();
  setInterval(renew, every);
})();
