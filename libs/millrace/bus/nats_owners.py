"""Who owns a model: a compare-and-set entry in a KV bucket."""

from __future__ import annotations

from contextlib import suppress

import nats.js.errors
from nats.js.kv import KeyValue

from millrace.core.membership import SchedulerOwner
from millrace.core.model import model_slug
from millrace.internal.v1 import bus_pb2
from millrace.wire.membership import scheduler_owner_from_proto, scheduler_owner_to_proto


async def claim(bucket: KeyValue, owner: SchedulerOwner) -> int | None:
    """See `Bus.claim_ownership`."""
    key = model_slug(owner.model)
    try:
        entry = await bucket.get(key)
    except nats.js.errors.KeyNotFoundError:
        revision, previous = 0, None
    else:
        revision = entry.revision or 0
        previous = _read(entry)
    epoch = owner.owner_epoch
    if previous is not None and previous.scheduler_id:
        if previous.scheduler_id != owner.scheduler_id:
            return None
        epoch = max(previous.owner_epoch, epoch)
    elif previous is not None:
        epoch = max(previous.owner_epoch + 1, epoch)
    claimed = SchedulerOwner(owner.scheduler_id, epoch, owner.advertise_address, owner.model)
    value = scheduler_owner_to_proto(claimed).SerializeToString()
    try:
        if previous is None:
            await bucket.create(key, value)
        else:
            await bucket.update(key, value, last=revision)
    except nats.js.errors.KeyWrongLastSequenceError:
        return None
    return epoch


async def release(bucket: KeyValue, owner: SchedulerOwner) -> None:
    """Leaves the epoch behind without a holder, so that the next one is higher."""
    key = model_slug(owner.model)
    try:
        entry = await bucket.get(key)
    except nats.js.errors.KeyNotFoundError:
        return
    held = _read(entry)
    if held.scheduler_id != owner.scheduler_id:
        return
    vacant = SchedulerOwner("", held.owner_epoch, "", owner.model)
    value = scheduler_owner_to_proto(vacant).SerializeToString()
    with suppress(nats.js.errors.KeyWrongLastSequenceError):
        # Somebody else has it already.
        await bucket.update(key, value, last=entry.revision)


def _read(entry: KeyValue.Entry) -> SchedulerOwner:
    return scheduler_owner_from_proto(bus_pb2.SchedulerOwner.FromString(entry.value or b""))
