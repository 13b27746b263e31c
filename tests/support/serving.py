"""What tests of the endpoint share: groups without Ray, ports, the app in this process, messages."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from PIL import Image

from actors.local import LocalTransport
from actors.roles import DraftActor, TargetActor, VerifierActor
from dreamr.config import Config, EngineConfig, ScriptedEngineConfig
from dreamr.engines.base import Engine
from dreamr.engines.factory import build_engine
from dreamr.serve.app import make_app
from dreamr.serve.drafts import DraftRecord
from dreamr.serve.retries import AnswerStore
from dreamr.serve.service import Service
from dreamr.types import EngineInfo, Role
from pipelines.handles import Handles, Verifier, Writer

ADMIN_KEY_ENV, ADMIN_KEY = "TEST_ADMIN_KEY", "for administrators"
"""In the environment of every process of the tests' Ray."""
QUESTION = [{"role": "user", "content": "how many?"}]


def scripted(**changes: object) -> dict[str, Any]:
    """An engine without a model, as configurations name it."""
    return {"kind": "scripted", "num_steps": (4, 6), "step_tokens": (6, 10), "acceptance": 0.6} | changes


def scripted_config(serve: dict[str, Any] | None = None, **engine: Any) -> Config:
    """Draft, target and verifier; draft and target are different models, but for the tokens that the draft proposes."""
    actor = {"num_cpus": 0.1}
    group = {
        "draft": actor | {"engine": scripted(seed=1, imitates=2, **engine)},
        "target": actor | {"engine": scripted(seed=2, **engine)},
        "verifier": actor | {"engine": scripted(seed=2, **engine)},
        "health_deadline_s": 2,
        "ready_deadline_s": 30,
    }
    return Config.model_validate({"group": group, "pipeline": {"max_tokens": 200}, "serve": serve or {}})


class LocalAnswers:
    """What replicas share, in this process. See `dreamr.serve.retries.Answers`."""

    def __init__(self, store: AnswerStore | DraftRecord) -> None:
        self._store = store

    async def submit(self, method: str, *arguments: Any) -> Any:
        result = getattr(self._store, method)(*arguments)
        return await result if inspect.isawaitable(result) else result


@dataclass
class LocalGroup:
    """A group in this process, with the interface of `ActorGroup`."""

    config: Config
    recommended: Mapping[str, float] = field(default_factory=dict)
    """See `EngineInfo`."""

    def __post_init__(self) -> None:
        engines = {role: _engine(actor.engine) for role, actor in self.config.group.actors().items()}
        self.transports: dict[Role, LocalTransport] = {
            "draft": LocalTransport(DraftActor, engines["draft"]),
            "target": LocalTransport(TargetActor, engines["target"]),
            "verifier": LocalTransport(VerifierActor, engines["verifier"]),
        }

    @property
    def handles(self) -> Handles:
        draft, target, verifier = self.transports.values()
        return Handles(Writer(draft), Writer(target), Verifier(verifier))

    @property
    def infos(self) -> dict[Role, EngineInfo]:
        engines = {role: actor.engine for role, actor in self.config.group.actors().items()}
        limits = {role: getattr(engine, "max_positions", 0) for role, engine in engines.items()}
        return {role: EngineInfo(role, "local", "cpu", 0, limits[role], self.recommended) for role in self.transports}

    async def check_one(self, role: Role) -> bool:
        return self.transports[role].up

    @property
    def num_open_calls(self) -> int:
        return sum(len(transport.tasks) for transport in self.transports.values())


def _engine(config: EngineConfig) -> Engine:
    if isinstance(config, ScriptedEngineConfig):
        from dreamr.engines.scripted import ScriptedEngine

        return ScriptedEngine(config)
    return build_engine(config).engine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app behind a real server in a thread; the URL without `/v1`."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="server", daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


async def settled(is_so: Callable[[], bool]) -> None:
    """Wait for another thread's event loop; bounded by the test's own time."""
    while True:
        if is_so():
            return
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Endpoint:
    url: str
    group: LocalGroup
    service: Service
    client: openai.OpenAI
    http: httpx.Client
    """One of each: a client takes longer to make than a request."""


def png(width: int = 32, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def with_image(url: str) -> list[dict[str, Any]]:
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "how many?"}],
        }
    ]


@contextmanager
def replicas(config: Config, num_replicas: int) -> Iterator[tuple[LocalGroup, list[str]]]:
    """Endpoints over one group that keep their answers in one place; their URLs."""
    group, answers = LocalGroup(config), LocalAnswers(AnswerStore(60))
    with ExitStack() as stack:
        services = [Service(group, config, answers=answers) for _ in range(num_replicas)]
        yield group, [stack.enter_context(listening(make_app(service))) for service in services]


@contextmanager
def running(**settings: Any) -> Iterator[Endpoint]:
    engine = ("token_s", "verdict_s", "max_positions", "thought_steps")
    changes = {name: settings.pop(name) for name in engine if name in settings}
    config = scripted_config(settings, **changes)
    group = LocalGroup(config)
    service = Service(group, config)
    with listening(make_app(service)) as url, httpx.Client(base_url=url) as http:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)
        yield Endpoint(url, group, service, client, http)
