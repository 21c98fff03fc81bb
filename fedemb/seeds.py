"""Random numbers by name: every draw is keyed by what it is for, never by when it is drawn.

A stream's key is a hash of (seed, purpose, numbers such as round and client); its n-th number is a
hash of key and n. So a client draws the same numbers whatever the runner, the chunk and the node
that it sits in, and a cohort draws all of its numbers in a few array operations.

Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014
(SplitMix64: the finaliser and the odd constant of its counter).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedemb.types import Int64

UInt64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


def _mix_(z: UInt64) -> UInt64:
    """Finalises in place: every input bit changes every output bit with probability near 1/2."""
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z


@lru_cache(maxsize=256)
def _purpose_key(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stream_keys(seed: int, purpose: str, *numbers: int | Int64) -> UInt64:
    """Keys of the streams for ``purpose``, one per combination of the broadcast ``numbers``.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for; a different purpose is an independent stream.
        numbers: Integers or integer arrays such as round and client ids, broadcast together.

    >>> stream_keys(0, "shuffle", 3, np.array([1, 2])).shape
    (2,)
    """
    shape = np.broadcast_shapes(*(np.shape(n) for n in numbers)) if numbers else ()
    key = np.full(shape or (1,), _purpose_key(seed, purpose), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number in numbers:
            key += (np.asarray(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN
            key = _mix_(key)
    return key


def bits(keys: UInt64, count: int, start: int | Int64 = 0) -> UInt64:
    """Numbers ``start .. start + count - 1`` of every stream: ``(streams, count)`` uint64."""
    first = np.asarray(start, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        base = keys + (first + np.uint64(1)) * _GOLDEN
        z = base[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN
        return _mix_(z)


def uniforms(keys: UInt64, count: int, start: int | Int64 = 0) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), ``(streams, count)``: numbers ``start`` onwards of every stream."""
    z = bits(keys, count, start)
    z >>= np.uint64(11)
    out = z.astype(np.float64)
    out *= _TO_UNIT
    return out


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A NumPy generator for draws that are not per client."""
    return np.random.Generator(np.random.PCG64(int(stream_keys(seed, purpose, *numbers)[0])))
