// The lanes: what draft, verifier and target do, while they do it; in the end, what became of it.

const LANES = ["draft", "verifier", "target"];
const SVG = "http://www.w3.org/2000/svg";
const LANE_HEIGHT = 40, GAP = 8, TOP = 6, BAR = 22;

function draw(parent, tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

export class Timeline {
  constructor(svg) {
    this.svg = svg;
    this.reset();
    new ResizeObserver(() => this.render()).observe(svg);
  }

  reset() {
    this.calls = new Map();
    this.spans = null;
    this.commits = [];
    this.began = null;
    this.latest = 0;
    this.svg.setAttribute("aria-label", "No timeline yet");
    this.render();
  }

  // A call begins ({call, lane, at}) or ends ({call, lane, start, end, ...}).
  tell(event) {
    this.calls.set(event.call, { ...this.calls.get(event.call), ...event });
    const time = event.end ?? event.at;
    this.latest = Math.max(this.latest, time);
    this.began ??= performance.now() - 1000 * time;
    this.animate();
  }

  committed(origin) {
    this.commits.push(origin);
  }

  // The whole truth, when everything has ended.
  finish(run) {
    this.spans = run.timeline;
    this.latest = run.wall_s * 1.03; // what is stopped with the answer may take a moment longer to end
    this.svg.setAttribute("aria-label", summary(run));
    this.render();
  }

  stop() {
    this.spans ??= [];
  }

  animate() {
    if (this.frame || this.spans) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.render();
      if (!this.spans && [...this.calls.values()].some((call) => call.end === undefined)) this.animate();
    });
  }

  get now() {
    return this.spans || this.began === null ? this.latest : (performance.now() - this.began) / 1000;
  }

  render() {
    const width = this.svg.clientWidth || 600;
    const left = width < 500 ? 62 : 84;
    const length = Math.max(this.now, 0.05);
    const x = (time) => left + (Math.max(time, 0) / length) * (width - left - 8);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} 178`);
    this.hatch();
    this.grid(x, length, width, left);
    const bars = this.spans?.length ? this.spans.map(finished) : [...this.calls.values()].map((call) => running(call, this.now));
    for (const bar of bars) this.bar(bar, x);
  }

  hatch() {
    const pattern = draw(draw(this.svg, "defs", {}), "pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
    draw(pattern, "line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" });
  }

  grid(x, length, width, left) {
    LANES.forEach((lane, index) => {
      const y = TOP + index * (LANE_HEIGHT + GAP);
      draw(this.svg, "rect", { x: left, y, width: width - left - 8, height: LANE_HEIGHT, rx: 7, class: "lane" });
      draw(this.svg, "text", { x: 0, y: y + LANE_HEIGHT / 2 + 4, class: "name" }, lane);
    });
    const bottom = TOP + 3 * (LANE_HEIGHT + GAP) - GAP;
    for (const origin of this.commits) draw(this.svg, "line", { x1: x(origin.at), x2: x(origin.at), y1: TOP, y2: bottom, class: "commit" });
    if (this.began === null) return;
    const tick = niceTick(length, width < 500 ? 3 : 6);
    for (let time = 0; time <= length; time += tick) {
      const anchor = time === 0 ? "start" : x(time) > width - 30 ? "end" : "middle";
      draw(this.svg, "text", { x: x(time), y: bottom + 20, "text-anchor": anchor }, `${+time.toFixed(2)} s`);
    }
  }

  bar({ lane, start, end, look, title }, x) {
    const y = TOP + LANES.indexOf(lane) * (LANE_HEIGHT + GAP) + (LANE_HEIGHT - BAR) / 2;
    const right = x(Math.min(end, this.now));
    const made = draw(this.svg, "rect", { x: x(start), y, width: Math.max(right - x(start) - 1, 2), height: BAR, rx: 4, class: look });
    draw(made, "title", {}, title);
  }
}

function niceTick(length, most) {
  const rough = length / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * unit).find((tick) => tick >= rough);
}

function running(call, now) {
  const begun = call.start ?? call.at;
  return { lane: call.lane, start: begun, end: call.end ?? now, look: lookOf(call), title: call.lane };
}

function lookOf(call) {
  if (call.prefill) return call.end === undefined ? "prefill open" : "prefill";
  if (call.end === undefined) return call.lane === "verifier" ? "pending" : `${call.lane} open`;
  if (call.lost || call.stopped || call.judged === false) return "dropped";
  return call.lane === "verifier" ? verdict(call) : call.lane;
}

// The server knows the rule: each verdict says whether it accepts.
const verdict = ({ accepted }) => (accepted ? "yes" : "no");

function finished(span) {
  if (span.outcome === "prefill") return { ...span, look: "prefill", title: "reads the prompt" };
  if (span.lane === "verifier") return judged(span);
  const look = span.outcome === "committed" ? span.lane : "dropped";
  return { ...span, look, title: `step ${span.step + 1}: ${span.outcome}, ${span.num_tokens} tokens` };
}

// A verdict that never came accepts and rejects nothing.
function judged(span) {
  const step = `step ${span.step + 1}`;
  if (span.accepted === null || span.accepted === undefined) return { ...span, look: "dropped", title: `${step}: ${span.outcome}` };
  const rho = span.rho === null || span.rho === undefined ? "" : `, ρ ${span.rho.toFixed(2)}`;
  return { ...span, look: verdict(span), title: `${step}: ${span.accepted ? "accepted" : "rejected"}${rho}` };
}

function summary(run) {
  const drafted = run.steps.filter((step) => step.source === "draft").length;
  return `Timeline of ${run.wall_s.toFixed(2)} seconds: ${run.steps.length} steps, ${drafted} written by the draft, ${run.steps.length - drafted} by the target.`;
}
