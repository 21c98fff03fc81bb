"""Large blocks that a process frees are there for its next ones."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from fedemb.memory import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()
def step():
    first = torch.ones(16 << 20)  # 64 MiB
    second = first * 2
    return float((first + second).sum())
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back at once")
def test_freed_blocks_are_used_again() -> None:
    """Fifteen blocks of 64 MiB cost 245,760 pages of 4 KiB, or none."""
    assert _faults(keep=True) < 20_000 < 100_000 < _faults(keep=False)
