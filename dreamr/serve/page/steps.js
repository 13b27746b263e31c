// The list of committed steps, and the answer under it.

const byId = (id) => document.getElementById(id);

export function clearSteps() {
  byId("steps").replaceChildren();
  byId("answer").hidden = true;
  byId("empty").hidden = true;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// One step: `origin` is {index, source, rho, accepted, at} as the server sends it.
export function addStep(origin, text) {
  const facts = element("div", "facts");
  facts.append(element("span", "author", origin.source));
  if (origin.accepted !== undefined && origin.accepted !== null) facts.append(verdict(origin));
  facts.append(element("span", "at", `${origin.at.toFixed(2)} s`));
  const step = element("li", `step ${origin.source}`);
  step.append(facts, element("p", "", text.trim()));
  byId("steps").append(step);
}

// Not every method judges by rho.
function verdict(origin) {
  const said = origin.accepted ? "accepted" : "draft rejected";
  if (origin.rho === undefined || origin.rho === null) return element("span", "rho", said);
  const shown = element("span", "rho", `${said}, ρ`);
  const meter = element("meter");
  Object.assign(meter, { min: 0, max: 1, value: origin.rho });
  meter.setAttribute("aria-hidden", "true");
  shown.append(meter, origin.rho.toFixed(2));
  return shown;
}

export const plainAnswer = (text) => text.trim().replace(/^(final )?answer:\s*/i, "");

// The answer; `expected` is null when nobody knows it.
export function showAnswer(text, expected, finish) {
  byId("answer").hidden = false;
  byId("answer-text").textContent = plainAnswer(text) || "none";
  const check = byId("answer-check");
  check.className = "";
  if (expected === null) {
    check.textContent = finish === "length" ? "stopped before its end" : "";
    return;
  }
  const right = plainAnswer(text) === expected;
  check.className = right ? "right" : "wrong";
  check.textContent = right ? "✓ right" : `✗ it is ${expected}`;
}
