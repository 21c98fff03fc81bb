"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedemb.errors import SettingError


@contextmanager
def locked(folder: Path, patience_seconds: float = 0.0, busy: str | None = None) -> Iterator[None]:
    """Holds a run folder for this process; the system lets go when the process ends, however it ends.

    Args:
        folder: Which one; it is made where it is missing.
        patience_seconds: How long to wait for another process to let go.
        busy: What to say if it does not; None: that another run writes there.

    Raises:
        SettingError: If another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise SettingError(
            f"hydra.run.dir must be a folder that can be written to, got {folder} ({error.strerror})"
        ) from error
    with handle:
        give_up_at = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= give_up_at:
                    message = f"another run is writing to {folder}; choose another hydra.run.dir"
                    raise SettingError(busy or message) from error
                time.sleep(0.05)
        yield
