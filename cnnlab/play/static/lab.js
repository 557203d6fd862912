// What is shown, and the questions to the server. One question at a time: while it is on its way, changes are gathered
// and asked together, so nothing queues.
export const state = {
  run: "", beside: "", mode: "line",
  line: { length: 7, width: 1, angle: 45, colour: [255, 0, 0], x: 14, y: 14 },
  strokes: [], index: 0, paint: {}, method: "grad_cam", targets: {}, unit: null,
};
const SAVED = Object.keys(state);
const facts = {}, drawers = [];
const token = new URLSearchParams(location.search).get("token") || "";
let busy = false, changed = 0, settle = 0;

export const factsOf = name => facts[name];
export const shownRuns = () => [state.run, state.beside].filter(Boolean);
export const onAnswer = drawer => drawers.push(drawer);
export const say = text => { document.getElementById("status").textContent = text; };

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
  facts[name] ||= await post("run", { run: name });
  const colours = facts[name].tables ||= {};
  for (const [key, text] of Object.entries(facts[name].colours)) colours[key] ||= Pixels.bytes(text);
  return facts[name];
}

// The drawing, as bytes red, green, blue by row, four times as fine as the network's image.
export function rasterised(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let text = "";
  for (let i = 0; i < data.length; i += 4) text += String.fromCharCode(data[i], data[i + 1], data[i + 2]);
  return { width: canvas.width, height: canvas.height, pixels: btoa(text) };
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
    test: () => ({ test: { run: state.run, index: state.index } }) }[state.mode]();
  const paint = Object.entries(state.paint).map(([place, colour]) => [...place.split(",").map(Number), ...colour]);
  return { input, paint };
}

// Take a change over, and show what the network says then.
export function change(part = {}) {
  Object.assign(state, part);
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
      const targets = Object.fromEntries(Object.entries(state.targets).filter(([head]) =>
        facts[run].heads.some(({ name }) => name === head)));
      answers.push(await post("answer", { ...asked, run, method: state.method, targets, inside: place === 0 }));
    }
    for (const drawer of drawers) drawer(answers);
    say("");
    requestAnimationFrame(() => performance.measure("answer", { start: since }));
    clearTimeout(settle);
    settle = setTimeout(settled, 250);
  } catch (error) {
    if (error.status === 429) changed ||= since; else say(error.message);
  }
  busy = false;
  if (changed) setTimeout(refresh); else delete document.body.dataset.asking;
}

async function settled() {
  history.replaceState(null, "", "#" + saved());
  const { ood } = await post("ood", { ...question(), run: state.run }).catch(() => ({ ood: null }));
  document.getElementById("ood").textContent = ood === null ? "" : ood > 1
    ? `This image is unlike those that the network was trained on (${ood.toFixed(1)} times as far from them as is usual): `
      + "its answers mean little."
    : "This image is like those that the network was trained on.";
}

export const saved = () => btoa(unescape(encodeURIComponent(JSON.stringify(
  Object.fromEntries(SAVED.map(name => [name, state[name]]))))));

export function restore(text) {
  try {
    const found = JSON.parse(decodeURIComponent(escape(atob(text))));
    for (const name of SAVED) if (typeof found[name] === typeof state[name]) state[name] = found[name];
  } catch {
    say("The address holds no state of this page; shown is the beginning.");
  }
}
