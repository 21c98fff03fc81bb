"""Noise that protects somebody: Gaussian numbers from the operating system's entropy, or reproducible for studies.

A system noise draws a 256-bit key from the operating system for each call and stretches it with AES-256 in counter
mode, so whoever saw some of the noise cannot foretell the rest. A seeded noise has the same distribution, and is known
to everybody who knows the seed: it makes runs reproducible, and protects nobody.

Floating-point noise has gaps that tell about what it was added to (Mironov, "On Significance of the Least Significant
Bits for Differential Privacy", CCS 2012); only the integers of ``privacy=client_distributed`` are free of that.
"""

from __future__ import annotations

import math
import os
import secrets
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from fedemb.seeds import UInt64, bits, stream_keys
from fedemb.types import Int64

_BLOCK = bytes(1 << 18)  # a whole number of AES blocks, small enough to stay in the cache
_RADIUS_BITS = 40  # of 64: the longest radius is 7.5 standard deviations, reached once in 2^40
_ANGLE_BITS = 24


def system_bits(count: int) -> UInt64:
    """Unpredictable numbers ``(count,)`` in 64 bits, under a key that is used once."""
    encrypt = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    out = np.empty(8 * count + 15, dtype=np.uint8)
    for start in range(0, 8 * count, len(_BLOCK)):
        block = _BLOCK[: 8 * count - start]
        encrypt.update_into(block, memoryview(out.data)[start : start + len(block) + 15])
    return out[: 8 * count].view(np.uint64)


def normal_of(numbers: UInt64, dtype: torch.dtype) -> Tensor:
    """Independent standard normal numbers ``(..., 2 n)`` from uniform 64-bit ones ``(..., n)``, a pair from each.

    Reference: Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    whole = torch.from_numpy(numbers.view(np.int64))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    radius = ((whole >> _ANGLE_BITS) & ((1 << _RADIUS_BITS) - 1)).to(exact)
    radius = radius.add_(0.5).mul_(2.0**-_RADIUS_BITS).log_().mul_(-2).sqrt_()
    angle = (whole & ((1 << _ANGLE_BITS) - 1)).to(exact).mul_(2 * math.pi * 2.0**-_ANGLE_BITS)
    out = torch.empty((*whole.shape, 2), dtype=exact)
    torch.mul(radius, torch.cos(angle), out=out[..., 0])
    torch.mul(radius, torch.sin(angle), out=out[..., 1])
    return out.flatten(-2).to(dtype)


@dataclass(frozen=True)
class Noise:
    """A source of noise.

    Attributes:
        seed: Makes it reproducible; None: from the operating system.
    """

    seed: int | None = None

    @property
    def reproducible(self) -> bool:
        """Whether somebody who knows the seed can subtract it."""
        return self.seed is not None

    def normal(self, purpose: str, width: int, dtype: torch.dtype, *numbers: int | Int64) -> Tensor:
        """Standard normal numbers ``(streams, width)``: a row for each combination of the broadcast ``numbers``.

        Args:
            purpose: What the noise is for; with ``numbers`` it keys a seeded one, as in ``seeds.stream_keys``.
            width: Numbers in a row.
            dtype: float32 or float64.
            numbers: Round, client, row and the like.
        """
        found = normal_of(self.bits(purpose, (width + 1) // 2, *numbers), dtype)
        return found if width % 2 == 0 else found[:, :width]

    def bits(self, purpose: str, width: int, *numbers: int | Int64) -> UInt64:
        """Uniform 64-bit numbers ``(streams, width)``; arguments as those of ``normal``."""
        if self.seed is not None:
            return bits(stream_keys(self.seed, purpose, *numbers), width)
        streams = math.prod(np.broadcast_shapes(*(np.shape(n) for n in numbers))) if numbers else 1
        return system_bits(streams * width).reshape(streams, width)

    def coins(self, seed: int) -> int:
        """The seed of draws that must stay secret, such as who is sampled: ``seed`` itself in a reproducible run."""
        return seed if self.reproducible else secrets.randbits(63)
