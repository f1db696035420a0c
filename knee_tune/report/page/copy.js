(function () {
  "use strict";
  const button = document.getElementById("copy");
  const said = document.getElementById("copied");

  function byHand(text) {
    const area = document.createElement("textarea");
    area.value = text;
    area.setAttribute("readonly", "");
    area.style.cssText = "position: fixed; top: 0; left: 0; opacity: 0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    button.focus();
    if (!done) throw new Error("not copied");
  }

  async function copy() {
    const text = button.dataset.text;
    try {
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // an old browser, or a page that may not
        byHand(text);
      }
      said.textContent = "Copied.";
    } catch {
      said.textContent = "This browser does not let a page copy: select the text instead.";
    }
  }

  button.addEventListener("click", copy);
  button.parentElement.hidden = false;
})();
