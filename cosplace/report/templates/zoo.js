// Sort and filter the table of models.  Cells without a value stay last in both directions.
"use strict";
{
  const table = document.getElementById("zoo"), body = table.tBodies[0], form = document.getElementById("filters");
  const titles = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const dimension = titles.findIndex((title) => title.textContent === "dimension");
  const commercial = titles.findIndex((title) => title.textContent === "commercial use");

  function sortBy(column, falls) {
    const isNumber = titles[column].dataset.number === "1", sign = falls ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.key);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (isNumber ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
    titles.forEach((title, place) => {
      if (place === column) title.setAttribute("aria-sort", falls ? "descending" : "ascending");
      else title.removeAttribute("aria-sort");
    });
  }

  function filter() {
    const { text, commercial: answer, dimension: most } = form.elements;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const all = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => all.includes(word))
        || (answer.value !== "" && row.cells[commercial].dataset.key !== answer.value)
        || (most.value !== "" && Number(row.cells[dimension].dataset.key) > Number(most.value));
      shown += !row.hidden;
    }
    document.getElementById("count").textContent = `${shown} of ${rows.length} models`;
  }

  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = title.textContent;
    button.addEventListener("click", () => {
      const before = title.getAttribute("aria-sort");
      sortBy(column, before === null ? title.dataset.falls === "1" : before === "ascending");
    });
    title.replaceChildren(button);
  });
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
