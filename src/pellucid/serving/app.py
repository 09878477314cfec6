"""The application: which path answers what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pellucid.model import Model
from pellucid.serving import chat, completions, embeddings, explain, labels, responses, status, tokens
from pellucid.serving.endpoints import Endpoint, told
from pellucid.serving.errors import ApiError
from pellucid.serving.guard import Guard
from pellucid.serving.openapi import document
from pellucid.serving.page_files import page
from pellucid.serving.record import Recorded
from pellucid.serving.response_bodies import ResponseBody, ResponseEvents
from pellucid.serving.service import Call, Service
from pellucid.serving.settings import ServeSettings


async def openapi(call: Call) -> Response:
    return Response(json.dumps(document(call.service, ENDPOINTS)), media_type="application/json")


ENDPOINTS = (
    Endpoint(path="/v1/models", summary="What is served", answer=status.models, gives=status.ModelList),
    Endpoint(path="/v1/models/{model:path}", summary="One model", answer=status.one_model, gives=status.ServedModel),
    Endpoint(
        path="/v1/completions",
        summary="Go on with texts",
        answer=completions.complete,
        body=completions.CompletionRequest,
        gives=completions.Completion,
        streams=completions.Completion,
    ),
    Endpoint(
        path="/v1/chat/completions",
        summary="Answer a conversation",
        answer=chat.chat,
        body=chat.ChatRequest,
        gives=chat.ChatCompletion,
        streams=chat.ChatChunk,
    ),
    Endpoint(
        path="/v1/responses",
        summary="Answer a conversation, in the newer form, of which nothing is kept",
        answer=responses.respond,
        body=responses.ResponseRequest,
        gives=ResponseBody,
        streams=ResponseEvents,
    ),
    Endpoint(
        path="/v1/embeddings",
        summary="A vector for each text",
        answer=embeddings.embeddings,
        body=embeddings.EmbeddingRequest,
        gives=embeddings.Embeddings,
    ),
    Endpoint(
        path="/v1/classify",
        summary="What a classifier, a regression or a tagger says of texts",
        answer=labels.classify,
        body=labels.ClassifyRequest,
        gives=labels.Classification,
    ),
    Endpoint(
        path="/v1/score",
        summary="How likely a language model finds texts",
        answer=labels.score,
        body=labels.ScoreRequest,
        gives=labels.Scores,
    ),
    Endpoint(
        path="/v1/explain",
        summary="What an answer hangs on, and how far that can be trusted",
        answer=explain.explain,
        body=explain.ExplainRequest,
        gives=explain.Explained,
    ),
    Endpoint(
        path="/tokenize",
        summary="The tokens of a text or of a conversation",
        answer=tokens.tokenize,
        body=tokens.TokenizeRequest,
        gives=tokens.Tokenized,
    ),
    Endpoint(
        path="/detokenize",
        summary="The text of tokens",
        answer=tokens.detokenize,
        body=tokens.DetokenizeRequest,
        gives=tokens.Detokenized,
    ),
    Endpoint(path="/tokenizer_info", summary="The tokenizer", answer=tokens.tokenizer_info, gives=tokens.TokenizerInfo),
    Endpoint(path="/livez", summary="Whether the server lives", answer=status.live, gives=status.Health, open=True),
    Endpoint(path="/readyz", summary="Whether requests are answered", answer=status.ready, gives=status.Readiness),
    Endpoint(path="/metrics", summary="Figures for Prometheus", answer=status.metrics, gives="text/plain"),
    Endpoint(path="/openapi.json", summary="This description", answer=openapi, gives="application/json"),
)
PAGES = ("/", "/page/")  # which hold no secret: the page asks for a key itself


async def refused(request: Request, error: Exception) -> Response:
    """What the router refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException), "it is registered for those"
    path, method = request.url.path[:200], request.method
    if error.status_code == 405:
        headers = dict(error.headers or {})
        return told(request, ApiError(405, f"{path} does not take {method}", "method_not_allowed", headers=headers))
    return told(
        request, ApiError(error.status_code, f"there is no {path} here; /openapi.json lists what there is", "not_found")
    )


def create_app(model: Model, settings: ServeSettings | None = None) -> Starlette:
    """The application that serves a model; `app.state.service` is what it stands on."""
    settings = settings or ServeSettings()
    service = Service(model, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.close()

    open_paths = [*PAGES, *(endpoint.path for endpoint in ENDPOINTS if endpoint.open)]
    paths = frozenset({"/", *(endpoint.path for endpoint in ENDPOINTS)})
    app = Starlette(
        routes=[*(endpoint.route() for endpoint in ENDPOINTS), Route("/", page), Route("/page/{name}", page)],
        lifespan=lifespan,
        middleware=[
            Middleware(Recorded, metrics=service.metrics, paths=paths),
            Middleware(Guard, settings=settings, open_paths=open_paths),
        ],
        exception_handlers={HTTPException: refused},
    )
    app.router.redirect_slashes = False  # a path that is not there is not there
    app.state.service = service
    return app
