"""Evaluations of the pair as Markdown tables, those of several drafts side by side; see `tools.doc_tables`."""

from __future__ import annotations

from typing import Any

from dreamr.markdown import markdown_table, percent


def tables(*reports: dict[str, Any]) -> str:
    """Outputs of `tools.make_pair.evaluate` for one target and its drafts as two Markdown tables."""
    first = reports[0]
    measured = f"{first['num_problems']} problems; {first['machine']}. "
    ratio = f"A step of the target takes {first['step_time_ratio']:.1f} times as long as one of the draft."
    own = f" Of its own correct steps, the target accepts {percent(first['own_right_steps_accepted'], 1)}."
    return f"{_alone(reports)}\n\n{_verdicts(reports)}\n\n{measured}{ratio}{own}"


def _alone(reports: tuple[dict[str, Any], ...]) -> str:
    shown = [("target", reports[0], "target"), *((report["draft"], report, "draft") for report in reports)]
    models = [report["alone"][role] for _, report, role in shown]
    parameters = [report["num_parameters"][role] for _, report, role in shown]
    return markdown_table(
        [
            ["alone, greedy", *(name for name, _, _ in shown)],
            *([name, *(percent(one[key], 1) for one in models)] for name, key in _SHARES.items()),
            ["tokens per step", *(f"{one['tokens_per_step']:.1f}" for one in models)],
            ["time of a step", *(f"{one['step_ms']:.1f} ms" for one in models)],
            ["parameters", *(f"{count / 1e6:.2f} M" for count in parameters)],
        ]
    )


def _verdicts(reports: tuple[dict[str, Any], ...]) -> str:
    shown = [
        (f"{report['draft']}, {sampling}" if len(reports) > 1 else sampling, report[key])
        for report in reports
        for sampling, key in (("greedy", "verdicts_greedy"), ("temperature 1", "verdicts_temperature_1"))
    ]
    return markdown_table(
        [
            ["verdicts on drafted steps", *(name for name, _ in shown)],
            ["steps judged", *(str(one["num_steps"]) for _, one in shown)],
            *([name, *(percent(one[key], 1) for _, one in shown)] for name, key in _VERDICTS.items()),
            ["time of a verdict", *(f"{one['verdict_ms']:.1f} ms" for _, one in shown)],
        ]
    )


_SHARES = {
    "correct answers": "right",
    "unparsed answers": "unparsed",
    "correct steps": "valid_steps",
    "concise steps": "concise_steps",
}
_VERDICTS = {
    "share of them that are correct": "valid",
    "accepted": "accepted",
    "correct ones accepted": "right_accepted",
    "wrong ones rejected": "wrong_rejected",
    "balanced accuracy": "balanced_accuracy",
    "correct concise ones accepted": "concise_right_accepted",
}
