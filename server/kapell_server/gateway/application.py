"""The ASGI application: which path is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kapell_server.gateway.door import Door
from kapell_server.gateway.otlp import OtlpReceiver
from kapell_server.rpc.pipeline import UnaryCall, Welcome


def application(
    calls: Mapping[str, UnaryCall], welcomes: Mapping[str, Welcome], *, is_ready: Callable[[], str], otlp_usage: str
) -> Starlette:
    """`calls` are the unary rpcs by path, `welcomes` who may call them.

    `is_ready` says why the server takes no calls, empty where it does.
    """

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        why = is_ready()
        return JSONResponse({"ready": not why, "reason": why}, 503 if why else 200)

    return Starlette(
        routes=[
            Route("/livez", live),
            Route("/readyz", ready),
            *OtlpReceiver(Door(calls, welcomes), counted=otlp_usage).routes,
        ]
    )
