"""What lies in Redis for an answer: the answer behind a digest over its key and itself.

A value that was cut, overwritten, written by another version, or that belongs to another key does
not open, and counts as a miss: the cache may lose answers, but never gives a wrong one.
"""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 16
_VERSION = b"\x01"


def seal(key: bytes, answer: bytes) -> bytes:
    """The value to store."""
    return _digest(key, answer) + answer


def unseal(key: bytes, value: bytes) -> bytes | None:
    """The answer in a stored value; None where the value is not what `seal` made for this key."""
    answer = value[DIGEST_BYTES:]
    return answer if value[:DIGEST_BYTES] == _digest(key, answer) else None


def _digest(key: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(_VERSION + key + answer, digest_size=DIGEST_BYTES).digest()
