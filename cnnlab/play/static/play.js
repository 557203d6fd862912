// The page: opens the runs, restores what the address holds, and begins.
import { change, factsOf, openRun, post, restore, say, state } from "./lab.js";
import * as heads from "./heads.js";
import * as inside from "./inside.js";
import * as pad from "./pad.js";
import * as take from "./take.js";
import * as tour from "./tour.js";

const at = id => document.getElementById(id);

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => Pixels.element("option", { value, selected: value === chosen }, text)));
}

// Show another state, once its runs are open; what depends on them is made anew where they are others.
async function apply(part) {
  const { run, beside } = { ...state, ...part }, before = [state.run, state.beside].join();
  say("Opening the run …");
  for (const name of [run, beside].filter(Boolean)) await openRun(name);
  Object.assign(state, part);
  const { colours, examples, first, methods } = factsOf(run), names = methods.map(({ name }) => name);
  if (state.mode === "line" && !colours) state.mode = "test";
  at("green").hidden = !colours; // only of lines the pixels are known
  if (state.mode === "test" && !examples.length) state.mode = "drawing";
  state.index ??= examples[0]?.index ?? 0;
  if (!names.includes(state.method)) state.method = first ? names[0] : "saliency"; // Grad-CAM needs a convolution
  if (part.run || [run, beside].join() !== before) {
    options(at("method"), methods.map(({ name, title }) => [name, title]), state.method);
    heads.showRuns();
    inside.showColumns();
    pad.showRun();
  }
  at("method").value = state.method;
  showMethod();
  pad.showControls();
  await inside.showUnit();
  change();
}

const showMethod = () => {
  at("method-words").textContent = factsOf(state.run).methods.find(({ name }) => name === state.method).words;
};

const guarded = action => action().catch(error => say(error.message));

guarded(async () => {
  const { runs, first } = await post("runs"), names = runs.map(({ name }) => name);
  if (location.hash.length > 1) restore(location.hash.slice(1));
  if (!names.includes(state.run)) state.run = first;
  if (!names.includes(state.beside)) state.beside = "";
  const entries = runs.map(({ name, title }) => [name, title]);
  options(at("run"), entries, state.run);
  options(at("beside"), [["", "none"], ...entries], state.beside);
  const chosen = part => guarded(() => apply(part).finally(() => {
    [at("run").value, at("beside").value] = [state.run, state.beside];
  }));
  at("run").addEventListener("change", () =>
    chosen({ run: at("run").value, index: null, targets: {}, unit: null, paint: {} }));
  at("beside").addEventListener("change", () => chosen({ beside: at("beside").value }));
  at("method").addEventListener("change", () => {
    change({ method: at("method").value });
    showMethod();
  });
  addEventListener("hashchange", () => guarded(async () => {
    restore(location.hash.slice(1));
    await apply({ run: names.includes(state.run) ? state.run : first });
    options(at("run"), entries, state.run);
    options(at("beside"), [["", "none"], ...entries], state.beside);
  }));
  document.addEventListener("line", ({ detail }) => guarded(() => apply({ line: detail })));
  pad.begin();
  inside.begin();
  take.begin();
  tour.begin(part => guarded(() => apply(part)));
  await apply({ run: state.run }).catch(error => apply({ run: first, beside: "", index: null }).then(() => say(error.message)));
});
