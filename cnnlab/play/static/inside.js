// Inside the network: every layer's channels as tiles, and one of them large, with its kernel and what it looks at.
import { change, factsOf, onAnswer, post, say, state } from "./lab.js";

const { element, number } = Pixels, at = id => document.getElementById(id);
const atlases = new Map(); // a layer's name to its canvas and how its tiles lie
let answers = {}, pixels = null, unit = null;

const DOES = [
  ["convolution", "A convolution lays its kernel on every place, multiplies and adds up."],
  ["ReLU", "A ReLU cuts off what is below zero."],
  ["batch norm", "A batch norm shifts and scales each channel, by what it has learned."],
  ["max-pooling", "A max-pooling keeps the largest of each few places."],
  ["mean", "It takes the mean over places."],
  ["dense", "A dense layer multiplies everything by weights and adds up."],
];
const facts = () => factsOf(state.run);
const layerOf = name => facts().layers.find(layer => layer.name === name);

export function showColumns() {
  atlases.clear();
  const branches = ["", ...facts().heads.map(head => head.name)].map(branch => [branch,
    facts().layers.filter(layer => layer.branch === branch)]).filter(([, layers]) => layers.length);
  const rows = branches.map(([branch, layers]) => {
    const row = element("div", { className: "row" }, ...layers.map(block));
    return branch ? element("div", { className: "branch" }, element("h3", {}, branch), row) : row;
  });
  const [trunk, ...heads] = branches[0][0] === "" ? rows : [element("div"), ...rows];
  at("layer").replaceChildren(...facts().layers.map(({ name }) => element("option", {}, name)));
  at("columns").replaceChildren(trunk, element("div", { className: "branches" }, ...heads));
}

function block(layer) {
  const [high, wide] = layer.size, across = layer.shown > 32 || high < 16 ? 8 : 4;
  const zoom = Math.max(1, Math.min(12, Math.round(36 / Math.max(high, wide)) + (Math.max(high, wide) > 20)));
  const columns = Math.min(across, layer.shown), rows = Math.ceil(layer.shown / columns);
  const canvas = element("canvas", { className: "tiles", title: "click on a channel" });
  canvas.style.width = columns * (wide + 1) * zoom + "px";
  canvas.setAttribute("aria-label", `the channels of ${layer.name}`);
  const channel = event => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * columns);
    return Math.floor((event.clientY - box.top) / box.height * rows) * columns + column;
  };
  canvas.addEventListener("click", event => { if (channel(event) < layer.shown) choose(layer.name, channel(event)); });
  canvas.addEventListener("pointermove", event => { canvas.title = `channel ${channel(event)}`; });
  atlases.set(layer.name, { canvas, columns, rows });
  const count = layer.shown < layer.channels ? `${layer.shown} of ${layer.channels.toLocaleString("en")}` : layer.channels;
  return element("figure", { className: "layer" }, element("figcaption", {}, element("strong", {}, layer.name),
    ` ${layer.kind}`, element("br"), `${count} channels, ${high} × ${wide}`), canvas);
}

function drawTiles(layer, found) {
  const { canvas, columns, rows } = atlases.get(layer.name), [high, wide] = layer.size, { tables } = facts();
  const values = Pixels.bytes(found.values), stride = columns * (wide + 1);
  if (canvas.width !== stride) Object.assign(canvas, { width: stride, height: rows * (high + 1) });
  const context = canvas.getContext("2d"), image = context.createImageData(stride, rows * (high + 1));
  const pixels = new Uint32Array(image.data.buffer), table = colours(tables, found.signed);
  for (let k = 0; k < layer.shown; k++) {
    let from = k * high * wide, to = Math.floor(k / columns) * (high + 1) * stride + (k % columns) * (wide + 1);
    for (let row = 0; row < high; row++, to += stride) for (let x = 0; x < wide; x++) pixels[to + x] = table[values[from++]];
  }
  context.putImageData(image, 0, 0);
  if (state.unit?.layer !== layer.name) return;
  const left = state.unit.channel % columns * (wide + 1), top = Math.floor(state.unit.channel / columns) * (high + 1);
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--link"); // a frame around the one that is shown large
  for (const [x, y, w, h] of [[left - 1, top - 1, wide + 2, 1], [left - 1, top + high, wide + 2, 1],
    [left - 1, top, 1, high], [left + wide, top, 1, high]]) context.fillRect(x, y, w, h);
}

