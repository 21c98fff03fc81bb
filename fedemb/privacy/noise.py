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
_FEW = 128


def system_bits(count: int) -> UInt64:
    """Unpredictable numbers ``(count,)`` in 64 bits, under a key that is used once."""
    encrypt = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    out = np.empty(8 * count + 15, dtype=np.uint8)
    for start in range(0, 8 * count, len(_BLOCK)):
        block = _BLOCK[: 8 * count - start]
        encrypt.update_into(block, memoryview(out.data)[start : start + len(block) + 15])
    return out[: 8 * count].view(np.uint64)


def normal_of(numbers: UInt64, dtype: torch.dtype) -> Tensor:
    """Independent standard normal numbers ``(..., 2 n)`` from uniform 64-bit ones ``(..., n)``, as many pairs.

    Half of the bits make the radius, half of them the angle. 31 bits reach 6.7 deviations; where they are few, those of
    the angle that do not count are added, and reach 7.4.

    Reference: Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    words = torch.from_numpy(numbers.view(np.int32)).view(*numbers.shape[:-1], 2, numbers.shape[-1])
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    whole, turn = words[..., 0, :] & 0x7FFFFFFF, words[..., 1, :]
    radius = whole.to(exact).add_(0.5)
    if whole.numel() and int(whole.min()) < _FEW:
        finer = whole.to(exact) + ((turn & (_FEW - 1)).to(exact) + 0.5) / _FEW
        radius = torch.where(whole < _FEW, finer, radius)
    radius = radius.mul_(2.0**-31).log_().mul_(-2).sqrt_()
    angle = turn.to(exact).mul_(math.pi * 2.0**-31)
    out = torch.empty(words.shape, dtype=exact)
    torch.mul(radius, torch.cos(angle), out=out[..., 0, :])
    torch.mul(radius, torch.sin(angle), out=out[..., 1, :])
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
        return found if width % 2 == 0 else found[:, :width].contiguous()

    def bits(self, purpose: str, width: int, *numbers: int | Int64) -> UInt64:
        """Uniform 64-bit numbers ``(streams, width)``; arguments as those of ``normal``."""
        if self.seed is not None:
            return bits(stream_keys(self.seed, purpose, *numbers), width)
        streams = math.prod(np.broadcast_shapes(*(np.shape(n) for n in numbers))) if numbers else 1
        return system_bits(streams * width).reshape(streams, width)

    def coins(self, seed: int) -> int:
        """The seed of draws that must stay secret, such as who is sampled: ``seed`` itself in a reproducible run."""
        return seed if self.reproducible else secrets.randbits(63)
