// What is shown, and the questions to the server. One image is asked about at a time: while the answer is on its way,
// changes are gathered and asked together, so nothing queues.
export const LINE = { length: 7, width: 1, angle: 45, colour: [255, 0, 0], x: 14.5, y: 14.5 };
export const state = {
  run: "", beside: "", mode: "line", line: LINE, strokes: [], index: null, paint: {}, method: "", targets: {}, unit: null,
};
const facts = {}, drawers = [];
const token = new URLSearchParams(location.search).get("token") || "";
let busy = false, changed = 0, changes = 0, settle = 0, notice = "";

export const factsOf = name => facts[name];
export const shownRuns = () => [...new Set([state.run, state.beside])].filter(Boolean);
export const onAnswer = drawer => drawers.push(drawer);
export const say = text => { document.getElementById("status").textContent = text; };
export const age = () => changes; // how often the state was changed: an answer of another age is of another state

export async function post(question, body = {}) {
  let response;
  try {
    response = await fetch("api/" + question, {
      method: "POST", headers: { "Content-Type": "application/json", "X-Token": token }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer: start python -m cnnlab.play again.");
  }
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

export async function openRun(name) {
  if (facts[name]) return;
  const found = await post("run", { run: name });
  for (const [key, text] of Object.entries(found.tables)) found.tables[key] = Pixels.bytes(text);
  facts[name] = found;
}

// The drawing, as bytes red, green, blue by row, four times as fine as the network's image.
function rasterised(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, pixels: Pixels.base64(data.filter((_, place) => place % 4 < 3)) };
}

export function drawStrokes() {
  const canvas = document.getElementById("sheet"), { size: [height, width] } = facts[state.run];
  const fine = Math.max(1, Math.min(4, Math.floor(256 / Math.max(height, width))));
  Object.assign(canvas, { width: width * fine, height: height * fine });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(context, { lineCap: "round", lineJoin: "round" });
  for (const { colour, size, points } of state.strokes) {
    Object.assign(context, { strokeStyle: `rgb(${colour.join()})`, lineWidth: size * fine });
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x * fine, y * fine));
    if (points.length === 1) context.lineTo(points[0][0] * fine + .01, points[0][1] * fine);
    context.stroke();
  }
  return canvas;
}

export function question() {
  const input = { line: () => ({ line: state.line }), drawing: () => ({ drawing: rasterised(drawStrokes()) }),
    test: () => ({ test: { run: state.run, index: state.index ?? 0 } }) }[state.mode]();
  const paint = Object.entries(state.paint).map(([place, colour]) => [...place.split(",").map(Number), ...colour]);
  return { input, paint };
}

// Take a change over, and show what the network says then.
export function change(part = {}) {
  Object.assign(state, part);
  changes++;
  changed ||= performance.now();
  refresh();
}

async function refresh() {
  if (busy || !changed) return;
  busy = true;
  document.body.dataset.asking = true;
  const since = changed;
  changed = 0;
  try {
    const asked = question(), answers = [];
    for (const [place, run] of shownRuns().entries()) {
      const targets = {};
      for (const { name, classes } of facts[run].heads) {
        if (classes.includes(state.targets[name])) targets[name] = classes.indexOf(state.targets[name]);
      }
      answers.push(await post("answer", { ...asked, run, method: state.method, targets, inside: place === 0 }));
    }
    for (const drawer of drawers) drawer(answers);
    say(notice);
    notice = "";
    if (performance.getEntriesByName("answer").length > 1000) performance.clearMeasures("answer");
    requestAnimationFrame(() => performance.measure("answer", { start: since }));
    clearTimeout(settle);
    settle = setTimeout(settled, 250);
  } catch (error) {
    say(error.message);
  }
  busy = false;
  if (changed) setTimeout(refresh); else delete document.body.dataset.asking;
}

async function settled() {
  history.replaceState(null, "", "#" + saved());
  const { ood, empty } = await post("ood", { ...question(), run: state.run }).catch(() => ({ ood: null, empty: "" }));
  document.getElementById("ood").textContent = empty ? `It ${empty}: its answers mean little.`
    : ood === null ? "" : ood > 1
    ? `Unlike the training images (${ood.toFixed(1)} times the usual limit): the answers may mean little.`
    : "Looks like the training images.";
}

export const saved = () => btoa(unescape(encodeURIComponent(JSON.stringify(state))));

const isText = value => typeof value === "string";
const isCount = value => Number.isInteger(value) && value >= 0;
const isColour = value => Array.isArray(value) && value.length === 3 && value.every(part => isCount(part) && part < 256);
const isPlain = value => value !== null && typeof value === "object" && !Array.isArray(value);
const VALID = {
  run: isText, beside: isText, method: isText,
  mode: value => ["line", "drawing", "test"].includes(value),
  line: value => isPlain(value) && isColour(value.colour)
    && ["length", "width", "angle", "x", "y"].every(name => Number.isFinite(value[name])),
  strokes: value => Array.isArray(value) && value.every(stroke => isPlain(stroke) && isColour(stroke.colour)
    && Number.isFinite(stroke.size) && Array.isArray(stroke.points)
    && stroke.points.every(point => Array.isArray(point) && point.length === 2 && point.every(Number.isFinite))),
  index: value => value === null || isCount(value),
  paint: value => isPlain(value) && Object.entries(value).every(([place, colour]) =>
    /^\d+,\d+$/.test(place) && isColour(colour)),
  targets: value => isPlain(value) && Object.values(value).every(isText),
  unit: value => value === null || (isPlain(value) && isText(value.layer) && isCount(value.channel)),
};

// Take over the state that an address holds: all of it, or nothing.
export function restore(text) {
  try {
    const found = JSON.parse(decodeURIComponent(escape(atob(text))));
    if (!Object.entries(VALID).every(([name, valid]) => valid(found[name]))) throw new Error();
    for (const name of Object.keys(VALID)) state[name] = found[name];
  } catch {
    notice = "The address holds no state of this page: here is the beginning.";
  }
}
