"use strict";
// Draws the figures in the colours of the theme; the slider chooses among verdicts that are already in the page.

const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;

function colour(name) {
  return computed(`var(--${name})`);
}

function computed(value) {
  probe.style.color = value;
  return getComputedStyle(probe).color;
}

function painted(value) {
  if (typeof value === "string") return value.startsWith("var(") ? computed(value) : value;
  if (Array.isArray(value)) return value.map(painted);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
  return value;
}

function layoutOf(chart, own) {
  const size = chart.clientWidth < 600 ? 12 : 13;
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"), ticks: "outside",
    tickcolor: colour("line"), layer: "below traces", fixedrange: true, automargin: true };
  return { ...own,
    xaxis: { ...axis, ...own.xaxis, title: { ...own.xaxis.title, standoff: 12, font: { size } } },
    yaxis: { ...axis, ...own.yaxis, title: { ...own.yaxis.title, standoff: 12, font: { size } } },
    font: { family: getComputedStyle(document.body).fontFamily, size, color: colour("soft") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 24, t: 24, b: 48 }, height: chart.clientHeight,
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
    hovermode: "closest", dragmode: false };
}

function draw(chart) {
  const figure = painted(JSON.parse(chart.querySelector("script").textContent));
  let plot = chart.querySelector(".plot");
  if (!plot) {
    plot = chart.appendChild(document.createElement("div"));
    plot.className = "plot";
  }
  const layout = layoutOf(chart, figure.layout);
  if (chart.dataset.chart === "breakeven") place(layout.shapes[0], chart.closest("article"));
  return Plotly.react(plot, figure.data, layout, { displayModeBar: false, responsive: true });
}

function volumeOf(article) {
  return JSON.parse(article.dataset.volumes)[article.querySelector("input[type=range]").value];
}

function place(shape, article) {
  const volume = volumeOf(article);
  shape.visible = volume !== null;
  if (volume !== null) shape.x0 = shape.x1 = volume;
}

function choose(article, index) {
  const words = JSON.parse(article.dataset.words)[index];
  for (const slider of article.querySelectorAll("input[type=range]")) {
    slider.value = index;
    slider.setAttribute("aria-valuetext", words);
  }
  for (const output of article.querySelectorAll("output")) output.textContent = words;
  for (const state of article.querySelectorAll("[data-state]")) state.hidden = state.dataset.state !== String(index);
  const plot = article.querySelector("[data-chart=breakeven] .plot");
  if (plot) {
    const shapes = structuredClone(plot.layout.shapes);
    place(shapes[0], article);
    Plotly.relayout(plot, { shapes });
  }
}

function drawAll() {
  return Promise.all([...document.querySelectorAll(".chart")].map(draw));
}

const dark = matchMedia("(prefers-color-scheme: dark)");
document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  drawAll();
});
dark.addEventListener("change", drawAll);
for (const slider of document.querySelectorAll("input[type=range]"))
  slider.addEventListener("input", () => choose(slider.closest("article"), Number(slider.value)));
drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
