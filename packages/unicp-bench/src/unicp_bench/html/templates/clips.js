"use strict";
(() => {
  const data = JSON.parse(document.getElementById("videos").textContent);
  const addresses = {};
  // A video is taken out of the file once, and only when its panel is opened.
  function address(name) {
    if (!addresses[name]) {
      const bytes = Uint8Array.from(atob(data[name]), (letter) => letter.charCodeAt(0));
      addresses[name] = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    }
    return addresses[name];
  }

  function start(card) {
    const [plain, fast] = card.querySelectorAll("video");
    const canvas = card.querySelector("canvas");
    const play = card.querySelector(".play"), scrub = card.querySelector(".scrub"), gain = card.querySelector(".gain");
    const output = card.querySelector("output");
    const paint = canvas.getContext("2d", { willReadFrequently: true });
    const spare = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    let playing = false;

    const pixels = (context, video) => {
      context.drawImage(video, 0, 0, canvas.width, canvas.height);
      return context.getImageData(0, 0, canvas.width, canvas.height);
    };
    function draw() {
      if (Math.min(plain.readyState, fast.readyState) < 2) return;
      const a = pixels(paint, plain), b = pixels(spare, fast), strength = Number(gain.value);
      for (let i = 0; i < a.data.length; i += 4) {
        for (let k = i; k < i + 3; k++) a.data[k] = Math.abs(a.data[k] - b.data[k]) * strength;
      }
      paint.putImageData(a, 0, 0);
    }
    function loop() {
      if (!playing) return;
      // Two videos drift apart by themselves; the second follows the first.
      if (Math.abs(plain.currentTime - fast.currentTime) > 0.04) fast.currentTime = plain.currentTime;
      scrub.value = String(Math.round((1000 * plain.currentTime) / (plain.duration || 1)));
      draw();
      requestAnimationFrame(loop);
    }
    function seek(share) {
      const time = share * (plain.duration || 0);
      plain.currentTime = fast.currentTime = Math.min(time, Math.max(0, (plain.duration || 0) - 0.001));
    }
    function set(on) {
      playing = on;
      play.textContent = on ? "Pause" : "Play";
      if (!on) {
        plain.pause();
        fast.pause();
        fast.currentTime = plain.currentTime;
        return;
      }
      Promise.all([plain.play(), fast.play()]).then(loop, () => set(false));
    }
    plain.addEventListener("loadedmetadata", () => {
      for (const one of [canvas, spare.canvas]) [one.width, one.height] = [plain.videoWidth, plain.videoHeight];
    });
    for (const video of [plain, fast]) {
      video.muted = true;
      for (const name of ["loadeddata", "seeked"]) video.addEventListener(name, draw);
      video.src = address(video.dataset.video);
    }
    plain.addEventListener("ended", () => {
      seek(0);
      if (playing) set(true);
    });
    play.addEventListener("click", () => set(!playing));
    scrub.addEventListener("input", () => {
      if (playing) set(false);
      seek(scrub.value / 1000);
    });
    gain.addEventListener("input", () => {
      output.textContent = `${gain.value}x`;
      draw();
    });
    return () => set(false);
  }

  document.querySelectorAll(".panel").forEach((panel) => {
    let stops = null;
    const turn = () => {
      if (panel.open && !stops) stops = [...panel.querySelectorAll(".card")].map(start);
      if (!panel.open) stops?.forEach((stop) => stop());
    };
    panel.addEventListener("toggle", turn);
    turn();
  });
})();
