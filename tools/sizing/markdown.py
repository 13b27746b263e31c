"""Puts what public models and the ready configurations need into a text: `python -m tools.sizing.markdown
docs/models.md configs/qwen3-vl-[0-9]*.yaml`."""

from __future__ import annotations

from pathlib import Path

import typer

from dreamr.config import ActorConfig, VLLMEngineConfig, load_config
from dreamr.documents import fill, markdown_table
from tools.sizing.memory import GIB, kv_bytes_per_token, kv_tokens, num_parameters, uses_awq, weight_bytes
from tools.sizing.public_models import PUBLIC_MODELS, public_model

MODELS, CONFIGURATIONS = "public models", "ready configurations"


def models_table() -> str:
    """What each public model needs, and where its shape was read."""
    rows = [["model", "parameters", "weights, 16 bits", "weights, AWQ", "KV cache per 1,000 tokens", "shape from"]]
    for model in PUBLIC_MODELS:
        unknown = "" if model.vision else " + tower"
        rows.append(
            [
                model.name,
                f"{num_parameters(model) / 1e9:.1f} B{unknown}",
                f"{weight_bytes(model) / GIB:.1f} GiB",
                f"{weight_bytes(model, awq=True) / GIB:.1f} GiB",
                f"{1000 * kv_bytes_per_token(model) / GIB:.2f} GiB",
                model.source,
            ]
        )
    return markdown_table(rows)


def configurations_table(paths: list[Path]) -> str:
    """GPUs of each configuration, and how many tokens the KV caches of its actors hold."""
    rows = [["configuration", "draft", "target", "verifier", "GPUs"]]
    for path in sorted(paths):
        group = load_config(path).group
        actors = group.actors()
        verifier = _cell(actors["verifier"]) if "verifier" in actors else "shared"
        gpus = sum(actor.num_gpus for actor in actors.values())
        kind = actors["target"].accelerator_type
        rows.append([f"`{path.name}`", _cell(group.draft), _cell(group.target), verifier, f"{gpus:g} x {kind}"])
    return markdown_table(rows)


def _cell(actor: ActorConfig) -> str:
    engine = actor.engine
    assert isinstance(engine, VLLMEngineConfig), "these configurations run vLLM"
    assert actor.accelerator_type is not None
    model = public_model(engine.model)
    tokens = kv_tokens(model, engine, actor.accelerator_type)
    return f"{model.name}{' AWQ' if uses_awq(engine) else ''} on {actor.num_gpus:g}: {tokens // 1000} k tokens"


def main(document: Path, configurations: list[Path]) -> None:
    fill(document, MODELS, models_table())
    fill(document, CONFIGURATIONS, configurations_table(configurations))


if __name__ == "__main__":
    typer.run(main)
