"""The load report: sums over the requests of clients, and its table in docs/serving.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dreamr.markdown import markdown_table
from tools.reports import conditions


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, measured by its client."""

    began: float
    ended: float
    num_tokens: int
    is_right: bool

    @property
    def latency_s(self) -> float:
        return self.ended - self.began


def summarise(rounds: Sequence[Sequence[Asked]]) -> dict[str, Any]:
    """Throughput over the time in which requests were open; percentiles over all requests."""
    everything = [asked for one in rounds for asked in one]
    busy = sum(max(asked.ended for asked in one) - min(asked.began for asked in one) for one in rounds)
    latencies = [asked.latency_s for asked in everything]
    return {
        "requests": len(everything),
        "right": sum(asked.is_right for asked in everything),
        "throughput": len(everything) / busy,
        "throughput_per_round": [
            len(one) / (max(asked.ended for asked in one) - min(asked.began for asked in one)) for one in rounds
        ],
        "tokens_per_s": sum(asked.num_tokens for asked in everything) / busy,
        "p50_s": statistics.median(latencies),
        "p95_s": statistics.quantiles(latencies, n=20, method="inclusive")[-1],
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    rows = [["clients", "method", "answers/s", "tokens/s", "p50", "p95", "correct", "against autoregressive"]]
    plain = {row["concurrency"]: row for row in report["rows"] if row["method"] == "autoregressive"}
    for row in report["rows"]:
        base = plain.get(row["concurrency"])
        ratio = f"{row['throughput'] / base['throughput']:.2f}" if base and base is not row else ""
        rows.append(
            [
                str(row["concurrency"]),
                f"`{row['method']}`",
                f"{row['throughput']:.2f}",
                f"{row['tokens_per_s']:.0f}",
                f"{row['p50_s']:.2f} s",
                f"{row['p95_s']:.2f} s",
                f"{row['right']} of {row['requests']}",
                ratio,
            ]
        )
    return f"{markdown_table(rows)}\n\n{conditions(report)}"
