"use strict";
// The slider chooses among verdicts, and the filter among examples, that are already in the page.

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});

function choose(article, index) {
  const words = JSON.parse(article.dataset.words)[index];
  for (const slider of article.querySelectorAll("input[type=range]")) {
    slider.value = index;
    slider.setAttribute("aria-valuetext", words);
  }
  for (const output of article.querySelectorAll(".volume output")) output.textContent = words;
  for (const state of article.querySelectorAll("[data-state]")) state.hidden = state.dataset.state !== String(index);
  // A volume that is not stated has no line.
  article.style.setProperty("--now", `${JSON.parse(article.dataset.places)[index] ?? -100}%`);
}

for (const slider of document.querySelectorAll("input[type=range]"))
  slider.addEventListener("input", () => choose(slider.closest("article"), Number(slider.value)));

function filter(section) {
  const [right, wrong] = [...section.querySelectorAll("select")].map(select => select.value);
  const rows = [...section.querySelectorAll("tbody tr")];
  const finds = (row, arm, finding) => !arm || row.querySelector(`[data-arm="${arm}"]`)?.className === finding;
  for (const row of rows) row.hidden = !(finds(row, right, "right") && finds(row, wrong, "wrong"));
  section.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} shown`;
}

for (const select of document.querySelectorAll(".filter select"))
  select.addEventListener("change", () => filter(select.closest("section")));

for (const button of document.querySelectorAll("[data-copy]")) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy) ?? button.previousElementSibling;
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
