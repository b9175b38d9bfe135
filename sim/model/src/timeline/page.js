// Hovering over a part of an event highlights all parts of the event; a click keeps the highlight.
(() => {
  let kept = null;
  const of = (target) => target.closest("[data-e]")?.dataset.e.split(" ")[0] || null;
  const light = (name) => {
    document.body.classList.toggle("lit", Boolean(name));
    for (const one of document.querySelectorAll("[data-e]")) {
      one.classList.toggle("on", Boolean(name) && one.dataset.e.split(" ").includes(name));
    }
  };
  document.addEventListener("mouseover", (moved) => light(of(moved.target) || kept));
  document.addEventListener("click", (clicked) => { kept = of(clicked.target); light(kept); });
})();
