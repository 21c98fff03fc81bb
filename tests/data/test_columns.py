"""data/columns.py: settings first, then usual names, never the same column twice."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.columns import check_roles, column_names, resolve_columns
from fedemb.errors import DataError, SettingError

ROLES = ("client", "item", "time", "session")


def file_with(folder: Path, header: str) -> Path:
    path = folder / "data.csv"
    path.write_text(f"{header}\n")
    return path


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        (
            "InvoiceNo,StockCode,InvoiceDate,CustomerID",
            {},
            ["CustomerID", "StockCode", "InvoiceDate", "InvoiceNo"],
        ),
        ("userId,movieId,rating,timestamp", {}, ["userId", "movieId", "timestamp"]),
        ("user_id,Customer Id,sku", {}, ["Customer Id", "sku"]),
        ("user,customer,item", {"client": "item", "item": "user"}, ["item", "user"]),
        ("user,item,time", {"time": "", "client": ""}, ["item"]),
        ("user,sku", {"item": "user"}, ["user"]),
        ("date,user,item,time", {"client": None}, ["user", "item", "time"]),
    ],
)
def test_columns(tmp_path: Path, header: str, columns: dict[str, str | None], expected: list[str]) -> None:
    found = resolve_columns(file_with(tmp_path, header), columns, ROLES, ("item",))
    assert list(found.values()) == expected


def test_recognition_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedemb"):
        resolve_columns(file_with(tmp_path, "user,item,x"), {"item": "x"}, ROLES, ("item",))
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "column 'user' is taken as client, by its name"
    ]


def test_what_is_required_must_be_there(tmp_path: Path) -> None:
    path = file_with(tmp_path, "user,thing")
    with pytest.raises(DataError, match=r"data.columns.item must .*got none; there are 'user', 'thing'"):
        resolve_columns(path, {}, ROLES, ("item",))
    assert resolve_columns(tmp_path / "none.csv", {}, ROLES, ("item",)) == {}  # the reader will say so


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(SettingError, match=r"got 'clent'; did you mean data.columns.client\?"):
        check_roles({"clent": "x"}, ROLES)
    with pytest.raises(SettingError, match=r"data.columns.item must be the name of a column, got 3"):
        check_roles({"item": 3}, ROLES)  # type: ignore[dict-item]


def test_names_of_any_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"b": [1], "a": [2]}), tmp_path / "x.parquet")
    assert column_names(tmp_path / "x.parquet") == ["b", "a"]
    (tmp_path / "x.tsv").write_text("b\ta\n")
    assert column_names(tmp_path / "x.tsv") == ["b", "a"]
