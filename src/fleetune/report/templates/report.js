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

  // What is not known has an empty value and stands last either way.
  function compare(a, b, numeric, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (numeric ? parseFloat(a) - parseFloat(b) : a.localeCompare(b));
  }

  // A configuration's line and the line of its problems are one body, and move together.
  function sortBy(header) {
    var table = header.closest("table");
    var column = Array.prototype.indexOf.call(header.parentNode.children, header);
    var numeric = header.dataset.kind === "number";
    var sorted = header.getAttribute("aria-sort");
    var descending = numeric ? sorted !== "descending" : sorted === "ascending";
    var several = table.tBodies.length > 1;
    var groups = Array.prototype.slice.call(several ? table.tBodies : table.tBodies[0].rows);
    function value(group) {
      var cell = (several ? group.rows[0] : group).cells[column];
      return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
    }
    groups.sort(function (one, other) { return compare(value(one), value(other), numeric, descending ? -1 : 1); });
    groups.forEach(function (group) { group.parentNode.appendChild(group); });
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
