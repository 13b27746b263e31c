"""What can be loaded, and the one sentence for what cannot."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.reference import Reference
from support.tiny import PROMPTS, Shape, save_checkpoint

from dreamr.config import HFEngineConfig
from dreamr.engines.factory import build_engine
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.hf.loading import recommended_sampling
from dreamr.tasks.prompts import PROMPT_FILE, PromptConfig, load_prompt_config
from dreamr.types import ROOT, Sampling


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model folder .*nowhere' does not exist"):
        HFEngine.load(str(tmp_path / "nowhere"))


def test_an_unknown_hub_id_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no model configuration found for 'nobody/nothing'") as caught:
        HFEngine.load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_one_sentence_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("dreamr.engines.hf.loading.HUB_DEADLINE_S", 0.2)
        began = time.monotonic()
        with pytest.raises(ValueError, match="model 'nobody/nothing' is not on this machine") as caught:
            HFEngine.load("nobody/nothing")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ValueError, match="is a 'qwen3' model; this engine runs qwen3_vl"):
        HFEngine.load(str(tmp_path))


def test_missing_weights_are_refused_and_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, among them model.language_model.layers.1.mlp.up_proj"):
        HFEngine.load(str(folder))


def test_a_folder_without_weights_is_one_sentence(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights of .* cannot be loaded"):
        HFEngine.load(str(folder))


def test_a_folder_without_an_image_processor_is_one_sentence(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no usable tokenizer or image processor"):
        HFEngine.load(str(folder))


def test_a_folder_without_a_chat_template_is_one_sentence(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        HFEngine.load(str(folder))


async def test_a_folder_laid_out_like_the_released_models_loads(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    edit(folder / "preprocessor_config.json", image_processor_type="Qwen2VLImageProcessorFast")
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "Qwen3VLVideoProcessor"}')
    engine = HFEngine.load(str(folder))
    step = await engine.next_step("a", PROMPTS["two images"], ROOT, Sampling(max_tokens=4))
    await engine.close()
    assert len(step.tokens) > 0


def test_a_verdict_word_of_several_tokens_is_refused(folder: Path) -> None:
    edit(folder / PROMPT_FILE, positive="positively wonderful")
    with pytest.raises(ValueError, match=r"the positive verdict word 'positively wonderful' is .* tokens"):
        HFEngine.load(str(folder))


def test_an_unknown_prompt_setting_is_refused(folder: Path) -> None:
    edit(folder / PROMPT_FILE, verdict="?")
    with pytest.raises(ValueError, match=r"unknown keys \['verdict'\]"):
        HFEngine.load(str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' does not exist"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"max_cached_tokens": 0}, "max_cached_tokens must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(original: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HFEngine.load(str(original), **settings)


async def test_half_precision_weights_run_in_float32_on_a_cpu(folder: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", dtype="float16")
    engine = HFEngine.load(str(folder))
    step = await engine.next_step("a", PROMPTS["two images"], ROOT, Sampling(max_tokens=12))
    await engine.close()
    assert {parameter.dtype for parameter in engine.module.parameters()} == {torch.float32}
    assert (step.tokens, step.finish) == Reference(folder).greedy_along(PROMPTS["two images"], (), step.tokens, 12)


async def test_prompt_settings_of_the_configuration_win_over_the_folders(folder: Path) -> None:
    edit(folder / PROMPT_FILE, system="From the folder.", instruction=" Think.")
    loaded = build_engine(HFEngineConfig(model=str(folder), prompts={"generation_suffix": "<think>\n", "system": ""}))
    engine: Any = loaded.engine
    expected = replace(load_prompt_config(folder), generation_suffix="<think>\n", system="")
    assert engine.encoder.config == replace(expected, verdict_prefix="")  # this template has no thoughts to close
    assert expected.instruction == " Think."
    await engine.close()
    with pytest.raises(ValueError, match=r"engine.prompts has unknown keys \['suffix'\]"):
        build_engine(HFEngineConfig(model=str(folder), prompts={"suffix": ""}))


async def test_prompt_settings_given_at_load_win_over_the_folders(original: Path) -> None:
    engine = HFEngine.load(str(original), prompts=PromptConfig(positive="negative", negative="positive"))
    plain = HFEngine.load(str(original), prompts=PromptConfig())
    step = await plain.next_step("a", PROMPTS["no image"], ROOT, Sampling(max_tokens=12))
    [[swapped], [rho]] = await asyncio.gather(*(e.score("a", PROMPTS["no image"], [step]) for e in (engine, plain)))
    await asyncio.gather(engine.close(), plain.close())
    assert swapped.score == pytest.approx(1 - rho.score, abs=1e-6)


async def test_a_mixture_of_experts_checkpoint_runs_like_its_fresh_forwards(tmp_path: Path) -> None:
    prompt = PROMPTS["one wide image"]
    folder = save_checkpoint(tmp_path, shape=Shape(experts=4))
    engine = HFEngine.load(str(folder))
    first = await engine.next_step("a", prompt, ROOT, Sampling(max_tokens=12))
    second = await engine.next_step("b", prompt, first, Sampling(max_tokens=12))
    chain = [step for step in (first, second) if step.tokens]  # random weights may end the answer at once
    verdicts = await engine.score("c", prompt, chain)
    await engine.close()
    reference = Reference(folder)
    assert type(reference.model).__name__ == "Qwen3VLMoeForConditionalGeneration"
    for step, verdict in zip(chain, verdicts, strict=True):
        assert (step.tokens, step.finish) == reference.greedy_along(prompt, step.prefix, step.tokens, 12)
        assert verdict.score == pytest.approx(reference.rho(prompt, step.end), abs=1e-5)


@pytest.mark.parametrize(
    ("generation", "recommended"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "eos_token_id": 1}, {"temperature": 0.7, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"temperature": 0.7}, {}),
        ({}, {}),
    ],
)
def test_sampling_is_recommended_by_checkpoints_that_sample(
    generation: dict[str, object], recommended: dict[str, float]
) -> None:
    assert recommended_sampling(generation) == recommended
