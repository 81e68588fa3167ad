"""Every name on NATS, in one place. The schema version stands in each of them."""

from __future__ import annotations

import hashlib

from millrace.core.model import model_slug
from millrace.core.request import Priority

REQUEST_STREAM = "MR_V1_REQ"
REQUEST_SUBJECTS = "mr.v1.req.>"
REQUEST_TEMPLATE = "mr.v1.req.{model}.{priority}"
DEAD_LETTER_STREAM = "MR_V1_DLQ"
DEAD_LETTER_SUBJECTS = "mr.v1.dlq.>"
WORKERS_BUCKET = "mr_v1_workers"
OWNERS_BUCKET = "mr_v1_owners"


def request_subject(model: str, priority: Priority) -> str:
    """Where a request for `model` is published."""
    return f"mr.v1.req.{model_slug(model)}.{priority.subject_token}"


def request_consumer(model: str, priority: Priority) -> str:
    """The durable consumer of that subject; under 32 characters, as file-system paths need it."""
    digest = hashlib.blake2b(model.encode(), digest_size=4).hexdigest()
    return f"sched-{digest}-{priority.subject_token}"


def abort_subject(request_id: str) -> str:
    """Where anyone may end a request by its id."""
    return f"mr.v1.abort.{request_id}"


def dead_letter_subject(model: str) -> str:
    """Where the record of a request for `model` goes that was given up."""
    return f"mr.v1.dlq.{model_slug(model)}"


ALL_ABORTS = "mr.v1.abort.*"


def load_subject(worker_id: str) -> str:
    """Where a worker tells its load."""
    return f"mr.v1.load.{worker_id}"
