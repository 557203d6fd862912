// Take away: what is shown as a picture, as JSON that `python -m cnnlab.explain` reads, and as an address.
import { factsOf, onAnswer, saved, say, state } from "./lab.js";

let answer = null, run = ""; // the last answer, and whose it is
onAnswer(([first]) => {
  answer = first;
  run = state.run;
});

function download(blob, name) {
  const link = Pixels.element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function stateFile() {
  const { channels, size, folder, explain, heads } = factsOf(run), pixels = Pixels.bytes(answer.pixels);
  const own = channels === 1 ? pixels.filter((_, place) => place % 3 === 0) : pixels;
  const said = Object.fromEntries(heads.map(({ name, classes }) => [name,
    Object.fromEntries(classes.map((word, k) => [word, answer.heads[name].probabilities[k]]))]));
  const content = {
    run: folder, explain: `${explain} images=play.json method=${state.method}`,
    image: { shape: [...size, channels], pixels: Pixels.base64(own) }, said, state,
  };
  download(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), "play.json");
}

function picture() {
  const { size: [height, width], heads, methods, tables, title } = factsOf(run), side = 168, gap = 16, top = 76;
  const rows = heads.some(({ name }) => answer.heads[name].truth) ? 2 : 1;
  const canvas = Pixels.element("canvas", { width: Math.max(480, gap + (heads.length + 1) * (side + gap)),
    height: top + rows * (side + 34) });
  const context = canvas.getContext("2d"), small = Pixels.element("canvas");
  Object.assign(context, { fillStyle: "#fff", imageSmoothingEnabled: false });
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (words, x, y, font = "13px system-ui, sans-serif") => {
    Object.assign(context, { fillStyle: "#1a1a1a", font });
    context.fillText(words, x, y, side + gap - 4);
  };
  const draw = (column, row, colour) => {
    Pixels.paint(small, width, height, colour);
    context.drawImage(small, gap + column * (side + gap), top + row * (side + 34), side, side * height / width);
  };
  const bytes = Pixels.bytes(answer.pixels), pixel = place => [0, 1, 2].map(k => bytes[3 * place + k]);
  context.font = "bold 16px system-ui, sans-serif";
  context.fillStyle = "#1a1a1a";
  context.fillText(`cnnlab Play: ${title}`, gap, 28);
  write("the image", gap, top - 8);
  draw(0, 0, pixel);
  heads.forEach((head, place) => {
    const found = answer.heads[head.name], x = gap + (place + 1) * (side + gap), best = Pixels.largest(found.probabilities);
    write(`${head.name}: ${head.classes[best]} ${Pixels.percent(found.probabilities[best])}`, x, top - 26, "bold 13px system-ui, sans-serif");
    if (found.map) {
      const values = Pixels.bytes(found.map.values);
      draw(place + 1, 0, spot => Pixels.level(tables, found.map.signed, values[spot]));
      write(`${methods.find(({ name }) => name === state.method).title}, for ${head.classes[found.target]}${found.warnings.length ? ": do not trust it" : ""}`, x, top - 8);
    }
    if (!found.truth) return;
    const truth = Pixels.bytes(found.truth);
    draw(place + 1, 1, spot => truth[spot] ? [0, 229, 168] : pixel(spot).map(part => part * .6));
    write(found.rank === undefined ? "the truth" : `the truth: map hits ${Pixels.percent(found.rank)}`, x, top + side + 26);
  });
  canvas.toBlob(blob => download(blob, "play.png"));
}

export function begin() {
  const at = id => document.getElementById(id);
  at("picture").addEventListener("click", () => answer && picture());
  at("json").addEventListener("click", () => answer && stateFile());
  at("link").addEventListener("click", async () => {
    history.replaceState(null, "", "#" + saved());
    try {
      await navigator.clipboard.writeText(location.href);
      say("The address that brings this back is copied.");
    } catch {
      say("The address of this page brings this back: copy it.");
    }
  });
}
