"""A draft with a tokenizer of its own: steps cross as text, and everybody else sees the target's token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.engine_walks import EMBEDDED, GREEDY
from support.permuted import permuted_copy
from support.tiny import make_tokenizer

from actors.local import local_handles
from actors.roles import DraftActor
from dreamr.config import ActorConfig, GroupConfig, HFEngineConfig, PipelineSettings
from dreamr.engines.base import Engine
from dreamr.engines.factory import build_engine
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.hf.loading import load_tokenizer
from dreamr.engines.retokenize import TextCrossing, same_ids
from dreamr.tasks.ledger import make_problem
from dreamr.types import DELIMITER, ROOT, Criterion, Finish, Prefill, Prompt, Sampling, Step, Tokens, Verdict
from pipelines import Request, Trace, run

QUESTION = Prompt("?")
TARGET = HFEngineConfig(model="embedded:target")


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> HFEngineConfig:
    torch.set_num_threads(1)
    copy = permuted_copy(EMBEDDED / "draft-untrained", tmp_path_factory.mktemp("permuted") / "draft")
    return HFEngineConfig(model=str(copy))


class Script:
    """Writes the steps it is given, in its own tokens, and keeps the prefixes that it was asked to go on from."""

    def __init__(self, *steps: tuple[Tokens, str, Finish]) -> None:
        self._steps = list(steps)
        self.prefixes: list[Tokens] = []
        self.judged: list[Step] = []

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: str = "needed"
    ) -> Step:
        self.prefixes.append(after.end)
        return Step(after.end, *self._steps.pop(0))

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        self.judged.extend(chain)
        return [Verdict(0.5) for _ in chain]

    async def prefill(self, prompt: Prompt) -> Prefill:
        return Prefill()

    async def count_tokens(self, prompt: Prompt) -> int:
        return 1

    def stop(self, call_id: str) -> None: ...


def ids(tokenizer: Any, text: str) -> Tokens:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


async def answer(draft: Engine, target: Engine, number: int) -> Trace:
    problem = make_problem("test", 1, number)
    request = Request(problem.prompt, PipelineSettings(max_tokens=512, max_step_tokens=96))
    return await run(request, local_handles(draft, target, target))


async def test_a_draft_with_other_ids_commits_what_the_original_commits(permuted: HFEngineConfig) -> None:
    target = build_engine(TARGET).engine
    original = build_engine(HFEngineConfig(model="embedded:draft-untrained"), ids_of=TARGET.model).engine
    crossing = build_engine(permuted, ids_of=TARGET.model).engine
    assert isinstance(original, HFEngine)
    assert isinstance(crossing, TextCrossing)
    sources = set()
    for number in range(4):
        same, other = await answer(original, target, number), await answer(crossing, target, number)
        assert other.tokens == same.tokens
        assert [step.source for step in other.steps] == [step.source for step in same.steps]
        assert [step.score for step in other.steps] == pytest.approx([step.score for step in same.steps], abs=1e-5)
        sources |= {step.source for step in other.steps}
    assert sources == {"draft", "target"}


async def test_an_actor_translates_when_its_group_says_whose_ids_steps_carry(permuted: HFEngineConfig) -> None:
    group = GroupConfig(draft=ActorConfig(engine=permuted), target=ActorConfig(engine=TARGET))
    assert (group.ids_of("draft"), group.ids_of("target")) == (TARGET.model, None)
    actor = DraftActor(group.draft, group.ids_of("draft"))
    await actor.start()
    step = await actor.next_step("a", make_problem("test", 1, 0).prompt, ROOT, GREEDY)
    assert ids(load_tokenizer(str(EMBEDDED / "target")), step.text) == step.tokens


async def test_steps_cross_in_both_directions_as_text() -> None:
    own, target = make_tokenizer(300), make_tokenizer(400)
    assert not same_ids(own, target)
    text = "the red circles is right.\n\n"
    script = Script((ids(own, text), text, "delimiter"), ((*ids(own, "is right"), 2), "is right", "eos"))
    crossing = TextCrossing(script, own, target)
    first = await crossing.next_step("a", QUESTION, ROOT, GREEDY)
    assert (first.prefix, first.tokens, first.text, first.finish) == ((), ids(target, text), text, "delimiter")
    assert target.decode(first.tokens).endswith(DELIMITER)
    last = await crossing.next_step("b", QUESTION, first, GREEDY)
    assert script.prefixes == [(), ids(own, text)]
    assert (last.prefix, last.tokens) == (first.end, (*ids(target, "is right"), target.eos_token_id))
    assert last.closed


async def test_what_a_draft_writes_depends_on_the_prefix_alone() -> None:
    own, target = make_tokenizer(300), make_tokenizer(400)
    unusual = tuple(own.convert_tokens_to_ids(list("red")))  # spelled out, as the tokenizer itself never would
    script = Script((unusual, "red", "length"), (unusual, "red", "length"), (unusual, "red", "length"))
    crossing = TextCrossing(script, own, target)
    first = await crossing.next_step("a", QUESTION, ROOT, GREEDY)
    await crossing.next_step("b", QUESTION, first, GREEDY)
    await TextCrossing(script, own, target).next_step("c", QUESTION, first, GREEDY)
    assert script.prefixes[1] == script.prefixes[2] == ids(own, "red")


async def test_half_a_character_is_left_to_whoever_writes_next() -> None:
    own, target = make_tokenizer(300), make_tokenizer(400)
    cut = ids(own, "red é")[:-1]
    crossing = TextCrossing(Script((cut, own.decode(cut), "length")), own, target)
    step = await crossing.next_step("a", QUESTION, ROOT, GREEDY)
    assert (step.text, step.tokens) == ("red ", ids(target, "red "))


async def test_verdicts_are_asked_for_in_the_engines_own_ids() -> None:
    own, target = make_tokenizer(300), make_tokenizer(400)
    script = Script()
    first = Step(tokens=ids(target, "red.\n\n"))
    last = Step(first.end, (*ids(target, "right"), 2), "right", "eos")
    assert len(await TextCrossing(script, own, target).score("a", QUESTION, [first, last])) == 2
    assert [step.end for step in script.judged] == [ids(own, "red.\n\n"), (*ids(own, "red.\n\nright"), 2)]


async def test_text_that_the_target_cannot_spell_is_refused() -> None:
    target = load_tokenizer(str(EMBEDDED / "target"))
    own = make_tokenizer()
    crossing = TextCrossing(Script((ids(own, "é"), "é", "length")), own, target)
    with pytest.raises(ValueError, match="the target's tokenizer cannot spell the draft's 'é'"):
        await crossing.next_step("a", QUESTION, ROOT, GREEDY)


def test_control_tokens_alone_are_no_reason_to_translate() -> None:
    own = make_tokenizer()
    own.add_tokens(["<image>"], special_tokens=True)
    assert same_ids(own, make_tokenizer())


def test_engines_without_a_checkpoint_have_no_ids_to_translate() -> None:
    scripted = ActorConfig.model_validate({"engine": {"kind": "scripted"}})
    assert GroupConfig(draft=scripted, target=ActorConfig(engine=TARGET)).ids_of("draft") is None
