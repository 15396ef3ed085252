// Before the first paint, so that the page does not flash: ?theme=dark, then what was chosen last.
(function () {
  var asked = new URLSearchParams(location.search).get("theme");
  var kept = null;
  try { kept = localStorage.getItem("fleetune-theme"); } catch (error) { /* a file page may have no storage */ }
  var theme = asked || kept;
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
