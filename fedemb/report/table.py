"""The table at the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedemb.report.contents import Sheet, calibration, facts, results, spreads

_PLAIN_WIDTH = 1000  # of output that is no terminal: nothing is wrapped


def results_table(summary: Mapping[str, Any], plain: bool = False) -> RenderableType:
    """What a run came to: metrics of all models, the best of each bold; spread over clients; the rest.

    Args:
        summary: As in ``summary.json``.
        plain: Without lines, for output that is no terminal.
    """
    sheets = [sheet for sheet in (results(summary), *calibration(summary), spreads(summary)) if sheet]
    parts: list[RenderableType] = [_laid_out(sheet, plain) for sheet in sheets]
    if lines := facts(summary):
        parts.append(_pairs(lines))
    return Group(*(part for between in parts for part in (between, "")))


def print_results(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the table and the run folder; aligned text without codes if standard output is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    with console.capture() as capture:
        console.print(results_table(summary, plain=not console.is_terminal))
        console.print(Text(f"run folder  {folder}"), soft_wrap=True)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    encoding = sys.stdout.encoding or "utf-8"
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _laid_out(sheet: Sheet, plain: bool) -> Table:
    table = Table(box=None if plain else box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for index, name in enumerate(sheet.header):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for name, cells in sheet.rows:
        texts = (Text(cell.text, style="bold" if cell.best else "", no_wrap=True) for cell in cells)
        table.add_row(Text(name, no_wrap=True), *texts)
    return table


def _pairs(lines: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(Text(name), Text(text))
    return table