// The colours of all bytes as pixels of a canvas.
function colours(tables, signed) {
  const name = signed ? "signedPixels" : "positivePixels";
  return tables[name] ||= Uint32Array.from({ length: 256 }, (_, byte) => {
    const [red, green, blue] = Pixels.level(tables, signed, byte);
    return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  });
}

// --- One channel, large

export async function choose(layer, channel) {
  state.unit = { layer, channel };
  await showUnit();
  change();
}

export async function showUnit() {
  const panel = at("unit");
  unit = null;
  panel.hidden = !state.unit;
  if (state.unit) [at("layer").value, at("channel").value] = [state.unit.layer, state.unit.channel];
  if (!state.unit) return;
  const { layer, channel } = state.unit, known = layerOf(layer);
  if (!known || channel >= known.shown) { panel.hidden = true; state.unit = null; return; }
  let found;
  try { found = await post("unit", { run: state.run, layer, channel }); } catch (error) { say(error.message); return; }
  const { size: [height, width] } = facts(), canvas = element("canvas"), best = Pixels.bytes(found.pixels);
  const maximised = element("canvas"), words = element("p", { className: "note", id: "arithmetic" });
  Pixels.paint(maximised, width, height, place => best.subarray(3 * place, 3 * place + 3));
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", "its answer: arrow keys move the place that is looked at");
  const image = element("canvas"), frame = element("div", { id: "patch", hidden: true });
  unit = { ...found, layer: known, channel, canvas, image, frame, scale: element("div"), words };
  for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, pointed);
  canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") frame.hidden = true; });
  canvas.addEventListener("keydown", typed);
  panel.replaceChildren(
    element("h3", {}, `${layer}, channel ${channel} `, element("small", {}, known.kind)),
    element("figure", {}, canvas, unit.scale, element("figcaption", {}, "its answer, by its own scale")),
    element("figure", { hidden: !known.looks }, element("div", { className: "framed" }, image, frame),
      element("figcaption", {}, "what the place sees of the image")),
    ...(found.kernel ? [element("figure", { className: "kernels" }, ...kernels(found.kernel))] : []),
    element("figure", {}, maximised, element("figcaption", {}, found.dead
      ? "gradient ascent from a grey image did not move it" : known.looks
        ? `what maximises its mean over all places, to ${number(found.activation)}`
        : `what maximises it, to ${number(found.activation)}`)),
    element("button", { type: "button", onclick: () => { state.unit = null; showUnit(); change(); } }, "Close"), words);
  words.textContent = `${DOES.find(([kind]) => known.kind.includes(kind))?.[1] || ""} ` + (known.looks
    ? `Point at its answer: a place of it sees ${seen(known)} of the image.` : "It sees all places at once.");
  if (answers[layer]) drawUnit();
  panel.scrollIntoView({ block: "nearest" });
}

const seen = layer => `${Math.min(layer.looks[0].size, facts().size[0])} × ${Math.min(layer.looks[1].size, facts().size[1])} pixels`;

function kernels(kernel) {
  const most = Math.max(...kernel.flat(2).map(Math.abs)) || 1, { tables } = facts();
  const drawn = kernel.slice(0, 64).map(plane => {
    const canvas = element("canvas"), wide = plane[0].length, values = plane.flat();
    Pixels.paint(canvas, wide, plane.length, place => Pixels.level(tables, true, 128 + Math.round(values[place] / most * 127)));
    return canvas;
  });
  return [element("div", { className: "planes" }, ...drawn), ...Pixels.scale(tables, true, most),
    element("figcaption", {}, kernel.length === 1 ? "its kernel" : kernel.length === 3 && facts().channels === 3
      ? "its kernel for red, green and blue" : `its kernel, a square for each of ${kernel.length} channels`)];
}

