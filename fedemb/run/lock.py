"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedemb.errors import SettingError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder for this process; the system lets go when the process ends, however it ends.

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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(f"another run is writing to {folder}; choose another hydra.run.dir") from error
        yield
