"""The small endpoints: models, health, metrics, a sample problem, the page."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

import dreamr
from dreamr.serve.bodies import JsonRoute
from dreamr.serve.chat import ERRORS
from dreamr.serve.metrics import CONTENT_TYPE, scrape
from dreamr.serve.questions import no_such_model
from dreamr.serve.replies import ErrorReply, Health, Model, ModelList, Tokenized, Version
from dreamr.serve.schema import TokenizeRequest
from dreamr.serve.service import Service
from dreamr.tasks.images import data_url
from dreamr.tasks.ledger import make_problem
from pipelines import SCHEDULES

PAGE = Path(__file__).parent / "page"


class SampleProblem(BaseModel):
    question: str
    image: str
    """A data URL."""
    answer: str
    seed: int


def routes(service: Service) -> APIRouter:
    """All endpoints but the chat."""
    router = APIRouter(route_class=JsonRoute)
    started = int(time.time())

    def described() -> Model:
        rows: dict[str, dict[str, object]] = {
            role: {"model": info.model, "device": info.device, "num_parameters": info.num_parameters}
            for role, info in service.group.infos.items()
        }
        return Model(id=service.settings.model_name, created=started, methods=list(SCHEDULES), actors=rows)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The one pipeline that is served, its methods and the models of its actors."""
        return ModelList(data=[described()])

    @router.get("/v1/models/{name:path}", responses={404: {"model": ErrorReply}})
    async def model(name: str) -> Model:
        """The one model of this server, by its name."""
        if name != service.settings.model_name:
            raise no_such_model(name, service.settings.model_name)
        return described()

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        """200 while the target can answer; `degraded` when draft or verifier are down."""
        status, up = await service.check()
        body = Health(
            status=status,
            actors={str(role): answers for role, answers in up.items()},
            running=service.queue.num_running,
            waiting=service.queue.num_waiting,
        )
        return JSONResponse(body.model_dump(), 503 if status == "unavailable" else 200)

    @router.get("/ping", responses={503: {"model": Health}}, response_model=Health)
    async def ping() -> Response:
        """`/health` under the name that other platforms ask for."""
        return await health()

    @router.get("/version")
    async def version() -> Version:
        """The version of dreamr."""
        return Version(version=dreamr.__version__)

    @router.post("/tokenize", responses=ERRORS)
    async def tokenize(request: TokenizeRequest) -> Tokenized:
        """The tokens of a conversation as the target reads it, images included, or of a text."""
        if request.model not in (None, service.settings.model_name):
            raise no_such_model(request.model, service.settings.model_name)
        tokens = await service.tokenize(request)
        context = service.group.infos["target"].max_positions
        return Tokenized(count=len(tokens), max_model_len=context, tokens=list(tokens))

    @router.get("/metrics", response_class=PlainTextResponse, responses={503: {"model": ErrorReply}})
    async def metrics() -> Response:
        """Prometheus text of all replicas and nodes."""
        return Response(await scrape(), media_type=CONTENT_TYPE)

    @router.get("/v1/problems/sample", responses={400: {"model": ErrorReply}})
    async def sample_problem(seed: int | None = Query(default=None, ge=0, lt=2**31)) -> SampleProblem:
        """A ledger problem that the built-in models have not been trained on."""
        chosen = secrets.randbits(31) if seed is None else seed
        problem = make_problem("test", chosen, 0)
        [image] = problem.prompt.images
        return SampleProblem(question=problem.question, image=data_url(image), answer=str(problem.answer), seed=chosen)

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    return router
