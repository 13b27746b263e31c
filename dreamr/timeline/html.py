"""The picture as one HTML file that needs nothing else: inline SVG, hover texts, a table of the steps; no script."""

from __future__ import annotations

import html
from pathlib import Path
from xml.etree.ElementTree import tostring

from dreamr.timeline.look import HATCH, LOOKS, headline, outcomes
from dreamr.timeline.svg import svg
from pipelines import Trace

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1f2933; margin: 2rem auto; max-width: 1240px;
  padding: 0 1.2rem; }
h1 { font-size: 1.35rem; margin: 0; }
p.headline { color: #66707c; margin: .15rem 0 1.1rem; }
figure { margin: 0; overflow-x: auto; border: 1px solid #e3e7eb; border-radius: 8px; padding: .6rem .8rem; }
svg { display: block; }
ul { display: flex; flex-wrap: wrap; gap: .35rem 1.3rem; list-style: none; padding: 0; margin: .9rem 0 2rem;
  font-size: .88rem; }
li i { display: inline-block; width: 1.1em; height: .8em; border-radius: 2px; margin-right: .45em; }
li b { color: #009e73; margin-right: .35em; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: #66707c; font-weight: 500; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e3e7eb; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; width: 70%; }
"""

_COLUMNS = {"step": "number", "by": "", "rho": "number", "seconds": "number", "text": ""}


def draw_html(trace: Trace, path: Path) -> None:
    """Draw one lane per actor over seconds, with the commits on top, and list the committed steps."""
    path.write_text(_page(trace), encoding="utf-8")


def _page(trace: Trace) -> str:
    title = html.escape(trace.method)
    picture = tostring(svg(trace), encoding="unicode")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}: timeline of a request</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="headline">{html.escape(headline(trace))}</p>
<figure>{picture}</figure>
<ul>{_legend(trace)}</ul>
{_steps(trace)}
</body>
</html>
"""


def _legend(trace: Trace) -> str:
    entries = []
    for outcome in outcomes(trace):
        look = LOOKS[outcome]
        stripes = f"repeating-linear-gradient(135deg,{look.fill} 0 3px,{HATCH.get(outcome, look.fill)} 3px 4.5px)"
        entries.append(f'<li><i style="background:{stripes}"></i>{look.label}</li>')
    for source, mark in {"draft": "▼", "target": "■"}.items():
        if any(step.source == source for step in trace.steps):
            entries.append(f"<li><b>{mark}</b>commit of the {source}'s step</li>")
    return "".join(entries)


def _steps(trace: Trace) -> str:
    rows = "".join(
        f'<tr><td class="number">{step.index + 1}</td><td>{step.source}</td>'
        f'<td class="number">{"" if step.score is None else f"{step.score:.3f}"}</td>'
        f'<td class="number">{step.at:.3f}</td><td class="text">{html.escape(step.text.strip())}</td></tr>\n'
        for step in trace.steps
    )
    heads = "".join(f'<th class="{look}">{name}</th>' for name, look in _COLUMNS.items())
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>"
