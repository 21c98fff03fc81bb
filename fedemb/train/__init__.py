"""Local training: what happens at the clients between receiving rows and sending updates.

The public interface has a function ``fedemb.train(overrides, folder)``, the tree a package of that name. Python
binds a package's name in its parent at its first import, so the package itself is callable and both hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedemb.model import Run


class _Train(ModuleType):
    """This package, called as the function ``fedemb.run.experiment.train``."""

    def __call__(
        self, overrides: Sequence[str] = (), folder: str | Path | None = None, quiet: bool = True
    ) -> Run:
        """Trains; see ``fedemb.run.experiment.train``."""
        from fedemb.run.experiment import train

        return train(overrides, folder, quiet)


sys.modules[__name__].__class__ = _Train
