// Renews the page every 30 seconds, where it was, unless somebody reads a table or paused it.
"use strict";
(() => {
  const button = document.getElementById("pause");
  let paused = sessionStorage.getItem("paused") === "yes";
  const show = () => {
    button.hidden = false;
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
  };
  button.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("paused", paused ? "yes" : "no");
    show();
  });
  show();
  setInterval(() => {
    if (!paused && document.visibilityState === "visible" && !document.querySelector("details[open]")) {
      location.reload();
    }
  }, 30000);
})();