function drawUnit() {
  const [height, width] = facts().size;
  Pixels.paint(unit.image, width, height, place => pixels.subarray(3 * place, 3 * place + 3));
  const { layer, channel, canvas } = unit, found = answers[layer.name], [high, wide] = layer.size;
  const own = Pixels.bytes(found.values).subarray(channel * high * wide, (channel + 1) * high * wide);
  const most = own.reduce((top, byte) => Math.max(top, Math.abs(byte - 128)), 1), { tables } = facts();
  unit.values = Array.from(own, byte => (byte - 128) / 127 * found.most);
  Pixels.paint(canvas, wide, high, place => Pixels.level(tables, found.signed,
    128 + Math.round((own[place] - 128) / most * 127)));
  unit.scale.replaceChildren(...Pixels.scale(tables, found.signed, most / 127 * found.most));
}

// The frame around the pixels that a place sees.
function showFrame(left, top, wide, high) {
  const [height, width] = facts().size, share = (value, whole) => 100 * value / whole + "%";
  unit.frame.hidden = false;
  Object.assign(unit.frame.style, { left: share(left, width), top: share(top, height), width: share(wide, width),
    height: share(high, height) });
}

function pointed(event) {
  const box = unit.canvas.getBoundingClientRect(), [high, wide] = unit.layer.size;
  look(Math.floor((event.clientX - box.left) / box.width * wide), Math.floor((event.clientY - box.top) / box.height * high));
}

function typed(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const [x, y] = unit.place || [unit.layer.size[1] >> 1, unit.layer.size[0] >> 1];
  look(x + step[0], y + step[1]);
}

// What a place of the answer sees, and of the first convolution how its value is made.
function look(column, row) {
  const { layer } = unit, [high, wide] = layer.size;
  if (!layer.looks || !unit.values) return;
  const x = Math.min(wide - 1, Math.max(0, column)), y = Math.min(high - 1, Math.max(0, row));
  unit.place = [x, y];
  const [top, left] = layer.looks.map(({ start, step, size }, axis) => start + step * (axis ? x : y) - size / 2);
  showFrame(left, top, layer.looks[1].size, layer.looks[0].size);
  const value = `row ${y}, column ${x}: about ${number(unit.values[y * wide + x])}`;
  unit.words.textContent = layer.name === facts().first && unit.kernel.length === facts().channels
    ? `${value}. ${arithmetic(Math.round(top), Math.round(left))}` : `${value}, of ${seen(layer)}.`;
}

function arithmetic(top, left) {
  const [height, width] = facts().size, terms = [];
  let sum = unit.bias;
  unit.kernel.forEach((plane, k) => plane.forEach((row, i) => row.forEach((weight, j) => {
    const y = top + i, x = left + j, inside = y >= 0 && x >= 0 && y < height && x < width;
    const value = inside ? pixels[3 * (y * width + x) + k] / 255 : 0;
    sum += value * weight;
    if (value) terms.push(`${number(value)} × ${number(weight)}`);
  })));
  const shown = terms.slice(0, 9).join(" + ") + (terms.length > 9 ? ` + ${terms.length - 9} more` : "");
  return `Pixels times weights, where there is light: ${shown ? shown + " + " : ""}${number(unit.bias)} (bias) = ${number(sum)}.`;
}

// By the keyboard: a layer and a channel by name and number.
export function begin() {
  const chosen = () => {
    const { shown } = layerOf(at("layer").value);
    choose(at("layer").value, Math.min(shown - 1, Math.max(0, Math.floor(+at("channel").value) || 0)));
  };
  for (const name of ["layer", "channel"]) at(name).addEventListener("change", chosen);
}

onAnswer(([first]) => {
  answers = first.layers;
  pixels = Pixels.bytes(first.pixels);
  for (const layer of facts().layers) drawTiles(layer, answers[layer.name]);
  if (unit) drawUnit();
});
