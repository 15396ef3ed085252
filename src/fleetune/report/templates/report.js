(function () {
  "use strict";

  function currentTheme() {
    var chosen = document.documentElement.dataset.theme;
    if (chosen) return chosen;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  var toggle = document.getElementById("theme");
  function nameToggle() {
    toggle.textContent = currentTheme() === "dark" ? "Light theme" : "Dark theme";
  }
  toggle.hidden = false;
  nameToggle();
  toggle.addEventListener("click", function () {
    var next = currentTheme() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("fleetune-theme", next); } catch (error) { /* a file page may have no storage */ }
    nameToggle();
  });

  function compare(a, b, numeric) {
    if (!numeric) return a.localeCompare(b);
    var x = parseFloat(a), y = parseFloat(b);
    return (x > y) - (x < y);
  }

  // A configuration's line and the line of its problems move together.
  function sortBy(header) {
    var table = header.closest("table");
    var column = Array.prototype.indexOf.call(header.parentNode.children, header);
    var numeric = header.dataset.kind === "number";
    var descending = header.getAttribute("aria-sort") !== "descending" && numeric ||
      header.getAttribute("aria-sort") === "ascending";
    var bodies = Array.prototype.slice.call(table.tBodies);
    bodies.sort(function (one, other) {
      var order = compare(one.rows[0].cells[column].dataset.value, other.rows[0].cells[column].dataset.value, numeric);
      return descending ? -order : order;
    });
    bodies.forEach(function (body) { table.appendChild(body); });
    table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.setAttribute("aria-sort", "none"); });
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  }
  document.querySelectorAll("th[aria-sort] button").forEach(function (button) {
    button.addEventListener("click", function () { sortBy(button.parentNode); });
  });

  var options = { actions: false, renderer: "svg", ast: true, logLevel: 1, tooltip: { disableDefaultStyle: true } };
  document.querySelectorAll(".chart").forEach(function (element) {
    var spec = JSON.parse(document.getElementById(element.dataset.spec).textContent);
    vegaEmbed(element, spec, options).catch(function (error) {
      element.textContent = "This figure could not be drawn (" + error.message + "); its numbers are below.";
    });
  });
})();
