// A guided tour: each step is a state of the page, a few words on it, and the part of the page that they speak of.
import { factsOf, LINE, state } from "./lab.js";

const method = () => factsOf(state.run).methods[0].name;
const line = part => ({ mode: "line", line: { ...LINE, ...part }, paint: {}, targets: {}, method: method(), unit: null });
const black = (left, top, wide, high) => Object.fromEntries(Array.from({ length: wide * high }, (_, k) =>
  [`${left + k % wide},${top + Math.floor(k / wide)}`, [0, 0, 0]]));

const ofLines = () => [
  ["An image is numbers", "The network sees 28 × 28 pixels, each a number for red, green and blue. Point at a pixel to "
    + "read them. Drag the line, or move the sliders, and watch everything answer.", line()],
  ["A kernel looks at a patch", "The first convolution has small squares of weights, its kernels. Point at the large "
    + "answer of channel 0: the frame on the image is the patch that the place sees, and the sum is written out. "
    + "The last square is the image that excites the channel most. One plain colour: the channel looks for that colour.",
    { ...line(), unit: { layer: factsOf(state.run).first, channel: 0 } }, "inside"],
  ["A channel is one kernel's answer, everywhere", "Each tile of stem.conv is one kernel, laid on every place of the image: "
    + "orange where the patch fits, blue where it is the opposite, white where neither. Turn the line and see which "
    + "channels prefer which direction.", line({ length: 15, angle: 90 }), "inside"],
  ["A head is one question", "All heads read the same first layers, and each answers its own question: length, width, "
    + "angle, colour. Press “red” and “blue”: only the colour's answer turns. Then pick a green, which no "
    + "training line had: what was never shown may break every answer.", line({ length: 15, angle: 90, colour: [0, 0, 255] })],
  ["Between the classes", "A line halfway between 45° and 60° is of no class. The network must choose, and its "
    + "probabilities say how torn it is. Move the angle slowly to either side.", line({ length: 15, width: 3, angle: 52.5 })],
  ["The truth beside the heatmap", "Green are the pixels that would change if the answer were another one. For “short” "
    + "they lie where the line is not: black pixels beyond its ends. A network that measures the length should look there; does the map?",
    line(), "answers"],
  ["Why a heatmap can be wrong", "Grad-CAM is as coarse as the maps that it looks at, a few places a side, and says where "
    + "they were bright, not which pixels would turn the answer. Switch “evidence by” to saliency and back, and "
    + "compare the sentences below the maps: often an edge detector, which knows nothing of the network, hits more.",
    line({ length: 15, width: 3, angle: 120 }), "answers"],
  ["Poke it", "A long line, its ends painted black. Which heads change their minds, and by how much? Paint on: tick Poke "
    + "and draw on the image. Then ask a head what would change its mind.",
    { ...line({ length: 15, width: 1, angle: 0, y: 14.5 }), paint: { ...black(5, 12, 5, 5), ...black(18, 12, 5, 5) } }, "answers"],
];

const ofOthers = () => {
  const test = place => ({ mode: "test", index: factsOf(state.run).examples[place]?.index, paint: {}, targets: {}, unit: null,
    method: method() });
  const count = factsOf(state.run).examples.length, [height, width] = factsOf(state.run).size;
  return [
    ["An image is numbers", "A test image, which the network has not learned from. Point at a pixel to read it.", test(0)],
    ["A kernel looks at a patch", "The first convolution has small squares of weights, its kernels. Point at the large "
      + "answer of channel 0: the frame on the image is the patch that the place sees, and the sum is written out. "
    + "The last square is the image that excites the channel most. One plain colour: the channel looks for that colour.",
      { ...test(0), unit: { layer: factsOf(state.run).first, channel: 0 } }, "inside"],
    ["A channel is one kernel's answer, everywhere", "Each tile of the first convolution is one kernel, laid on every place "
      + "of the image: orange where the patch fits, blue where it is the opposite, white where neither.", test(Math.min(1, count - 1)), "inside"],
    ["The classes", "The bars are the network's probabilities. Click on another class to see the evidence for that one.",
      test(Math.min(2, count - 1))],
    ["Evidence", "The heatmap says where the evidence for the class lies. It is a claim of a method, not a fact: no one "
      + "knows here which pixels decide.", test(Math.min(3, count - 1))],
    ["Another method, another claim", "This is saliency for the same answer: which pixels would move the score most. Grad-CAM "
      + "says where a layer was bright. They answer different questions, and neither is the truth.", { ...test(Math.min(3, count - 1)), method: "saliency" }],
    ["Poke it", "A part of the image is painted black. Tick Poke and paint on: where does the answer turn?",
      { ...test(Math.min(1, count - 1)), paint: black(width >> 2, height >> 1, width >> 1, height >> 2) }, "answers"],
    ["Draw", "Draw something of your own. Below the sheet is what the network is given: the same form as its data.",
      { mode: "drawing", strokes: [], paint: {}, targets: {}, unit: null, method: method() }],
  ];
};

// Those of lines where each attribute has a head; without the kernels where there is no convolution.
function stepsOf({ colours, heads, first, examples }) {
  const four = colours && ["length", "width", "angle", "colour"].every(name => heads.some(head => head.name === name));
  const steps = four ? ofLines() : examples.length ? ofOthers() : ofOthers().slice(-1);
  return steps.filter(([title]) => first || !/kernel/.test(title));
}

export function begin(apply) {
  const guide = document.getElementById("guide"), poking = document.getElementById("poking");
  const end = () => {
    guide.hidden = true;
    document.getElementById("tour").focus();
  };
  const show = async place => {
    const steps = stepsOf(factsOf(state.run)), [title, words, part, section] = steps[place];
    poking.checked = false;
    await apply(part);
    const button = (text, action, disabled = false) =>
      Pixels.element("button", { type: "button", textContent: text, onclick: action, disabled });
    guide.replaceChildren(
      Pixels.element("h2", {}, `${place + 1} of ${steps.length}: ${title}`), Pixels.element("p", {}, words),
      Pixels.element("div", { className: "buttons" }, button("Back", () => show(place - 1), place === 0),
        button("Next", () => show(place + 1), place === steps.length - 1), button("End", end)));
    guide.hidden = false;
    guide.focus({ preventScroll: true });
    document.getElementById(section || "stage").scrollIntoView({ block: "start", behavior: "smooth" });
  };
  document.getElementById("tour").addEventListener("click", () => show(0));
  document.getElementById("run").addEventListener("change", () => { guide.hidden = true; });
  document.addEventListener("keydown", event => { if (event.key === "Escape" && !guide.hidden) end(); });
}
