"""Large prompts go into Ray's object store once; calls then carry a reference instead of the images."""

from __future__ import annotations

from collections import OrderedDict

import ray

from dreamr.types import Prompt

INLINE_BYTES = 64 * 1024
"""Up to here a copy with each call costs less than a visit to the object store."""
MAX_STORED = 64


class PromptStore:
    """Least recently used references to stored prompts; dropping one frees its memory when its calls are over."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, ray.ObjectRef[Prompt]] = OrderedDict()

    def argument(self, prompt: Prompt) -> Prompt | ray.ObjectRef[Prompt]:
        """What to pass as the argument of a call: Ray resolves a reference before the actor sees it."""
        key = prompt.key  # computed here once: the digest travels with the prompt
        if sum(map(len, prompt.images)) <= INLINE_BYTES:
            return prompt
        if key not in self._stored:
            self._stored[key] = ray.put(prompt)
            if len(self._stored) > MAX_STORED:
                self._stored.popitem(last=False)
        self._stored.move_to_end(key)
        return self._stored[key]
