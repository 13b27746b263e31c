"""The programs that make and measure the embedded pair: packing, growing, resuming, evaluating."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.engine_walks import EMBEDDED
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from dreamr.tasks.ledger import make_problem
from tools.make_pair import evaluate, train
from tools.make_pair import run as run_module
from tools.make_pair.architecture import Size, build_model
from tools.make_pair.corpus import Corpus, Recipe
from tools.make_pair.digest import weights_sha256
from tools.make_pair.grow import grow
from tools.make_pair.language import Images, hidden_states
from tools.make_pair.packing import SAMENESS, SCORE, VERDICT, positions_of
from tools.make_pair.phases import Phase, Stage
from tools.make_pair.run import Run
from tools.make_pair.tokenizer import build_tokenizer
from tools.make_pair.vision import features, render_bank

SMALL = Size(64, 2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    model = build_model(SMALL, tokenizer)
    model.model.visual.requires_grad_(False)
    return model


def bank_images(model: Qwen3VLForConditionalGeneration) -> Images:
    bank = render_bank("train", 0, 8)
    with torch.no_grad():
        return Images(bank.cells, features(model, bank.patches))


@pytest.mark.parametrize("text", ["Start with the red circle.", "10 + 5 = 15.\n\n", "Hello, Wörld?", "a\n\n\nb  c 7"])
def test_tokenizer_is_lossless_on_ascii(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    decoded = tokenizer.decode(tokenizer(text)["input_ids"])
    assert decoded == text.replace("ö", "<unk>")


def test_the_delimiter_and_each_digit_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 42.\n\n")["input_ids"]) == [" 4", "2", ".", "\n\n"]


def test_a_packed_chain_has_the_hidden_states_of_a_plain_forward(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    images = bank_images(model)
    problems = [make_problem("train", 0, index, num_steps=3) for index in range(2)]
    packed = Corpus(tokenizer, Recipe(0.0, 1.0, verdicts=True)).batch(problems, [0, 1], None, random.Random(0))
    plain = Corpus(tokenizer, Recipe(0.0, 1.0, verdicts=False)).batch(problems, [0, 1], None, random.Random(0))
    with torch.no_grad():
        of_packed, of_plain = hidden_states(model, packed, images), hidden_states(model, plain, images)
    for row in range(2):
        length = int((plain.tokens[row] != 0).sum())
        # The packed chain's tokens stand between its branches: found again by what they are and where they look.
        final = packed.mask[row, 0, _chain_end(packed, plain, row)].nonzero()[:, 0]
        assert packed.tokens[row, final].tolist() == plain.tokens[row, :length].tolist()
        torch.testing.assert_close(of_packed[row, final], of_plain[row, :length], atol=0.05, rtol=0.05)


def test_a_comparison_of_two_steps_is_a_text_of_its_own(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    images = bank_images(model)
    recipe = Recipe(0.5, 1.0, verdicts=True, scores=1.0, sameness=1.0)
    problem = make_problem("train", 0, 0, num_steps=3)
    batch = Corpus(tokenizer, recipe).batch([problem], [0], None, random.Random(0))
    with torch.no_grad():
        packed = hidden_states(model, batch, images)[0]
    ends = (batch.task[0] == SAMENESS).nonzero()[:, 0].tolist()
    assert len(ends) == 4  # three steps and the answer line
    for end in ends:
        seen = batch.mask[0, 0, end].nonzero()[:, 0]
        tokens = batch.tokens[0, seen]
        assert tokenizer.decode(tokens).startswith("<|im_start|>user\n")
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            plain = model.model.language_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(packed[seen], plain.float(), atol=0.05, rtol=0.05)


def test_a_score_is_nine_for_a_right_step_and_low_for_a_wrong_one(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = Recipe(0.5, 1.0, verdicts=True, scores=1.0)
    problems = [make_problem("train", 0, index, num_steps=6) for index in range(8)]
    batch = Corpus(tokenizer, recipe).batch(problems, list(range(8)), None, random.Random(0))
    scores, verdicts = [], []
    for row in range(len(problems)):
        tasks = batch.task[row].tolist()
        asked = [index for index, task in enumerate(tasks) if task in (VERDICT, SCORE)]
        words = dict(zip(asked, tokenizer.convert_ids_to_tokens(batch.labels[row, asked].tolist()), strict=True))
        for verdict, score in pairwise(asked):
            if tasks[score] == SCORE:  # each score is asked right behind the verdict on the same step
                verdicts.append(words[verdict])
                scores.append(int(words[score]))
    assert {score for score, word in zip(scores, verdicts, strict=True) if word == "positive"} == {9}
    wrong = {score for score, word in zip(scores, verdicts, strict=True) if word == "negative"}
    assert len(wrong) > 2
    assert max(wrong) <= 5


def _chain_end(packed: object, plain: object, row: int) -> int:
    """Index of the packed token whose visible tokens spell the plain chain."""
    wanted = plain.tokens[row][plain.tokens[row] != 0].tolist()  # type: ignore[attr-defined]
    for index in range(packed.tokens.shape[1] - 1, 0, -1):  # type: ignore[attr-defined]
        seen = packed.mask[row, 0, index]  # type: ignore[attr-defined]
        if packed.tokens[row][seen].tolist() == wanted:  # type: ignore[attr-defined]
            return index
    raise AssertionError("the packed sequence does not hold the chain")


def test_positions_are_those_of_the_architecture(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    problem = make_problem("train", 0, 0)
    batch = Corpus(tokenizer, Recipe(0.0, 1.0, verdicts=False)).batch([problem], [0], None, random.Random(0))
    types = (batch.tokens == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    expected, _ = model.model.get_rope_index(
        batch.tokens, mm_token_type_ids=types, image_grid_thw=torch.tensor([[1, 4, 6]])
    )
    assert torch.equal(batch.positions, expected)
    assert torch.equal(positions_of(torch.arange(batch.tokens.shape[1])), expected[:, 0])


@pytest.mark.parametrize("on_top", [True, False])
def test_a_grown_model_computes_the_same(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, on_top: bool
) -> None:
    images = bank_images(model)
    batch = Corpus(tokenizer, Recipe(0.5, 1.0, verdicts=False)).batch(
        [make_problem("train", 0, 0)], [0], None, random.Random(0)
    )
    deeper = grow(model, 5, on_top, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(hidden_states(deeper, batch, images), hidden_states(model, batch, images))


def test_a_resumed_phase_ends_with_the_same_weights(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SAVE_EVERY", 2)
    # The first two stages end after a batch each, the second one where the state is saved.
    stages = (Stage((1, 1), -1.0), Stage((2, 2), -1.0), Stage((3, 3), 2.0))
    phase = Phase("tiny", SMALL, Recipe(0.5, 1.0, verdicts=True), 4, 2, 1e-3, stages)

    def trained(folder: Path, stop_at: int | None) -> Qwen3VLForConditionalGeneration:
        torch.manual_seed(0)
        model = build_model(SMALL, tokenizer)
        model.model.visual.requires_grad_(False)
        folder.mkdir(exist_ok=True)
        run = Run(phase, model, tokenizer, bank_images(model), None, folder)
        if stop_at is not None:
            monkeypatch.setattr(run, "_lr_factor", _interrupt_at(run, stop_at))
            with pytest.raises(KeyboardInterrupt):
                run.train()
            return model
        run.train()
        return model

    straight = trained(tmp_path / "straight", None)
    trained(tmp_path / "resumed", stop_at=3)
    resumed = trained(tmp_path / "resumed", None)
    for (name, one), two in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_one_problem_is_enough_for_an_evaluation(tmp_path: Path) -> None:
    for name, model in (("target", "draft-untrained"), ("other", "draft")):  # the smaller model is the faster judge
        (tmp_path / name).symlink_to(EMBEDDED / model)
    evaluate.main(models=tmp_path, draft="other", problems=1, seed=3, out=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_problems"], report["problem_seed"], report["draft"]) == (1, 3, "other")
    assert report["weights_sha256"]["draft"] == weights_sha256(EMBEDDED / "draft")
    verdicts = report["verdicts_greedy"]
    assert (verdicts["wrong_rejected"] is None) == (verdicts["valid"] == 1)


def test_going_on_from_other_weights_finds_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, works = tmp_path / "given", []
    for name in ("target", "draft"):
        (given / name).mkdir(parents=True)
    monkeypatch.setattr(train, "render_bank", lambda *_: render_bank("train", 0, 1))
    monkeypatch.setattr(train, "load", lambda _: None)
    monkeypatch.setattr(train, "load_or_sample", lambda _drafts, _cells, work: works.append(work))
    monkeypatch.setattr(train, "_train", lambda *arguments: works.append(arguments[5]))
    for name, weights in (("target", b"1"), ("target", b"2"), ("draft", b"1"), ("target", b"1")):
        (given / name / "model.safetensors").write_bytes(weights)
        train.main(work=tmp_path / "work", out=tmp_path / "out", go_on_from=given, threads=torch.get_num_threads())
    assert works[::2] == works[1::2]  # the drafted steps lie where the state lies
    assert len(set(works)) == 4
    (given / "draft" / "model.safetensors").unlink()
    train.main(work=tmp_path / "work", out=tmp_path / "out", go_on_from=given, threads=torch.get_num_threads())
    assert works[-1] == works[0]


def _interrupt_at(run: Run, batch: int):  # type: ignore[no-untyped-def]
    original = run._lr_factor

    def factor() -> float:
        if run._progress.batch == batch:
            raise KeyboardInterrupt
        return original()

    return factor
