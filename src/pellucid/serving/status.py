"""What says how the server is: its models, its life, its figures."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from pellucid.serving.answers import as_json
from pellucid.serving.errors import unavailable
from pellucid.serving.service import Call, Service


class ServedModel(BaseModel):
    """A model: its kind and size, the tokens that a prompt and its continuation may have, the paths that answer for it, and
    whether it came with a chat template, without which a conversation is put to it as ChatML."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["pellucid"]
    family: str
    parameters: int
    max_model_len: int
    chat_template: bool
    abilities: list[str]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ServedModel]


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(Health):
    running: int
    waiting: int


def served(service: Service) -> ServedModel:
    return ServedModel(
        id=service.name,
        object="model",
        created=service.created,
        owned_by="pellucid",
        family=service.model.config.family,
        parameters=service.parameters,
        max_model_len=service.context,
        chat_template=service.has_template,
        abilities=service.abilities,
    )


async def models(call: Call) -> Response:
    return as_json(ModelList(object="list", data=[served(call.service)]))


async def one_model(call: Call, name: str) -> Response:
    call.service.check_name(name)
    return as_json(served(call.service))


async def live(_: Call) -> Response:
    return as_json(Health(status="ok"))


async def ready(call: Call) -> Response:
    """Whether requests would be answered: not if the engine died, hangs, or takes nothing new."""
    worker, patience = call.service.worker, call.service.settings.hang
    if worker.failure is not None:
        raise unavailable("the engine has died; the server must be started again", "engine_dead")
    if worker.draining or worker.stopped:
        raise unavailable("the server is shutting down", "shutting_down")
    if worker.thread is not None and worker.silence() > patience:
        raise unavailable(f"the engine has not moved for {worker.silence():.0f} seconds", "engine_hung")
    engine = worker.engine
    running, waiting = (0, 0) if engine is None else (len(engine.places), len(engine.waiting))
    return as_json(Readiness(status="ok", running=running, waiting=waiting))


async def metrics(call: Call) -> Response:
    return Response(call.service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
