"""Plain HTTP GETs to our own gateway, without proxies."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any


def get_json(url: str, *, timeout_s: float = 2.0) -> tuple[int, Any]:
    """Status and document; (0, None) where nobody answers, document None where it is no JSON."""
    status, text = get_text(url, timeout_s=timeout_s)
    try:
        return status, json.loads(text)
    except ValueError:
        return status, None


def get_text(url: str, *, timeout_s: float = 2.0) -> tuple[int, str]:
    """Status and body; (0, "") where nobody answers."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
    return response.status, body.decode(errors="replace")
