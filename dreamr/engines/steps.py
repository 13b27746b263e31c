"""Steps in every engine: where one ends, what two share, which chains are valid, and stops before their call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cachetools import LRUCache

from dreamr.types import DELIMITER, Finish, Sampling, Step, Tokens


class StepEnd:
    """Recognises the end of steps of one tokenizer: the delimiter, an eos token, or the length bound.

    Tokenizers merge the delimiter into tokens such as ".\\n\\n", or split it over two. Only a token with a line break
    in it can complete the delimiter, so the text is decoded at those tokens alone.
    """

    def __init__(self, decode: Callable[[Tokens], str], eos_tokens: frozenset[int]) -> None:
        self._decode = decode
        self.eos_tokens = eos_tokens
        self._breaks_line: dict[int, bool] = {}

    def finish(self, tokens: Sequence[int], max_tokens: int) -> Finish | None:
        """Why a step with these `tokens` ends here; None when it continues."""
        last = tokens[-1]
        if last in self.eos_tokens:
            return "eos"
        if self._has_line_break(last) and DELIMITER in self._decode(tuple(tokens)):
            return "delimiter"
        return "length" if len(tokens) >= max_tokens else None

    def split(self, after: Step, tokens: Tokens, sampling: Sampling) -> tuple[Step, ...]:
        """Steps made of an open step and the tokens after it; tokens after the end of the answer are dropped.

        The last one has finish "stopped" when it does not end here. Each is bounded by `max_tokens` and the budget.
        """
        steps: list[Step] = []
        prefix, current = after.prefix, list(after.tokens)
        for token in tokens:
            current.append(token)
            if finish := self.finish(current, sampling.within_budget(len(prefix)).max_tokens):
                steps.append(Step(prefix, tuple(current), self.text(current), finish))
                if finish == "eos":
                    return tuple(steps)
                prefix, current = prefix + tuple(current), []
        if current:
            steps.append(Step(prefix, tuple(current), self.text(current), "stopped"))
        return tuple(steps)

    def text(self, tokens: Sequence[int]) -> str:
        """Text of a step; its eos token has none."""
        shown = tokens[:-1] if tokens and tokens[-1] in self.eos_tokens else tokens
        return self._decode(tuple(shown))

    def token_texts(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """Text of each token by itself."""
        return tuple(self._decode((token,)) for token in tokens)

    def _has_line_break(self, token: int) -> bool:
        known = self._breaks_line.get(token)
        if known is None:
            known = self._breaks_line[token] = "\n" in self._decode((token,))
        return known


class EarlyStops:
    """Stops that arrived before their call, which was still waiting for its arguments.

    Only the newest call ids are remembered.
    """

    def __init__(self) -> None:
        self._remembered: LRUCache[str, bool] = LRUCache(1024)
        """Call id -> whether it was stopped before it began; False: it has ended."""

    def begin(self, call_id: str) -> bool:
        """Whether this call, which begins now, has been stopped already."""
        return bool(self._remembered.pop(call_id, False))

    def end(self, call_id: str) -> None:
        """The call has ended: a stop that comes now is late, and must not end a later call."""
        self._remembered[call_id] = False

    def stop(self, call_id: str) -> None:
        """A stop for a call that does not run."""
        if call_id not in self._remembered:
            self._remembered[call_id] = True


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` share from the start."""
    return next(
        (index for index, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b))
    )


def check_chain(chain: Sequence[Step]) -> None:
    """Raises ValueError when a step is empty or does not follow the one before it."""
    for index, step in enumerate(chain):
        if not step.tokens:
            raise ValueError(f"step {index} of the chain is empty (finish {step.finish!r}): there is nothing to judge")
        if index and step.prefix != chain[index - 1].end:
            raise ValueError(
                f"step {index} of the chain does not follow step {index - 1}: its prefix has {len(step.prefix)} "
                f"tokens, but must be the {len(chain[index - 1].end)} tokens that end the step before"
            )


def check_branches(chain: Sequence[Step], sampling: Sequence[Sampling]) -> None:
    """Raises ValueError unless the steps follow each other, none is closed, and each branch has its sampling."""
    if not chain or len(chain) != len(sampling):
        raise ValueError(f"{len(chain)} steps need as many samplings, and at least one, not {len(sampling)}")
    for index, step in enumerate(chain[1:]):
        if step.prefix != chain[index].end:
            raise ValueError(f"a step of {len(step.tokens)} tokens does not follow the one before it in the chain")
    if chain[-1].closed:
        raise ValueError("nothing can follow the last step of the chain: it ends the answer")


def check_pairs(steps: Sequence[Step], references: Sequence[Step]) -> None:
    """Raises ValueError unless there is one reference per step."""
    if len(steps) != len(references):
        raise ValueError(f"{len(steps)} steps cannot be compared with {len(references)} references: give one per step")
