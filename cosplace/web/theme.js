// Light or dark theme: the system's until the user switches.  A plain script, so that it runs before the first paint.
(() => {
  "use strict";
  const root = document.documentElement;
  const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");

  const readChoice = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be blocked
    }
  };
  const apply = () => {
    root.dataset.theme = readChoice() ?? (systemIsDark.matches ? "dark" : "light");
    window.dispatchEvent(new Event("theme"));
  };

  window.switchTheme = () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", next);
    } catch {
      // storage may be blocked: the choice then lasts until the page is closed
    }
    root.dataset.theme = next;
    window.dispatchEvent(new Event("theme"));
    return next;
  };
  systemIsDark.addEventListener("change", apply);
  apply();
})();
