// The image: a line that is dragged, a drawing, a test image; and pixels that are painted over.
import { change, drawStrokes, factsOf, onAnswer, state } from "./lab.js";

const at = id => document.getElementById(id), pad = at("pad"), image = at("image"), sheet = at("sheet");
const hex = colour => "#" + colour.map(part => part.toString(16).padStart(2, "0")).join("");
const rgb = text => [1, 3, 5].map(place => parseInt(text.slice(place, place + 2), 16));
let pixels = null, drag = null;

const facts = () => factsOf(state.run);
const poking = () => at("poking").checked;

function showImage(bytes) {
  const [height, width] = facts().size;
  pixels = bytes;
  Pixels.paint(image, width, height, place => bytes.subarray(3 * place, 3 * place + 3));
  if (state.mode === "drawing") Pixels.paint(at("given").firstChild, width, height,
    place => bytes.subarray(3 * place, 3 * place + 3));
}

// A frame of a way from one class to another, in the place of the image or the sheet.
export function showFrame(bytes) {
  showImage(bytes);
  [image.hidden, sheet.hidden] = [false, true];
}

const showSheet = () => {
  sheet.hidden = state.mode !== "drawing" || poking();
  image.hidden = !sheet.hidden;
};

// What depends on the run alone.
export function showRun() {
  const { colours, examples, size: [height, width], tests } = facts();
  at("index").max = tests - 1;
  at("test-count").textContent = `of ${tests.toLocaleString("en")}, from 0`;
  at("colours").replaceChildren(...Object.entries(colours || {}).map(([name, colour]) => Pixels.element(
    "button", { type: "button", textContent: name, onclick: () => changeLine({ colour }) })));
  at("test-controls").firstElementChild.replaceChildren(...examples.map(example => {
    const button = Pixels.element("button", { type: "button", title: `test image ${example.index}`,
      onclick: () => show({ index: example.index }) }, Pixels.element("canvas"));
    const bytes = Pixels.bytes(example.pixels);
    Pixels.paint(button.firstChild, width, height, place => bytes.subarray(3 * place, 3 * place + 3));
    return button;
  }));
  at("brush").value = Math.max(height, width) / 28 * (facts().input_type === "digit" ? 2.4 : 1.4);
  at("brush").nextElementSibling.textContent = at("brush").value;
}

export function showControls() {
  const { colours, examples, channels, size: [height, width] } = facts();
  for (const button of document.querySelectorAll(".tabs button")) {
    button.hidden = { line: !colours, test: !examples.length }[button.dataset.mode] || false;
    button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
  }
  for (const mode of ["line", "drawing", "test"]) at(mode + "-controls").hidden = mode !== state.mode;
  pad.dataset.mode = state.mode;
  pad.style.aspectRatio = `${width} / ${height}`;
  showSheet();
  at("ink-label").hidden = channels === 1;
  for (const name of ["length", "width", "angle"]) {
    at(name).value = state.line[name];
    at(name).nextElementSibling.textContent = +state.line[name].toFixed(1) + (name === "angle" ? "°" : " px");
  }
  at("colour").value = hex(state.line.colour);
  at("index").value = state.index;
  [...at("test-controls").firstElementChild.children].forEach((button, place) =>
    button.setAttribute("aria-pressed", examples[place].index === state.index));
  pad.setAttribute("aria-label", "The image that the network sees. " + { line: "Arrow keys move the line.",
    test: "Arrow keys go to the next one.", drawing: "Draw on it." }[state.mode]);
  if (!sheet.hidden) drawStrokes();
  at("unpoke").disabled = !Object.keys(state.paint).length;
}

function show(part) {
  change(part);
  showControls();
}

const changeLine = part => show({ line: { ...state.line, ...part } });

function place(event) {
  const box = pad.getBoundingClientRect(), [height, width] = facts().size;
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
}

// Paint from where the pointer was to where it is.
function poke(from, to) {
  const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) || 1, paint = { ...state.paint };
  for (let step = 0; step <= steps; step++) {
    dab(paint, from[0] + step / steps * (to[0] - from[0]), from[1] + step / steps * (to[1] - from[1]));
  }
  show({ paint });
}

