"""Reading named columns: values, counts, and what is said about bad files."""

from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedemb.data.tabular import locate, read_columns
from fedemb.errors import DataError

EDGE = {"child": "a", "parent": "b", "client": None}


def written(folder: Path, content: bytes | str, name: str = "rows.csv") -> Path:
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows(path: Path, columns: dict[str, str | None] = EDGE, **settings: Any) -> list[dict[str, Any]]:
    return [row for batch in read_columns(path, columns, **settings) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "b,extra,a\r\n2,x,1\r\n,y,3\r\n"),
        ("rows.csv", "\ufeffb,a\n2,1\n\n,3"),
        ("rows.csv.gz", 'a,b\n1,2\n3,""\n'),
        ("rows.tsv", "a\tb\n1\t2\n3\t\n"),
        ("rows.tsv.gz", "a\tb\n1\t2\n3\t\n"),
    ],
)
def test_text_files_of_all_kinds_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    expected = [{"child": "1", "parent": "2"}, {"child": "3", "parent": None}]
    assert rows(written(tmp_path, content, name)) == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "rows.jsonl.gz", "rows.JSONL"])
def test_json_lines_are_the_rows_of_a_text_file(tmp_path: Path, name: str) -> None:
    content = '\ufeff{"b": 2, "extra": [1], "a": "1"}\r\n\n{"a": "3", "b": ""}\n{"a": true, "b": 1.5}'
    expected = [("1", "2"), ("3", None), ("true", "1.5")]
    found = rows(written(tmp_path, content, name))
    assert found == [{"child": child, "parent": parent} for child, parent in expected]


def test_json_lines_come_in_batches_and_bad_ones_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f'{{"a": "{n}", "b": "\\ud800{n}"}}' for n in range(100)]
    path = written(
        tmp_path, "\n".join([lines[0], "[", "7", '{"a": {}, "b": 1}', '{"b": 1}', *lines[1:]]), "rows.jsonl"
    )
    counts: dict[str, int] = {}
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        batches = list(
            read_columns(path, EDGE, batch_bytes=200, counts=counts, required=frozenset({"child"}))
        )
    assert len(batches) > 10
    assert [n for batch in batches for n in batch.column("child").to_pylist()] == [str(n) for n in range(100)]
    assert batches[0].column("parent")[0].as_py() == "?0"
    assert counts == {"rows_read": 104, "rows_malformed": 3, "rows_missing_child": 1}
    assert "rows.jsonl, line 2: expected an object with plain values; 3 such rows" in caplog.text
    assert "rows.jsonl, line 5: no child in column 'a'" in caplog.text
    assert locate(path, "a", "7") == f"{path}, line 12"
    assert locate(path, "a", "x") == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold an object on each line, found none"),
        ("\n[]\n", "found a list; jq"),
        ('{"a": 1, "b": []}', "must have rows, found 1 malformed ones only"),
        ('{"a": 1}', r"data.columns.parent must name a column of .*, got 'b'; there are 'a'"),
        (b'{"a": 1, "b": 2}\n{"a": "\xff"}', "it must be UTF-8, and line 2 is not"),
        ('{"a": 1, "b": 2}\n{"a": "' + "x" * 300 + '"}', "line 2 is longer than 200 bytes"),
    ],
)
def test_json_lines_that_cannot_be_read(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(written(tmp_path, content, "rows.jsonl"), batch_bytes=200)


def test_json_lines_that_break_off_are_an_error(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"a": {n}, "b": {n * n % 997}}}\n' for n in range(20_000)).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data file .*rows.jsonl.gz cannot be read: "):
        rows(tmp_path / "rows.jsonl.gz")


def test_parquet_keeps_native_types_and_text_stays_text(tmp_path: Path) -> None:
    table = {"a": pa.array(["x", "", None]).dictionary_encode(), "b": pa.array([1, 2, None], pa.int32())}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    batches = list(read_columns(tmp_path / "rows.parquet", {**EDGE, "again": "b"}))
    assert batches[0].schema.field("parent").type == pa.int32()
    assert pa.Table.from_batches(batches).to_pydict() == {
        "child": ["x", None, None],
        "parent": [1, 2, None],
        "again": [1, 2, None],
    }
    text = written(tmp_path, "a,b\n001,NA\nnull,1e3\n")
    assert rows(text) == [{"child": "001", "parent": "NA"}, {"child": "null", "parent": "1e3"}]


def test_large_files_come_in_batches(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n" + "".join(f"{i},{i}\n" for i in range(5_000)))
    batches = list(read_columns(path, EDGE, batch_bytes=4_096))
    assert len(batches) > 5
    assert [row["child"] for batch in batches for row in batch.to_pylist()] == [str(i) for i in range(5_000)]
    pq.write_table(pa.table({"a": list(range(5_000)), "b": list(range(5_000))}), tmp_path / "rows.parquet")
    batches = list(read_columns(tmp_path / "rows.parquet", EDGE, batch_bytes=4_096))
    assert len(batches) > 5
    assert sum(batch.num_rows for batch in batches) == 5_000


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20))
def test_whatever_a_csv_writer_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    clean = [tuple(cell.replace("\x00", "").replace("\r", "") or "x" for cell in pair) for pair in pairs]
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *clean])
    encoded = [tuple(cell.encode(errors="replace").decode() for cell in pair) for pair in clean]
    assert [(row["child"], row["parent"]) for row in rows(path)] == encoded


