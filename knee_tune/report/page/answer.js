(function () {
  "use strict";

  function byHand(text, button) {
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

  async function copy(button, said) {
    const text = button.dataset.text;
    try {
      try {
        await navigator.clipboard.writeText(text);
      } catch {  // an old browser, or a page that may not
        byHand(text, button);
      }
      said.textContent = "Copied.";
    } catch {
      said.textContent = "This browser does not let a page copy: select the text instead.";
    }
  }

  for (const place of document.querySelectorAll(".copying")) {
    const button = place.querySelector("button");
    const said = place.querySelector("[role=status]");
    button.addEventListener("click", () => copy(button, said));
    place.hidden = false;
  }

  // Without scripts every setting is shown, one below the other.
  const choice = document.getElementById("setting");
  if (choice) {
    const settings = Array.from(document.querySelectorAll(".setting"));
    const show = () => {
      for (const each of settings) each.hidden = each.id !== choice.value;
    };
    choice.addEventListener("change", show);
    choice.parentElement.hidden = false;
    show();
  }
})();
