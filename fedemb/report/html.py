"""``report.html``: a run on one page that needs nothing else, not even a script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedemb.report.contents import Sheet, calibration, facts, results, spreads

# Nothing but what is in the file may be loaded, whatever a name in it should say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th { color: #57606a; font-weight: normal; border-bottom: 1px solid #d0d7de; }
th, td { padding: .25rem 1.2rem .25rem 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.facts td { white-space: normal; text-align: left; vertical-align: top; }
.facts td:first-child { color: #57606a; white-space: nowrap; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 1.6rem; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: 13px; }
"""


def report_page(
    title: str,
    summary: Mapping[str, Any],
    config: str,
    plots: Mapping[str, bytes],
    more: Sequence[Sheet] = (),
) -> str:
    """The page: results, pictures, what was counted, and the configuration.

    Whatever comes from outside is escaped, so names are text and never markup.

    Args:
        title: Stands on top.
        summary: As in ``summary.json``.
        config: The composed configuration as YAML.
        plots: PNG files by what they show.
        more: Further tables, below the pictures.
    """
    all_sheets = (results(summary), *calibration(summary), spreads(summary))
    sheets = [_table(sheet) for sheet in all_sheets if sheet]
    figures = [_figure(name, png) for name, png in plots.items()]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        *_section("Results", [*sheets, _facts(facts(summary))]),
        *_section("Pictures", figures),
        *_section("Tables", [_table(sheet) for sheet in more]),
        *_section("Data", [_facts(_items(summary.get("data")))]),
        *_section("Configuration", [f"<pre>{escape(config)}</pre>"] if config else []),
        *_section("Versions", [_facts([*_items(summary.get("versions")), *_digest(summary)])]),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    config: str,
    plots: Sequence[Path],
    more: Sequence[Sheet] = (),
) -> Path:
    """Writes ``report.html`` into the run folder and returns its path.

    Args:
        folder: The run folder, whose name is the title.
        summary: As in ``summary.json``.
        config: The composed configuration as YAML.
        plots: PNG files; one that is not there is left out.
        more: Further tables.
    """
    pictures = {plot.stem.replace("_", " "): plot.read_bytes() for plot in plots if plot.is_file()}
    path = folder / "report.html"
    page = report_page(f"fedemb: {folder.resolve().name}", summary, config, pictures, more)
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _section(title: str, parts: Iterable[str]) -> list[str]:
    parts = [part for part in parts if part]
    return [f"<h2>{title}</h2>", *parts] if parts else []


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in sheet.header)
    rows = []
    for name, cells in sheet.rows:
        texts = (f"<b>{escape(c.text)}</b>" if c.best else escape(c.text) for c in cells)
        rows.append(f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _facts(lines: Sequence[tuple[str, str]]) -> str:
    if not lines:
        return ""
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in lines)
    return f'<table class="facts">\n{rows}\n</table>'


def _items(part: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    return [
        (str(name).replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in (part or {}).items()
    ]


def _digest(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("configuration digest", str(summary["config_digest"]))] if "config_digest" in summary else []


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}"></figure>'
