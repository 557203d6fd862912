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

// Show another state: everything that depends on the run is made anew where the run is another.
async function apply(part) {
  const runs = [state.run, state.beside].join();
  Object.assign(state, part);
  say("Opening the run …");
  await openRun(state.run);
  if (state.beside) await openRun(state.beside);
  if (part.run || part.beside !== undefined || [state.run, state.beside].join() !== runs) {
    const { methods, examples } = factsOf(state.run);
    if (!methods.some(({ name }) => name === state.method)) state.method = methods[0].name;
    options(at("method"), methods.map(({ name, title }) => [name, title]), state.method);
    if (part.run && state.mode === "test" && !examples.some(({ index }) => index === state.index)) {
      state.index = examples[0].index;
    }
    heads.showRuns();
    inside.showColumns();
    pad.setBrush();
  }
  at("method").value = state.method;
  pad.showControls();
  await inside.showUnit();
  change();
}

const guarded = action => action().catch(error => say(error.message));

guarded(async () => {
  const { runs, first } = await post("runs"), names = runs.map(({ name }) => name);
  if (location.hash.length > 1) restore(location.hash.slice(1));
  if (!names.includes(state.run)) state.run = first;
  if (!names.includes(state.beside)) state.beside = "";
  const entries = runs.map(({ name, title }) => [name, title]);
  options(at("run"), entries, state.run);
  options(at("beside"), [["", "none"], ...entries], state.beside);
  at("run").addEventListener("change", () => guarded(() => apply({ run: at("run").value, targets: {}, unit: null, paint: {} })));
  at("beside").addEventListener("change", () => guarded(() => apply({ beside: at("beside").value })));
  at("method").addEventListener("change", () => change({ method: at("method").value }));
  document.addEventListener("line", ({ detail }) => guarded(() => apply({ line: detail })));
  pad.begin();
  take.begin();
  tour.begin(part => guarded(() => apply(part)));
  await openRun(state.run);
  if (!location.hash && !factsOf(state.run).line) state.mode = "test";
  if (!location.hash) state.index = factsOf(state.run).examples[0].index;
  await apply({ run: state.run });
});
