"""The timeline as one HTML file that needs nothing else: inline SVG and a table of the steps, no script."""

from __future__ import annotations

import html
from pathlib import Path
from xml.etree import ElementTree

from dreamr.timeline.figure import SVG, svg
from pipelines import Trace

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1f2933; margin: 2rem auto; max-width: 1240px;
  padding: 0 1.2rem; }
figure { margin: 0 0 2rem; overflow-x: auto; border: 1px solid #e3e7eb; border-radius: 8px; padding: .6rem .8rem; }
svg { display: block; min-width: 100%; height: auto; }
svg text { pointer-events: none; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: #66707c; font-weight: 500; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e3e7eb; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { white-space: pre-wrap; width: 70%; }
"""

_COLUMNS = {"step": "number", "by": "", "score": "number", "seconds": "number", "text": ""}


def draw_html(trace: Trace, path: Path) -> None:
    """Write the picture and the list of committed steps."""
    path.write_text(_page(trace), encoding="utf-8")


def _page(trace: Trace) -> str:
    title = html.escape(trace.method)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}: timeline of a request</title>
<style>{_STYLE}</style>
</head>
<body>
<figure>{ElementTree.tostring(svg(trace), encoding="unicode")}</figure>
{_steps(trace)}
</body>
</html>
"""


def _steps(trace: Trace) -> str:
    rows = "".join(
        f'<tr><td class="number">{step.index + 1}</td><td>{step.source}</td>'
        f'<td class="number">{"" if step.score is None else f"{step.score:.3f}"}</td>'
        f'<td class="number">{step.at:.3f}</td><td class="text">{html.escape(step.text.strip())}</td></tr>\n'
        for step in trace.steps
    )
    heads = "".join(f'<th class="{look}">{name}</th>' for name, look in _COLUMNS.items())
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>"
