"""The order and the colours of what is compared: the same in every picture of a run."""

from __future__ import annotations

from collections.abc import Iterable

from fedemb.report.canvas import COLOURS
from fedemb.report.contents import FEDERATED

_ORDER = (FEDERATED, "centralized", "local_only")


def phase_colours(phases: Iterable[str]) -> dict[str, str]:
    """Colour of each phase, in the order to name them; blue is federated, whatever else is there.

    >>> list(phase_colours(["popularity", "local_only", "federated"]))
    ['federated', 'local_only', 'popularity']
    """
    known = dict(zip(_ORDER, COLOURS, strict=False))
    different = set(phases)
    others = sorted(different.difference(known))
    palette = COLOURS[len(_ORDER) :]
    colours = {phase: colour for phase, colour in known.items() if phase in different}
    return colours | {phase: palette[index % len(palette)] for index, phase in enumerate(others)}
