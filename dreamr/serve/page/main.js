import { ask, getJson, health } from "./api.js";
import { imageUrls, listenForImages, showOnly } from "./images.js";
import { addStep, clearSteps, plainAnswer, showAnswer } from "./steps.js";
import { Timeline } from "./timeline.js";

const byId = (id) => document.getElementById(id);
const timeline = new Timeline(byId("timeline"));
const state = { model: "dreamr", expected: null, control: null, last: null };

// -- the problem ------------------------------------------------------------------------------------------------------

async function takeSample() {
  const problem = await getJson("/v1/problems/sample");
  await showOnly(problem.image, "Six coloured shapes in a grid, each with a number");
  byId("question").value = problem.question;
  state.expected = problem.answer;
}

// -- one run ----------------------------------------------------------------------------------------------------------

function body(method) {
  const content = [{ type: "text", text: byId("question").value }];
  content.unshift(...imageUrls().map((url) => ({ type: "image_url", image_url: { url } })));
  const most = byId("max-tokens").valueAsNumber;
  return {
    model: state.model,
    messages: [{ role: "user", content }],
    method,
    alpha: Number(byId("alpha").value),
    window: Number(byId("window").value),
    temperature: Number(byId("temperature").value),
    ...(most > 0 ? { max_tokens: most } : {}),
    timeline: true,
    cold: true,
  };
}

// Follows a stream; resolves to {run, content, finish}.
async function follow(request, listener) {
  let content = "", run = null, finish = null;
  for await (const { choices } of ask(request, state.control.signal)) {
    for (const { delta, dreamr, finish_reason: reason } of choices) {
      content += delta.content ?? "";
      if (reason) [run, finish] = [dreamr, reason];
      else if (dreamr?.lane) listener.worked?.(dreamr);
      else if (dreamr?.source) listener.step?.(dreamr, delta.reasoning ?? delta.content ?? "");
    }
  }
  return { run, content, finish };
}

async function answer() {
  clearSteps();
  timeline.reset();
  byId("compare").hidden = byId("counts").hidden = true;
  if (matchMedia("(max-width: 800px)").matches) byId("steps-title").scrollIntoView({ behavior: "smooth" });
  const request = body(byId("method").value), { expected } = state;
  try {
    const { run, content, finish } = await follow(request, {
      worked: (event) => timeline.tell(event),
      step: (origin, text) => { addStep(origin, text); timeline.committed(origin); },
    });
    timeline.finish(run);
    showAnswer(content, expected, finish);
    showCounts(run);
    state.last = { run, content, request: { ...request, method: "autoregressive" } };
    offerComparison(run);
  } finally {
    timeline.stop();
  }
}

function showCounts(run) {
  const judged = run.steps.filter((step) => step.accepted !== undefined && step.accepted !== null);
  const drafted = run.steps.filter((step) => step.source === "draft");
  const wasted = run.timeline.filter((span) => span.lane !== "verifier" && span.outcome !== "committed");
  const rows = {
    "wall time": `${run.wall_s.toFixed(2)} s`,
    steps: run.steps.length,
    "by the draft": `${drafted.length} of ${run.steps.length}`,
    "accepted drafts": judged.length ? `${Math.round((100 * judged.filter((step) => step.accepted).length) / judged.length)} %` : "–",
    "tokens kept": run.steps.reduce((sum, step) => sum + step.num_tokens, 0),
    "tokens wasted": wasted.reduce((sum, span) => sum + span.num_tokens, 0),
  };
  byId("counts").replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("div");
    row.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
    return row;
  }));
  byId("counts").hidden = false;
}

// -- against the target alone -----------------------------------------------------------------------------------------

function offerComparison(run) {
  byId("compare").hidden = run.method === "autoregressive";
  byId("own-name").textContent = run.method;
  byId("own-time").textContent = `${run.wall_s.toFixed(2)} s`;
  byId("plain-time").textContent = "not run yet";
  byId("speedup").textContent = "";
  bars(run.wall_s, 0);
}

function bars(own, plain) {
  const longest = Math.max(own, plain);
  byId("own-bar").style.width = `${(100 * own) / longest}%`;
  byId("plain-bar").style.width = `${(100 * plain) / longest}%`;
}

async function compare() {
  const { run, content, request } = state.last;
  const began = performance.now();
  let going = true;
  const grow = () => {
    if (!going) return;
    const soFar = (performance.now() - began) / 1000;
    bars(run.wall_s, soFar);
    byId("plain-time").textContent = `${soFar.toFixed(1)} s`;
    requestAnimationFrame(grow);
  };
  grow();
  const plain = await follow(request, {}).finally(() => { going = false; });
  bars(run.wall_s, plain.run.wall_s);
  byId("plain-time").textContent = `${plain.run.wall_s.toFixed(2)} s`;
  const same = plainAnswer(plain.content) === plainAnswer(content);
  const ratio = plain.run.wall_s / run.wall_s;
  const number = Object.assign(document.createElement("strong"), { textContent: `${ratio.toFixed(2)} ×` });
  byId("speedup").replaceChildren(number, ` as fast, ${same ? "with the same answer" : `where the target alone says ${plainAnswer(plain.content) || "nothing"}`}.`);
}

// -- the controls -----------------------------------------------------------------------------------------------------

function say(error) {
  if (error.status === 401) { // the key goes there
    document.querySelector("details").open = true;
    byId("key").focus();
  }
  byId("error").textContent = error.message;
  byId("error").hidden = false;
}

// One thing at a time: it can be stopped, and says so when it fails.
async function busy(work) {
  state.control?.abort();
  const control = (state.control = new AbortController());
  byId("error").hidden = true;
  for (const id of ["go", "sample", "compare-go"]) byId(id).disabled = true;
  byId("stop").hidden = false;
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error);
  } finally {
    if (state.control === control) {
      for (const id of ["go", "sample", "compare-go"]) byId(id).disabled = false;
      byId("stop").hidden = true;
    }
  }
}

async function showHealth() {
  let status = "unavailable", text = "no connection";
  try {
    ({ status } = await health());
    text = { ok: "all actors up", degraded: "target alone", unavailable: "target down" }[status];
  } catch { /* that is what the text says */ }
  const pill = byId("health");
  if (pill.textContent === text) return; // a screen reader would say it again
  pill.className = `pill ${status}`;
  pill.textContent = text;
}

async function loadMethods() {
  const [model] = (await getJson("/v1/models")).data;
  state.model = model.id;
  const names = ["fpsr", ...model.methods.filter((name) => name !== "fpsr")];
  byId("method").replaceChildren(...names.map((name) => new Option(name, name)));
  byId("ability").hidden = !model.actors.target.model.startsWith("embedded:");
}

function listen() {
  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); busy(answer); });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
  byId("question").addEventListener("input", () => { state.expected = null; });
  byId("sample").addEventListener("click", () => busy(takeSample));
  byId("compare-go").addEventListener("click", () => busy(compare));
  byId("stop").addEventListener("click", () => state.control?.abort());
  listenForImages(
    () => { state.expected = null; },
    (message) => { if (message) say({ message }); else byId("error").hidden = true; },
  );
  byId("key").addEventListener("change", () => busy(loadMethods));
  byId("alpha").addEventListener("input", (event) => { byId("alpha-value").value = Number(event.target.value).toFixed(2); });
  byId("temperature").addEventListener("input", (event) => { byId("temperature-value").value = event.target.value; });
  byId("window").addEventListener("input", (event) => { byId("window-value").value = event.target.value; });
}

listen();
showHealth();
setInterval(showHealth, 10_000);
busy(loadMethods);
