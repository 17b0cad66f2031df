"""The application: routers behind the guard, and problems instead of whatever else a framework would say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from blocks.rate_book import RateBook
from deployments.http import ai, dashboard, documents, generate, health, metrics, openapi, rag
from deployments.http.auth import make_admin_check
from deployments.http.guard import Guard, read_networks
from deployments.http.origins import Preflights, ReadableAnswers, cors_options
from deployments.http.parts import HttpParts
from deployments.http.problems import ProblemError, brief_errors, problem_response
from deployments.http.tokens import TokenReader, make_caller_check
from tasks.domain.errors import InputError, PipelineError

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_app(parts: HttpParts, *, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the service. Nothing is asked of any other system before the first request."""
    settings = parts.settings
    # The pages of FastAPI's own load scripts from a CDN, and tell strangers of every route.
    app = FastAPI(
        title="Cryptique RAG",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    rates = RateBook(settings.home / "http" / "rates.db")
    require_admin = make_admin_check(settings.cryptique_admin_token, rates)
    app.include_router(health.make_routes(parts, require_admin))
    app.include_router(metrics.make_routes(parts, require_admin))
    app.include_router(dashboard.make_routes(parts), dependencies=[Depends(require_admin)])
    who_asks = make_caller_check(TokenReader(settings), rates)
    retrieval = rag.Rag(parts, rates)
    app.include_router(rag.make_routes(retrieval, who_asks))
    app.include_router(generate.make_routes(retrieval, who_asks))
    app.include_router(ai.make_routes(retrieval, who_asks))
    app.include_router(documents.make_routes(retrieval, rates, who_asks))
    app.include_router(openapi.make_routes(app))
    _answer_with_problems(app)
    origins = settings.cors_origins
    if origins:
        app.add_middleware(Preflights, **cors_options(origins))
    app.add_middleware(
        Guard,
        rates=rates,
        limit=settings.cryptique_http_rate_limit,
        window_s=settings.cryptique_http_rate_window_seconds,
        at_once=settings.cryptique_api_requests_at_once,
        trusted=read_networks(settings.cryptique_http_trusted_proxies or ""),
    )
    if origins:
        app.add_middleware(ReadableAnswers, **cors_options(origins))
    return app


def _answer_with_problems(app: FastAPI) -> None:
    def respond(request: Request, status: int, detail: str, **more: Any) -> Response:
        return problem_response(status, detail, path=request.url.path, request_id=request.state.request_id, **more)

    @app.exception_handler(ProblemError)
    async def of_ours(request: Request, error: ProblemError) -> Response:
        return respond(request, error.status, error.detail, headers=error.headers, **error.more)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return respond(
            request, error.status_code, _WORDS.get(error.status_code, "the request can't be answered"), headers=headers
        )

    @app.exception_handler(RequestValidationError)
    async def of_the_input(request: Request, error: RequestValidationError) -> Response:
        # The application's contract knows 400 alone; what is wrong is in its words, because it shows them.
        in_contract = request.url.path.startswith("/api/")
        errors = brief_errors(error.errors())
        said = "; ".join(f"{one['at'].removeprefix('body.')}: {one['says']}" for one in errors[:3])
        detail = f"the request is not what this address takes: {said}" if in_contract else _NOT_TAKEN
        return respond(request, 400 if in_contract else 422, detail, errors=errors)

    @app.exception_handler(PipelineError)
    async def of_the_pipeline(request: Request, error: PipelineError) -> Response:
        if isinstance(error, InputError):
            return respond(request, 400, str(error))
        return respond(request, 503, "a part that this needs does not answer; /health/details says which")


_NOT_TAKEN = "the input is not what this address takes"
_WORDS = {
    404: "there is nothing at this address",
    405: "this address does not take that method",
}
