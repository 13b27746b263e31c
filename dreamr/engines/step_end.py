"""Where a step ends: after the first token that completes the delimiter, at an eos token, or at its length bound."""

from __future__ import annotations

from collections.abc import Callable

from dreamr.types import DELIMITER, Finish, Sampling, Step, Tokens


class StepEnd:
    """Recognises the end of steps of one tokenizer.

    Tokenizers merge the delimiter into tokens such as ".\\n\\n", or split it over two. Only a token with a line break
    in it can complete the delimiter, so the text is decoded at those tokens alone.
    """

    def __init__(self, decode: Callable[[Tokens], str], eos_tokens: frozenset[int]) -> None:
        self._decode = decode
        self.eos_tokens = eos_tokens
        self._breaks_line: dict[int, bool] = {}

    def finish(self, tokens: list[int], max_tokens: int) -> Finish | None:
        """Why a step with these `tokens` ends here; None when it goes on."""
        last = tokens[-1]
        if last in self.eos_tokens:
            return "eos"
        if self._has_line_break(last) and DELIMITER in self._decode(tuple(tokens)):
            return "delimiter"
        return "length" if len(tokens) >= max_tokens else None

    def split(self, after: Step, tokens: Tokens, sampling: Sampling) -> tuple[Step, ...]:
        """Steps made of an open step and the tokens behind it; what follows the end of the answer is dropped.

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

    def text(self, tokens: list[int]) -> str:
        """Text of a step; its eos token has none."""
        shown = tokens[:-1] if tokens and tokens[-1] in self.eos_tokens else tokens
        return self._decode(tuple(shown))

    def _has_line_break(self, token: int) -> bool:
        known = self._breaks_line.get(token)
        if known is None:
            known = self._breaks_line[token] = "\n" in self._decode((token,))
        return known
