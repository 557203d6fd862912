// What every head says: its classes, its heatmap beside the truth, and what would change its mind.
import { age, change, factsOf, onAnswer, post, question, say, shownRuns, state } from "./lab.js";
import { showFrame } from "./pad.js";

const { element, largest, percent } = Pixels;
const MOST_BARS = 12; // classes that are shown; of a head with more, the likeliest
const cards = new Map(); // "run/head" to the parts of its card
let timer = 0; // of the way that is shown

export function showRuns() {
  clearInterval(timer);
  cards.clear();
  const runs = shownRuns();
  document.getElementById("runs").replaceChildren(...runs.map(run => element("section", { className: "run" },
    ...(runs.length > 1 ? [element("h2", {}, factsOf(run).title + " · " + run)] : []),
    element("div", { className: "cards" }, ...factsOf(run).heads.map(head => card(run, head))))));
  document.getElementById("runs").classList.toggle("two", runs.length > 1);
}

function card(run, head) {
  const parts = {
    said: element("h3"), before: element("p", { className: "before" }), bars: element("div", { className: "bars" }),
    heat: element("canvas", { role: "img", ariaLabel: `heatmap of ${head.name}` }),
    truth: element("canvas", { role: "img", ariaLabel: `the true pixels of ${head.name}` }), scale: element("div"), grade: element("div", { className: "note" }),
    way: element("div", { className: "way", hidden: true }),
  };
  parts.buttons = Array.from({ length: Math.min(MOST_BARS, head.classes.length) }, () => {
    const bar = { name: element("span"), track: element("i"), old: element("b"), value: element("output") };
    bar.button = element("button", { type: "button", className: "bar-row", onclick: () => explain(head, head.classes[bar.number]) },
      bar.name, element("span", { className: "track" }, bar.track, bar.old), bar.value);
    return bar;
  });
  parts.bars.append(...parts.buttons.map(bar => bar.button));
  const ask = element("button", { type: "button", onclick: () => begin(run, head) }, "What would change its mind?");
  parts.truthFigure = element("figure", {}, parts.truth, element("figcaption", {}, "the truth"));
  cards.set(`${run}/${head.name}`, parts);
  return element("article", { className: "card" + (head.classes.length > 6 ? " tall" : "") },
    parts.said, parts.before, parts.bars,
    element("div", { className: "maps" }, element("figure", {}, parts.heat, parts.scale), parts.truthFigure),
    parts.grade, ask, parts.way);
}

function explain(head, name) {
  const targets = { ...state.targets };
  if (targets[head.name] === name) delete targets[head.name]; else targets[head.name] = name;
  change({ targets });
}

function drawBars(run, head, probabilities, before) {
  const parts = cards.get(`${run}/${head.name}`), places = [...probabilities.keys()];
  const best = largest(probabilities);
  const listed = places.length > MOST_BARS ? places.sort((a, b) => probabilities[b] - probabilities[a]) : places;
  parts.buttons.forEach((bar, place) => {
    const number = listed[place];
    bar.number = number;
    bar.name.textContent = head.classes[number];
    bar.track.style.width = 100 * probabilities[number] + "%";
    bar.old.hidden = !before;
    if (before) bar.old.style.left = 100 * before[number] + "%";
    bar.value.textContent = percent(probabilities[number]);
    bar.button.classList.toggle("best", number === best);
    bar.button.setAttribute("aria-pressed", state.targets[head.name] === head.classes[number]);
  });
  parts.said.replaceChildren(`${head.name}: ${head.classes[best]} `,
    element("small", {}, percent(probabilities[best])));
  if (!before) { parts.before.textContent = ""; return; }
  const old = largest(before);
  const move = Math.round((probabilities[old] - before[old]) * 1e4) / 100;
  parts.before.textContent = `before the poke ${head.classes[old]} ${percent(before[old])}`
    + (old === best ? (move ? `, ${move < 0 ? "−" : "+"}${Math.abs(move).toFixed(2)} points` : ", unchanged") : ": it changed its mind");
}

function drawHead(run, head, found, bytes, truth) {
  const parts = cards.get(`${run}/${head.name}`), { size: [height, width], tables } = factsOf(run);
  drawBars(run, head, found.probabilities, found.before);
  if (truth && truth !== head.classes[largest(found.probabilities)]) {
    parts.said.append(element("span", { className: "wrong" }, ` in truth ${truth}`));
  }
  const pixel = place => [bytes[3 * place], bytes[3 * place + 1], bytes[3 * place + 2]];
  const mask = found.truth && Pixels.bytes(found.truth);
  parts.heat.hidden = !found.map;
  parts.truthFigure.hidden = !mask;
  parts.scale.replaceChildren();
  if (found.map) {
    const values = Pixels.bytes(found.map.values);
    Pixels.paint(parts.heat, width, height, place => Pixels.level(tables, found.map.signed, values[place]));
    parts.scale.append(...Pixels.scale(tables, found.map.signed, found.map.most),
      element("figcaption", {}, `for ${head.classes[found.target]}`));
  }
  if (mask) Pixels.paint(parts.truth, width, height, place => {  // the image in grey: a green line would hide the truth
    const grey = Math.max(...pixel(place));
    return mask[place] ? [0, 229, 168].map(part => grey * .25 + part * .75) : [grey, grey, grey].map(part => part * .6);
  });
  parts.grade.replaceChildren(grade(found, mask));
  for (const warning of found.warnings || []) parts.grade.append(element("p", { className: "wrong" }, `Warning: ${warning}.`));
}

