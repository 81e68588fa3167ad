"""GET /health, /ready, /metrics, /cache/stats: for operators and probes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from millrace.gateway.health import resident_bytes
from millrace.telemetry.metrics import release, render

from .edge import HttpEdge


def operation_routes(edge: HttpEdge) -> list[Route]:
    """The routes for operators."""

    async def health(request: Request) -> JSONResponse:
        cache = await edge.health.cache_stats()
        uptime_s, memory_bytes = round(edge.health.uptime_s, 3), resident_bytes()
        return JSONResponse(
            {
                "status": "ok",
                "model": edge.directory.default_name or None,
                "cache": "connected" if cache.connected else "disconnected",
                "version": release(),
                "uptimeS": uptime_s,
                "memoryBytes": memory_bytes,
                # The same by their older names, which leave the units out.
                "uptime": uptime_s,
                "memory": memory_bytes,
            }
        )

    async def ready(request: Request) -> JSONResponse:
        readiness = await edge.health.readiness()
        headers = {} if readiness.is_ready else {"retry-after": "1"}
        return JSONResponse(
            {
                "status": readiness.status,
                "checks": readiness.checks,
                "degraded": list(readiness.degraded),
                "reasons": readiness.reasons,
            },
            200 if readiness.is_ready else 503,
            headers,
        )

    async def metrics(request: Request) -> Response:
        body, content_type = render(edge.registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def cache_stats(request: Request) -> JSONResponse:
        stats = await edge.health.cache_stats()
        return JSONResponse(
            {
                "connected": stats.connected,
                "keys": stats.num_keys,
                "memoryBytes": stats.used_bytes,
                "maxMemoryBytes": stats.max_bytes,
                # As above.
                "memory": stats.used_bytes,
                "maxMemory": stats.max_bytes,
                "hits": stats.num_hits,
                "misses": stats.num_misses,
                "stores": stats.num_stores,
                "hitRate": round(stats.hit_rate, 6),
            }
        )

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/cache/stats", cache_stats, methods=["GET"]),
    ]
