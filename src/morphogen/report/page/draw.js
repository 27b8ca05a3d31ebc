// Draws the charts that stand in the page as data, each into its place.
const charts = JSON.parse(document.getElementById("charts").textContent);
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
charts.forEach((chart, position) => {
  if (chart) Plotly.newPlot(`chart-${position}`, chart.data, chart.layout, config);
});