function dab(paint, x, y) {
  const [height, width] = facts().size, size = +at("poke-size").value;
  for (let row = 0; row < size; row++) for (let column = 0; column < size; column++) {
    const left = Math.floor(x - (size - 1) / 2) + column, top = Math.floor(y - (size - 1) / 2) + row;
    if (left >= 0 && top >= 0 && left < width && top < height) paint[`${left},${top}`] = rgb(at("poke-colour").value);
  }
}

function began(event) {
  pad.setPointerCapture(event.pointerId);
  const [x, y] = place(event);
  moved(event);
  if (poking()) poke([x, y], [x, y]);
  else if (state.mode === "drawing") {
    const colour = facts().channels === 1 ? [255, 255, 255] : rgb(at("ink").value);
    show({ strokes: [...state.strokes, { colour, size: +at("brush").value, points: [[x, y]] }] });
  }
  drag = { x, y, line: state.line };
}

function moved(event) {
  const [x, y] = place(event), [height, width] = facts().size;
  if (pixels && x >= 0 && y >= 0 && x < width && y < height) {
    const spot = Math.floor(y) * width + Math.floor(x), own = [...pixels.subarray(3 * spot, 3 * spot + 3)];
    const words = facts().channels === 1 ? `${own[0]} of 255` : own.map((part, k) => `${"RGB"[k]} ${part}`).join(" ");
    at("readout").textContent = `row ${Math.floor(y)}, column ${Math.floor(x)}: ${words}`;
  }
  if (!drag) return;
  if (poking()) {
    poke([drag.x, drag.y], [x, y]);
    Object.assign(drag, { x, y });
  } else if (state.mode === "drawing") {
    const last = state.strokes.at(-1);
    show({ strokes: [...state.strokes.slice(0, -1), { ...last, points: [...last.points, [x, y]] }] });
  } else if (state.mode === "line") changeLine(within(drag.line.x + x - drag.x, drag.line.y + y - drag.y));
}

const within = (x, y) => {
  const [height, width] = facts().size;
  return { x: Math.min(width, Math.max(0, x)), y: Math.min(height, Math.max(0, y)) };
};

function typed(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || state.mode === "drawing") return;
  event.preventDefault();
  const far = event.shiftKey ? 2 : .5;
  if (state.mode === "line") changeLine(within(state.line.x + far * step[0], state.line.y + far * step[1]));
  else show({ index: Math.min(facts().tests - 1, Math.max(0, (state.index ?? 0) + step[0] + step[1])) });
}

export function begin() {
  pad.addEventListener("pointerdown", began);
  pad.addEventListener("pointermove", moved);
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { drag = null; });
  pad.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") at("readout").textContent = ""; });
  pad.addEventListener("keydown", typed);
  for (const name of ["length", "width", "angle"]) at(name).addEventListener("input", event =>
    changeLine({ [name]: +event.target.value }));
  at("colour").addEventListener("input", event => changeLine({ colour: rgb(event.target.value) }));
  at("undo").addEventListener("click", () => show({ strokes: state.strokes.slice(0, -1) }));
  at("clear").addEventListener("click", () => show({ strokes: [] }));
  at("index").addEventListener("change", event =>
    show({ index: Math.min(facts().tests - 1, Math.max(0, Math.floor(+event.target.value) || 0)) }));
  at("unpoke").addEventListener("click", () => show({ paint: {} }));
  at("poking").addEventListener("change", showControls);
  for (const name of ["brush", "poke-size"]) at(name).addEventListener("input", event => {
    event.target.nextElementSibling.textContent = event.target.value;
  });
  at("ink").value = "#ff0000";
  for (const button of document.querySelectorAll(".tabs button")) button.addEventListener("click", () => {
    at("poking").checked = false;
    show({ mode: button.dataset.mode, paint: {} });
  });
  onAnswer(([first]) => {
    showImage(Pixels.bytes(first.pixels));
    showSheet();
    const known = Object.entries(first.true).map(([head, name]) => `${head}: ${name}`);
    at("true-classes").textContent = known.length ? `In truth ${known.join(", ")}.` : "";
    at("summary").textContent = facts().heads.map(({ name, classes }) =>
      classes[Pixels.largest(first.heads[name].probabilities)]).join(", ");
    at("given").querySelector("span").textContent = first.notes.length ? `Done to it: ${first.notes.join("; ")}.` : "";
  });
}
