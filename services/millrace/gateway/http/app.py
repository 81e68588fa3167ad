"""The ASGI application: every route, errors in one shape, ids on every reply."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from millrace.core.errors import MillraceError
from millrace.telemetry.names import OPERATION_CHAT, OPERATION_TEXT_COMPLETION

from . import openai_chat, openai_completions, plain
from .access import HttpAccess
from .edge import HttpEdge
from .errors import on_http_error, on_millrace_error
from .gate import Gate
from .middleware import CallMiddleware
from .models import model_routes
from .operations import operation_routes

OPERATIONS = {
    openai_chat.PATH: OPERATION_CHAT,
    openai_completions.PATH: OPERATION_TEXT_COMPLETION,
    plain.GENERATE_PATH: OPERATION_TEXT_COMPLETION,
    plain.BATCH_PATH: OPERATION_TEXT_COMPLETION,
}


def create_app(edge: HttpEdge) -> Starlette:
    """The HTTP edge over a pipeline."""
    routes = [
        *openai_chat.chat_routes(edge),
        *openai_completions.completion_routes(edge),
        *plain.plain_routes(edge),
        *model_routes(edge),
        *operation_routes(edge),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                CallMiddleware,
                operations=OPERATIONS,
                load=lambda: edge.pipeline.load,
                origins=edge.origins,
                access=HttpAccess(routes, edge.access_log),
            ),
            Middleware(Gate, hosts=edge.hosts, origins=edge.origins),
        ],
        exception_handlers={MillraceError: on_millrace_error, HTTPException: on_http_error},
    )
    # A trailing slash is another path, not a redirect with a body of its own shape.
    app.router.redirect_slashes = False
    return app
