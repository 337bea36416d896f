// Frame sliders: every picture is in the page already, one of them shown.
// Keys are those of any <input type="range">.
for (const figure of document.querySelectorAll("figure.frames")) {
  const slider = figure.querySelector("input"), output = figure.querySelector("output");
  const button = figure.querySelector("button");
  const pictures = [...figure.querySelectorAll("img")];
  let timer = null;
  const show = () => {
    pictures.forEach((picture, i) => { picture.hidden = i !== slider.valueAsNumber; });
    output.value = pictures[slider.valueAsNumber].dataset.value;
    slider.setAttribute("aria-valuetext", pictures[slider.valueAsNumber].alt);
  };
  const step = () => {
    slider.valueAsNumber += 1;
    show();
    if (slider.value === slider.max) play(false);
  };
  const play = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(step, Number(button.dataset.interval)) : null;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-pressed", on);
  };
  for (const touch of ["keydown", "pointerdown", "input"]) {
    // a hand on the slider stops it
    slider.addEventListener(touch, () => { if (timer) play(false); show(); });
  }
  button?.addEventListener("click", () => {
    if (!timer && slider.value === slider.max) { slider.value = 0; show(); }
    play(!timer);
  });
  figure.querySelector(".controls").hidden = false;
  show();   // a browser may have kept the slider's place from an earlier visit
}
