"""Ledger problems as training data: seeded, endless, drawn when they are needed."""

from __future__ import annotations

from typing import cast, get_args

from dreamr.errors import ConfigError
from dreamr.tasks.ledger import Split, make_problem
from rl.data import Example


class LedgerData:
    """Problems number 0 to `size` - 1 of one split and seed."""

    def __init__(self, split: str, seed: int, size: int) -> None:
        if split not in get_args(Split):
            raise ConfigError(f"data: the ledger task has no split '{split}'; choose {', '.join(get_args(Split))}.")
        self._split, self._seed, self._size = cast(Split, split), seed, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        problem = make_problem(self._split, self._seed, index)
        return Example(problem.prompt, str(problem.answer), "ledger", needed_steps=len(problem.operations) + 1)