def test_lines_within_quotes_may_cross_batches(tmp_path: Path) -> None:
    cells = [f"{i}\n" * (i % 7 + 1) for i in range(500)]
    path = written(tmp_path, "a,b\n" + "".join(f'"{cell}",{i}\n' for i, cell in enumerate(cells)))
    counts: dict[str, int] = {}
    assert [row["child"] for row in rows(path, batch_bytes=256, counts=counts)] == cells
    assert counts == {"rows_read": 500, "rows_malformed": 0}


def test_roles_without_a_column(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n")
    assert rows(path, {"child": "a", "time": "when"}, optional=frozenset({"time"})) == [{"child": "1"}]
    assert rows(path, {"child": "a", "parent": None}) == [{"child": "1"}]
    assert rows(path, {"first": "x", "second": "y"}, names=["x", "y"])[0] == {"first": "a", "second": "b"}


def test_bad_rows_are_counted_and_the_first_is_located(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, 'a,b\n1,2\n\n"x\ny",3\n4\n5,6,7\n"",8\n9,\n,\n')
    counts = {"rows_read": 100}
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        found = rows(path, counts=counts, required=frozenset({"child", "parent"}))
    assert found == [{"child": "1", "parent": "2"}, {"child": "x\ny", "parent": "3"}]
    assert counts == {
        "rows_read": 107,
        "rows_malformed": 2,
        "rows_missing_child": 2,
        "rows_missing_parent": 1,
    }
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}, line 6: expected 2 cells, got 1; 2 such rows were left out",
        f"{path}, line 8: no child in column 'a'; 2 such rows were left out",
        f"{path}, line 9: no parent in column 'b'; 1 such rows were left out",
    ]


def test_locate_says_where_a_value_stands(tmp_path: Path) -> None:
    path = written(tmp_path, 'a,b\n1,2\n"x\ny",3\n7,bad\n7,bad\n')
    assert locate(path, "b", "bad") == f"{path}, line 5"
    assert locate(path, "b", "absent") == str(path)


def failure(path: Path, columns: dict[str, str | None] = EDGE, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(read_columns(path, columns, **settings))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("e.csv", "", "must have a header line and rows, found an empty file"),
        ("e.csv", "a,b\n", "must have rows, found none"),
        ("e.csv", "a,b\n1\n2\n", "must have rows, found 2 malformed ones only"),
        ("e.csv", b"a,b\n1,2\n3,\xff\n", "it must be UTF-8, and line 3 is not; convert it with iconv"),
        ("e.csv", 'a,b\n1,"2\n3,4\n', "a quote is left open, or a row is longer than a batch"),
        ("e.parquet", b"nonsense", "cannot be read: "),
        ("e.gz", b"", "found an empty file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | str, said: str) -> None:
    path = written(tmp_path, content, name)
    message = failure(path)
    assert message.startswith(f"data file {path} ")
    assert said in message


def test_missing_folder_truncated_and_long(tmp_path: Path) -> None:
    assert "must be an existing file, found nothing there" in failure(tmp_path / "no.csv")
    assert "must be an existing file, found a folder" in failure(tmp_path)
    path = written(tmp_path, "a,b\n1,2\n", "rows.csv.gz")
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read: " in failure(path)
    assert "longer than a batch" in failure(written(tmp_path, "a,b\n1," + "2" * 3_000), batch_bytes=1_000)
    pq.write_table(
        pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.string())}), tmp_path / "0.pq"
    )
    assert "must have rows, found none" in failure(tmp_path / "0.pq")


def test_missing_columns_are_named_at_the_call(tmp_path: Path) -> None:
    path = written(tmp_path, "kid,parents,kid\n1,2,3\n")
    with pytest.raises(DataError, match=r"data\.columns\.parent") as caught:
        read_columns(path, {"parent": "parent"})
    assert str(caught.value) == (
        f"data.columns.parent must name a column of {path}, got 'parent'; "
        "there are 'kid', 'parents', 'kid'; did you mean 'parents'?"
    )
    assert "stands there twice" in failure(path, {"child": "kid"})
    missing = failure(path, {"child": None}, required=frozenset({"child"}))
    assert missing.startswith("data.columns.child must name a column")
    assert "got null; there are 'kid', 'parents'" in missing
    path = written(tmp_path, "a;b\n1;2\n")
    assert "the cells seem to be separated by ';', not ','" in failure(path)
    assert rows(path, delimiter=";") == [{"child": "1", "parent": "2"}]
    pq.write_table(pa.table({"x": ["1"]}), tmp_path / "rows.parquet")
    assert failure(tmp_path / "rows.parquet", {"child": "a"}).endswith("got 'a'; there are 'x'")


def test_nothing_left_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = failure(written(tmp_path, "a,b\n,2\n"), required=frozenset({"child"}))
    assert message.endswith("must have rows with child, found none")


def test_unquoted_cells_stand_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, '"x" y\t"open\n1\n\t2\n"\t\'\n', "rows.txt")
    settings: dict[str, Any] = {"names": ["a", "b"], "quoted": False, "delimiter": "\t"}
    found = rows(path, **settings, required=frozenset({"child"}))
    assert found == [{"child": '"x" y', "parent": '"open'}, {"child": '"', "parent": "'"}]
    assert f"{path}, line 2: expected 2 cells, got 1" in caplog.text
    assert f"{path}, line 3: no child" in caplog.text
