// Pixels on a canvas and numbers in words: shared by the page of an explanation and by Play.
const Pixels = {
  bytes: text => Uint8Array.fromBase64 ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), letter => letter.charCodeAt(0)),
  base64: bytes => btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join("")),
  percent: share => (Math.floor(share * 1e4 + 0.01) / 100).toFixed(2) + " %",  // as log.percent
  number: value => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 || !value
    ? String(+value.toPrecision(3)) : value.toExponential(1)).replaceAll("-", "−"),
  // The place of the largest of numbers.
  largest: values => values.reduce((most, value, place) => value > values[most] ? place : most, 0),
  element(name, set = {}, ...inside) {
    const made = Object.assign(document.createElement(name), set);
    made.append(...inside);
    return made;
  },
  // The colour [red, green, blue] of a map's byte, of which 128 is zero (see encode.levels).
  level(tables, signed, byte) {
    const table = tables[signed ? "signed" : "positive"], row = signed ? byte : Math.max(0, byte - 128) * 2;
    return [table[3 * row], table[3 * row + 1], table[3 * row + 2]];
  },
  // The colour bar of a map whose largest magnitude is `most`, and its numbers; `words` say what the signs mean.
  scale(tables, signed, most, words = ["", ""]) {
    const bar = Pixels.element("canvas", { className: "bar" });
    Pixels.paint(bar, 128, 1, x => Pixels.level(tables, signed, signed ? 1 + 2 * x : 128 + x));
    const end = Pixels.number(most), ends = signed ? [`−${end} ${words[0]}`, "0", `${words[1]} ${end}`] : ["0", end];
    return [bar, Pixels.element("div", { className: "scale" }, ...ends.map(word => Pixels.element("span", {}, word)))];
  },
  // One canvas pixel each, by a function of its number; the style sheet makes them large.
  paint(canvas, width, height, colour) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), image = context.createImageData(width, height), { data } = image;
    for (let place = 0; place < width * height; place++) {
      const own = colour(place);
      for (let k = 0; k < 3; k++) data[4 * place + k] = own[k];
      data[4 * place + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  },
  // The same with every pixel a square of `cell`, and the edge of a mask drawn around what it holds.
  outlined(canvas, width, height, cell, colour, mask) {
    Object.assign(canvas, { width: width * cell, height: height * cell });
    const context = canvas.getContext("2d");
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      context.fillStyle = `rgb(${colour(y * width + x).map(Math.round).join()})`;
      context.fillRect(x * cell, y * cell, cell, cell);
    }
    if (!mask) return;
    context.fillStyle = "#00e5a8";
    const inside = (y, x) => y >= 0 && x >= 0 && y < height && x < width && mask[y * width + x];
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (inside(y, x)) {
      if (!inside(y - 1, x)) context.fillRect(x * cell, y * cell, cell, 1);
      if (!inside(y + 1, x)) context.fillRect(x * cell, (y + 1) * cell - 1, cell, 1);
      if (!inside(y, x - 1)) context.fillRect(x * cell, y * cell, 1, cell);
      if (!inside(y, x + 1)) context.fillRect((x + 1) * cell - 1, y * cell, 1, cell);
    }
  },
};
