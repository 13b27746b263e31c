"""Ray and the actors for the duration of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from dreamr.cli.inputs import check_models
from dreamr.config import Config
from dreamr.errors import BadInput

if TYPE_CHECKING:
    from actors.group import ActorGroup

T = TypeVar("T")


def run_with_actors(config: Config, notices: Console, work: Callable[[ActorGroup], Awaitable[T]]) -> T:
    """Do `work` with a started group; the actors, and a local Ray that was started for it, are stopped in any case.

    Raises:
        BadInput: the machine cannot hold the actors, or lacks a model.
        ValueError, ActorLost, ConnectionError: see `ActorGroup.start` and `connect`.
    """
    check_models(config)
    with ExitStack() as stack:
        # Outside of the event loop, where Ctrl-C interrupts at once; inside, Ctrl-C would wait until Ray has started.
        with notices.status("Starting Ray ..."):
            from actors.cluster import connected

            stack.enter_context(connected(config.cluster))
        return asyncio.run(_work_with_group(config, notices, work))


async def _work_with_group(config: Config, notices: Console, work: Callable[[ActorGroup], Awaitable[T]]) -> T:
    from actors.group import ActorGroup
    from dreamr.errors import NotEnoughResources

    group = ActorGroup(config.group)
    roles = list(config.group.actors())
    with notices.status(f"Loading the models of {len(roles)} actors: {', '.join(roles)} ..."):
        try:
            await group.start()
        except NotEnoughResources as error:
            raise BadInput(str(error)) from error
    try:
        return await work(group)
    finally:
        await group.stop()
