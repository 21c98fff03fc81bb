"""Numbers for people."""

from __future__ import annotations

import math

NOTHING = "–"


def number(value: float | None) -> str:
    """Four significant digits at most for fractions, whole thousands for large numbers.

    >>> [number(value) for value in (0.94123, 1.3, 0.00012345, 36053.8, 12, 0.0, None)]
    ['0.9412', '1.300', '0.0001234', '36,054', '12', '0', '–']
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value) or isinstance(value, int) or value == 0:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:#.4g}"


def size(num_bytes: float) -> str:
    """Bytes with a binary unit.

    >>> [size(value) for value in (0, 1023, 1536, 5 * 1024**3)]
    ['0 B', '1,023 B', '1.50 KiB', '5.00 GiB']
    """
    value = float(num_bytes)
    if abs(value) < 1024:
        return f"{value:,.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1024 or unit == "TiB":
            break
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.2f} {unit}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as much as matters.

    >>> [duration(value) for value in (0.0123, 5.25, 75, 3723)]
    ['0.012 s', '5.2 s', '1 min 15 s', '1 h 02 min']
    """
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"
