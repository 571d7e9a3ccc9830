"""The routes of the server, its key, and how errors are told. What an answer takes is in service.py; uvicorn runs what `create_app` returns."""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm.infer.server.hosts import check_host
from vlm.infer.server.metrics import Metrics
from vlm.infer.server.problem import RequestError, error_body
from vlm.infer.server.service import Service

PAGE = Path(__file__).with_name("page.html")


def create_app(service: Service, *, api_key: str = "", names: frozenset[str] | None = None) -> FastAPI:
    """The web application; when it ends it closes the service.

    Args:
        service: Who answers.
        api_key: What clients must send as `Authorization: Bearer ...` below `/v1`; empty for no key.
        names: Hosts that it answers to, as from `answered_names`; None for all.
    """

    async def known_host(request: Request) -> None:
        check_host(request.headers.get("host", ""), names)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="vlm", lifespan=life, dependencies=[Depends(known_host)], openapi_url=None)  # no pages of its own: they load strange scripts
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    _route_api(app, service, api_key)
    _route_pages(app, service)
    app.add_middleware(_Counted, metrics=service.metrics)
    return app


def _route_api(app: FastAPI, service: Service, api_key: str) -> None:
    """OpenAI's API."""
    itself = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "vlm"}

    async def models(request: Request) -> Response:
        _check_key(request, api_key)
        return JSONResponse({"object": "list", "data": [itself]})

    async def one_model(request: Request, name: str) -> Response:
        _check_key(request, api_key)
        service.check_name(name)
        return JSONResponse(itself)

    async def chat(request: Request) -> Response:
        _check_key(request, api_key)
        return await service.chat(request)

    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", one_model, methods=["GET"])  # a hub id has a slash
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"])


def _route_pages(app: FastAPI, service: Service) -> None:
    """What needs no key: the page, and what watches the server."""

    async def health() -> Response:
        return JSONResponse({"status": "ok", "model": service.name})

    async def metrics() -> Response:
        gauges = {"open": service.num_open, "waiting": service.batcher.num_waiting, "running": service.batcher.num_running}
        return PlainTextResponse(service.metrics.text({**gauges, "held_bytes": service.budget.held}), media_type="text/plain; version=0.0.4")

    page, policy = _page()

    async def web() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    app.add_api_route("/health", health, methods=["GET", "HEAD"])
    app.add_api_route("/metrics", metrics, methods=["GET"])
    app.add_api_route("/", web, methods=["GET", "HEAD"])


def _check_key(request: Request, api_key: str) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if api_key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), api_key.encode())):
        raise RequestError("The API key is missing or wrong; send the server's as 'Authorization: Bearer ...'.", status=401, code="invalid_api_key")


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(str(error), status=error.status, param=error.param, code=error.code)
    return JSONResponse(body, status_code=error.status, headers=headers)


def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"There is nothing at {request.url.path}; see /v1/chat/completions, /v1/models, /health, /metrics."
    else:
        message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(error_body(message, status=error.status_code), status_code=error.status_code, headers=error.headers)


def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body("The server failed on this request; its log says why.", status=500), status_code=500)


def _page() -> tuple[str, str]:
    """The page, and a policy under which a browser runs nothing but its own script and talks to nobody but this server."""
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    script, style = (f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style))
    own = f"default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src 'self'"
    return page, f"{own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class _Counted:
    """Counts responses by status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> Any:
            if message["type"] == "http.response.start":
                self.metrics.count_response(message["status"])
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
