// Light or dark: the system's choice until the switch is used.  A plain script, so that it runs before the first paint.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const remembered = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be forbidden; the system's choice is good enough
    }
  };
  const show = () => {
    root.dataset.theme = remembered() ?? (dark.matches ? "dark" : "light");
    window.dispatchEvent(new Event("theme"));
  };

  window.switchTheme = () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", next);
    } catch {
      // as above: the switch then holds until the page is left
    }
    root.dataset.theme = next;
    window.dispatchEvent(new Event("theme"));
    return next;
  };
  dark.addEventListener("change", show);
  show();
})();
