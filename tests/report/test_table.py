"""report/table.py, contents.py and format.py: the end of a run, on a terminal and in a pipe."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedemb.report.contents import facts, results, spreads
from fedemb.report.format import duration, number, size
from fedemb.report.table import print_results, results_table

SUMMARY: dict[str, Any] = {
    "metrics": {"map": 0.8741, "mean_rank": 1.62},
    "baselines": {
        "centralized": {"map": 0.8822, "mean_rank": 1.58},
        "local_only": {"map": 0.13, "mean_rank": None},
        "popularity": {"map": 0.9},
    },
    "per_client": {
        "map": {"mean": 0.87, "std": 0.05, "worst_decile": 0.76},
        "mean_rank": {"mean": 1.7, "std": 0.4, "worst_decile": 2.9},
    },
    "baselines_per_client": {"centralized": {"mean_rank": {"mean": 1.5, "std": 0.4, "worst_decile": 3.0}}},
    "privacy": {"unit": "client", "epsilon": 3.2, "delta": 1e-5, "accountant": "pld", "private": False},
    "communication": {"upload_bytes": 1 << 20, "download_bytes": 3 << 30, "upload_bytes_dense": 80 << 20},
    "work": {"rounds": 400, "client_updates": 16000, "seconds": 125.0, "client_updates_per_second": 128.0},
    "rejected": {"[bold]not finite": 3},
}


def test_the_best_of_each_column() -> None:
    sheet = results(SUMMARY)
    assert sheet
    assert sheet.header == ("", "map ↑", "mean_rank ↓")
    assert [name for name, _ in sheet.rows] == ["federated", "centralized", "local-only", "popularity"]
    texts = [[cell.text for cell in cells] for _, cells in sheet.rows]
    assert texts == [["0.8741", "1.620"], ["0.8822", "1.580"], ["0.1300", "–"], ["0.9000", "–"]]
    best = [[cell.best for cell in cells] for _, cells in sheet.rows]
    assert best == [[False, False], [False, True], [False, False], [True, False]]


def test_alone_nothing_is_best() -> None:
    sheet = results({"metrics": {"map": 0.5}})
    assert sheet
    assert sheet.rows[0][1][0].best is False
    assert results({}) is None
    assert spreads({}) is None
    assert facts({}) == []


def test_spreads_compare_within_a_metric() -> None:
    sheet = spreads(SUMMARY)
    assert sheet
    found = {name: [(cell.text, cell.best) for cell in cells] for name, cells in sheet.rows}
    assert found == {
        "map, federated": [("0.8700 ± 0.0500", False), ("0.7600", False)],
        "mean_rank, federated": [("1.700 ± 0.4000", False), ("2.900", True)],
        "mean_rank, centralized": [("1.500 ± 0.4000", True), ("3.000", False)],
    }


def test_facts() -> None:
    found = dict(facts({**SUMMARY, "interrupted": True}))
    assert found["interrupted"] == "after 400 rounds"
    assert found["upload"] == "1.00 MiB (whole tables: 80.00 MiB, 80.0 times as much)"
    assert found["download"] == "3.00 GiB"
    assert "16,000 client updates, 2 min 05 s of federated training (128.0 client updates" in found["work"]
    assert found["privacy"].startswith("epsilon 3.200 at delta 1e-05 per client, accountant pld, NOT PRIVATE")
    assert found["rejected updates"] == "3 ([bold]not finite)"
    private = dict(facts({"privacy": {**SUMMARY["privacy"], "private": True, "epsilon": None}}))["privacy"]
    assert private == "epsilon – at delta 1e-05 per client, accountant pld"


def test_plain_text_is_aligned_and_has_no_codes(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(SUMMARY, Path("/runs/[red]one" + "e" * 300))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[-1] == "run folder  /runs/[red]one" + "e" * 300
    table = lines[: lines.index("")]
    assert [line.split() for line in table[1:3]] == [
        ["federated", "0.8741", "1.620"],
        ["centralized", "0.8822", "1.580"],
    ]
    assert (
        len(
            {
                line.index(cell) + len(cell)
                for line, cell in zip(table[1:], ("0.8741", "0.8822", "0.1300", "0.9000"), strict=True)
            }
        )
        == 1
    )
    assert len({len(line) for line in table}) == 1  # header and numbers end together
    assert not any(line.endswith(" ") for line in lines)
    assert "3 ([bold]not finite)" in out


def test_a_terminal_sees_the_best_in_bold() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="standard")
    console.print(results_table(SUMMARY))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    bold = {text.strip() for text in re.findall(r"\x1b\[1m(.*?)\x1b\[0m", out)}
    assert bold == {"1.580", "0.9000", "2.900", "1.500 ± 0.4000"}


def test_an_output_that_knows_no_such_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_results(SUMMARY, Path("/runs/one"))
    assert b"0.8700 ? 0.0500" in raw.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        (-0.5, "-0.5000"),
        (999.96, "1,000"),
        (999.94, "999.9"),
        (1e-9, "1.000e-09"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_sizes_and_durations() -> None:
    assert [size(v) for v in (1024**2 - 1, 200 * 1024, 3 * 1024**5)] == ["1,024 KiB", "200 KiB", "3,072 TiB"]
    assert [duration(v) for v in (59.96, 3599.7, 360000)] == ["1 min 00 s", "1 h 00 min", "100 h 00 min"]
