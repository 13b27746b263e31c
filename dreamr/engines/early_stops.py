"""Stops that overtook their call, because the call still waited for its arguments elsewhere."""

from __future__ import annotations

from collections import OrderedDict

_MAX_REMEMBERED = 1024


class EarlyStops:
    """Which calls were stopped before they began. Only the newest ids are remembered."""

    def __init__(self) -> None:
        self._remembered: OrderedDict[str, bool] = OrderedDict()
        """Call id -> whether it was stopped before it began; False means that it has ended."""

    def begin(self, call_id: str) -> bool:
        """Whether this call, which begins now, has been stopped already."""
        return self._remembered.pop(call_id, False)

    def end(self, call_id: str) -> None:
        """The call is over: a stop that comes now is late, and not meant for a later call."""
        self._remember(call_id, stopped=False)

    def stop(self, call_id: str) -> None:
        """A stop for a call that does not run."""
        if call_id not in self._remembered:
            self._remember(call_id, stopped=True)

    def _remember(self, call_id: str, *, stopped: bool) -> None:
        self._remembered[call_id] = stopped
        self._remembered.move_to_end(call_id)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