function grade(found, mask) {
  if (found.why) return `No heatmap: ${found.why}.`;
  if (!found.map) return "";
  if (!found.map.most) return "Zero everywhere: the method finds no evidence for this class.";
  if (found.rank === undefined) return mask ? "" : "Which pixels should decide is not known here.";
  const count = mask.reduce((sum, one) => sum + one, 0), hits = share => +(share * count).toFixed(1);
  if (count < 5) return "Too few pixels are green to grade the map.";
  return `Of the map's ${count} brightest pixels ${hits(found.rank)} are green. An edge detector, which does not use `
    + `the network: ${hits(found.edges)}. Chance: ${hits(found.chance)}.`;
}

// --- What would change its mind?

async function begin(run, head) {
  const asked = age();
  try {
    const found = await post("path", { ...question(), run, head: head.name });
    if (age() === asked) showWay(run, head, found);
  } catch (error) { say(error.message); }
}

function showWay(run, head, found) {
  const parts = cards.get(`${run}/${head.name}`), said = found.said[head.name], frames = found.frames.map(Pixels.bytes);
  const first = largest(said[0]), last = largest(said.at(-1));
  const flips = said.findIndex(shares => largest(shares) !== first);
  const frame = element("canvas", { className: "frame", role: "img", ariaLabel: "the image on its way" });
  const chart = element("canvas", { width: 280, height: 70 }), slider = element("input", { type: "range", min: 0,
    max: frames.length - 1, value: 0, ariaLabel: "how far on the way" });
  const words = flips < 0 ? `Towards ${found.words}, it keeps to ${head.classes[first]} all the way.`
    : `Towards ${found.words}, it changes its mind at ${Math.round(100 * flips / (frames.length - 1))} % of the way: `
      + `${head.classes[first]} becomes ${head.classes[largest(said[flips])]}.`;
  const show = place => {
    slider.value = place;
    if (run === state.run) showFrame(frames[place]);
    const [height, width] = factsOf(run).size;
    Pixels.paint(frame, width, height, spot => frames[place].subarray(3 * spot, 3 * spot + 3));
    for (const each of factsOf(run).heads) drawBars(run, each, found.said[each.name][place]);
    drawChart(chart, said, first, last, place, head);
    document.getElementById("runs").classList.add("under-way");
  };
  slider.addEventListener("input", () => { clearInterval(timer); show(+slider.value); });
  const end = element("button", { type: "button", onclick: () => change() }, "Back");
  const keep = element("button", { type: "button", hidden: !found.lines || state.mode !== "line", onclick: () =>
    document.dispatchEvent(new CustomEvent("line", { detail: found.lines[+slider.value] })) }, "Keep this line");
  endWay();
  parts.way.replaceChildren(element("div", { className: "maps" }, frame, chart), slider, element("p", { className: "note" }, words), keep, end);
  parts.way.hidden = false;
  let place = 0;
  timer = setInterval(() => { if (place >= frames.length) clearInterval(timer); else show(place++); }, 90);
}

function drawChart(canvas, said, first, last, place, head) {
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  const x = step => 4 + step / (said.length - 1) * (canvas.width - 8), y = share => 62 - share * 48;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.font = "11px system-ui, sans-serif";
  const lines = first === last ? [[first, style.getPropertyValue("--link")]]
    : [[first, style.getPropertyValue("--link")], [last, style.getPropertyValue("--other")]];
  for (const [k, colour] of lines) {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    said.forEach((shares, step) => context.lineTo(x(step), y(shares[k])));
    context.stroke();
    context.textAlign = k === first ? "left" : "right";
    context.fillText(head.classes[k], k === first ? 4 : canvas.width - 4, 11);
  }
  context.fillStyle = style.getPropertyValue("--dim");
  context.fillRect(x(place), 12, 1, 52);
}

function endWay() {
  clearInterval(timer);
  document.getElementById("runs").classList.remove("under-way");
  for (const parts of cards.values()) parts.way.hidden = true;
}

onAnswer(answers => {
  endWay();
  shownRuns().forEach((run, place) => {
    const bytes = Pixels.bytes(answers[place].pixels);
    for (const head of factsOf(run).heads) drawHead(run, head, answers[place].heads[head.name], bytes,
      answers[place].true[head.name]);
  });
});
