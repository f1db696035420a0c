(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = window.matchMedia("(pointer: coarse)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const places = Array.from(document.querySelectorAll("[data-figure]"));
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";

  function dress(layout, isDark) {
    const ink = isDark ? "#d5d7da" : "#33383e";
    const grid = isDark ? "#31353b" : "#e6e5df";
    const axes = Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name));
    const dressed = {
      // A finger that drags scrolls the page and the figure; a mouse zooms.
      dragmode: touch.matches ? false : layout.dragmode,
      font: { family: font, size: 13, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: Object.assign({}, layout.hoverlabel, {
        bgcolor: isDark ? "#2a2e34" : "#ffffff", bordercolor: grid, font: { color: ink, family: font },
      }),
    };
    for (const name of axes) {
      dressed[name] = Object.assign(
        { gridcolor: grid, linecolor: grid, zerolinecolor: isDark ? "#7d838b" : "#9a9fa6", zeroline: false },
        layout[name],
      );
    }
    return Object.assign({}, layout, dressed);
  }

  function draw(isDark, paper) {
    for (const place of places) {
      const figure = figures[place.dataset.figure];
      const layout = dress(figure.layout, isDark);
      if (paper) Object.assign(layout, { width: 640, height: 0.82 * layout.height });
      Plotly.react(place, figure.data, layout, config);
    }
  }

  draw(dark.matches, false);
  dark.addEventListener("change", () => draw(dark.matches, false));
  window.addEventListener("beforeprint", () => draw(false, true));
  window.addEventListener("afterprint", () => draw(dark.matches, false));
})();
