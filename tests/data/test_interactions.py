"""data/interactions.py: what is read, what is left out and counted, and what is held out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.held_out import HoldOut
from fedemb.data.interactions import Interactions
from fedemb.data.partition import IID, ByColumn, Dirichlet, Natural
from fedemb.data.shards import Shards
from fedemb.errors import DataError, SettingError
from fedemb.evaluate.ranking import history_before
from fedemb.types import Dataset, Source

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "online_retail" / "online_retail.csv.gz"
needs_shared = pytest.mark.skipif(not SHARED.is_file(), reason=f"SKIPPED LOUDLY: {SHARED} is missing")

ROWS = """user,item,time,invoice,quantity
ann,pear,2020-01-03 10:00:00,7,1
bob,fig,2020-01-01 09:00:00,1,2
ann,apple,2020-01-01 12:00:00,2,1
,apple,2020-01-01 12:00:00,2,1
ann,fig,2020-01-01 12:00:00,2,1
ann,fig,soon,2,1
bob,,2020-01-02 12:00:00,3,1
bob,pear,2020-01-02 12:00:00,3,1
bob,pear,2020-01-02 13:00:00,C4,-1
bob,pear,2020-01-02 14:00:00,5,1
ann,plum,2020-02-05 12:00:00,9,1
ann,pear,2020-02-05 12:00:00,9,1
bob,fig,2020-02-06 12:00:00,10,1
cid,fig,2020-02-07 12:00:00,11,1
"""


def written(folder: Path, rows: str = ROWS, name: str = "data.csv") -> str:
    (folder / name).write_text(rows)
    return str(folder / name)


def load(path: str, partition: Any = None, seed: int = 0, **settings: Any) -> Dataset:
    return Interactions(path, **settings).load(partition or Natural(), seed)


def lines_of(data: Dataset, part: str = "train") -> dict[str, list[str]]:
    """Items of each client, in order, by name."""
    shards = data.train if part == "train" else data.held_out[part]
    names = data.vocabularies["item"]
    clients = data.clients.to_list() if data.clients else [str(c) for c in range(shards.num_clients)]
    items = [names.name(int(i)) for i in shards.columns["item"]]
    return {client: items[shards.offsets[i] : shards.offsets[i + 1]] for i, client in enumerate(clients)}


def test_a_small_file_as_it_is(tmp_path: Path) -> None:
    data = load(written(tmp_path), test_from="2020-02-01")
    assert lines_of(data) == {"ann": ["apple", "fig", "pear"], "bob": ["fig", "pear", "pear"]}
    assert lines_of(data, "test") == {"ann": ["pear"], "bob": ["fig"]}
    assert data.vocabularies["item"].to_list() == ["apple", "fig", "pear"]
    counts = data.vocabularies["item"].counts
    assert counts is not None
    assert counts.tolist() == [1, 2, 3]
    assert data.entity_of == {"item": "item"}
    assert {name: column.dtype for name, column in data.train.columns.items()} == {
        "item": np.int64, "time": np.int64, "session": np.int64,
    }  # fmt: skip
    sessions = np.split(data.train.columns["session"], data.train.offsets[1:-1])
    assert [len(set(mine.tolist())) for mine in sessions] == [2, 3]
    assert not {*sessions[0].tolist()} & {*sessions[1].tolist()}
    assert data.held_out.keys() == {"test"}
    expected = {
        "rows_read": 14, "rows_malformed": 0, "rows_missing_client": 1, "rows_missing_item": 1,
        "rows_missing_time": 0, "rows_not_positive": 1, "rows_bad_time": 1, "rows_used": 10,
        "clients_read": 3, "items_read": 4, "duplicates": 0, "items_below_min_count": 0,
        "training_events": 6, "training_out_of_vocabulary": 0, "training_of_unseen_clients": 0,
        "validation_events": 0, "validation_out_of_vocabulary": 0, "validation_of_unseen_clients": 0,
        "test_events": 2, "test_out_of_vocabulary": 1, "test_of_unseen_clients": 1,
        "clients": 2, "clients_without_training": 1, "clients_below_min_count": 0,
    }  # fmt: skip
    assert data.counts == expected
    source: Source = Interactions("x")
    assert source


def test_every_row_is_somewhere(tmp_path: Path) -> None:
    counts = load(written(tmp_path), test_from="2020-01-02", deduplicate="day", min_count=2).counts
    left_out = sum(value for key, value in counts.items() if key.startswith("rows_")) - counts["rows_read"]
    assert left_out == counts["rows_read"]  # rows_used among them
    per_part = [k for k in counts if k.startswith(("training_", "validation_", "test_"))]
    assert counts["rows_used"] == counts["duplicates"] + sum(counts[key] for key in per_part)


def test_order_of_rows_and_memory_do_not_matter(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        f"u{generator.integers(30)},i{generator.zipf(1.5) % 50},{1_600_000_000 + 3_001 * number},"
        f"{generator.integers(9)}"
        for number in range(3_000)
    ]
    settings: dict[str, Any] = {"deduplicate": "day", "min_count": 3, "min_client_count": 20}
    whole = load(written(tmp_path, "\n".join(["user,item,time,weight", *rows])), **settings)
    generator.shuffle(rows)
    mixed = written(tmp_path, "\n".join(["user,item,time,weight", *rows]), "mixed.csv")
    for other in (load(mixed, **settings), load(mixed, **settings, memory_bytes=5_000)):
        assert whole.counts == other.counts
        assert whole.clients == other.clients
        assert whole.vocabularies == other.vocabularies
        for ours, theirs in zip(
            (whole.train, *whole.held_out.values()), (other.train, *other.held_out.values()), strict=True
        ):
            assert ours.columns.keys() == theirs.columns.keys() == {"item", "time", "session", "weight"}
            np.testing.assert_array_equal(ours.offsets, theirs.offsets)
            for name, column in ours.columns.items():
                np.testing.assert_array_equal(column, theirs.columns[name])
    assert whole.counts["items_below_min_count"] > 0
    assert whole.counts["duplicates"] > 0
    assert whole.train.columns["weight"].dtype == np.float32


def test_one_event_a_day_keeps_the_first_and_adds_weights(tmp_path: Path) -> None:
    rows = "user,item,time,weight\n" + "".join(
        f"ann,{item},{time},{weight}\n"
        for item, time, weight in (
            ("b", "2020-01-01 23:59:59", 1),
            ("a", "2020-01-01 10:00:00", 2),
            ("b", "2020-01-02 00:00:00", 4),
            ("a", "2020-01-01 09:00:00", 8),
            ("a", "2020-01-01 11:00:00", 16),
        )
    )
    data = load(written(tmp_path, rows), deduplicate="day", validation_share=0, test_share=0)
    assert lines_of(data) == {"ann": ["a", "b", "b"]}
    assert data.train.columns["weight"].tolist() == [26, 1, 4]
    assert (data.train.columns["time"] % 86_400).tolist() == [9 * 3600, 86_399, 0]
    assert data.train.columns["session"].tolist() == [0, 0, 1]  # days, without a session column
    assert data.counts["duplicates"] == 2
    assert load(written(tmp_path, rows), validation_share=0, test_share=0).counts["duplicates"] == 0


def test_drop_and_positive(tmp_path: Path) -> None:
    data = load(
        written(tmp_path), columns={"quantity": ""}, drop={"invoice": "C"}, positive=["quantity"],
        validation_share=0, test_share=0,
    )  # fmt: skip
    assert data.counts["rows_cancelled"] == 1
    assert data.counts["rows_not_positive"] == 0
    kept = load(written(tmp_path), columns={"quantity": ""}, validation_share=0, test_share=0)
    assert kept.counts["rows_used"] == data.counts["rows_used"] + 1
    only_at_the_start = load(written(tmp_path), drop={"item": "i|e"}, validation_share=0, test_share=0)
    assert only_at_the_start.counts["rows_cancelled"] == 0


def test_thresholds_and_cold_clients(tmp_path: Path) -> None:
    rows = "user,item,time\n" + "".join(
        f"{user},{item},2020-01-{day:02}\n"
        for user, item, day in (
            ("ann", "a", 1), ("ann", "a", 2), ("ann", "b", 2), ("bob", "a", 3), ("cid", "b", 3),
            ("dan", "a", 11), ("dan", "a", 21), ("ann", "b", 11), ("ann", "a", 21), ("eve", "a", 22),
        )
    )  # fmt: skip
    dates: dict[str, Any] = {"validation_from": "2020-01-10", "test_from": "2020-01-20"}
    data = load(written(tmp_path, rows), min_count=3, **dates)
    assert lines_of(data) == {"ann": ["a", "a"], "bob": ["a"]}
    assert data.counts["items_below_min_count"] == 1
    assert data.counts["training_out_of_vocabulary"] == 2
    assert data.counts["clients_without_training"] == 3  # cid, dan, eve
    few = load(written(tmp_path, rows), min_client_count=2, **dates)
    assert lines_of(few) == {"ann": ["a", "a", "b"]}
    assert few.counts["clients_below_min_count"] == 2
    assert few.counts["training_of_unseen_clients"] == 2
    assert few.vocabularies["item"].counts is not None
    assert few.vocabularies["item"].counts.tolist() == [2, 1]  # of those who stay
    cold = load(written(tmp_path, rows), keep_cold_clients=True, **dates)
    assert lines_of(cold)["dan"] == []
    assert lines_of(cold, "validation")["dan"] == ["a"]
    assert lines_of(cold, "test") == {"ann": ["a"], "bob": [], "cid": [], "dan": ["a"]}


def test_declared_vocabulary(tmp_path: Path) -> None:
    declared = written(tmp_path, "plum\nkiwi\npear\nfig\n", "items.txt")
    data = load(written(tmp_path), vocabulary=declared, test_from="2020-02-01")
    assert data.vocabularies["item"].to_list() == ["plum", "kiwi", "pear", "fig"]
    assert data.vocabularies["item"].counts is not None
    assert data.vocabularies["item"].counts.tolist() == [0, 0, 3, 2]
    assert lines_of(data, "test")["ann"] == ["plum", "pear"]
    assert data.counts["training_out_of_vocabulary"] == 1
    pq.write_table(pa.table({"name": ["x", "y"], "item": ["fig", "pear"]}), tmp_path / "items.parquet")
    table = load(written(tmp_path), vocabulary=str(tmp_path / "items.parquet"), test_from="2020-02-01")
    assert table.vocabularies["item"].to_list() == ["fig", "pear"]
    own = load(written(tmp_path), vocabulary=written(tmp_path), test_from="2020-02-01")
    assert own.vocabularies["item"].to_list() == ["pear", "fig", "apple", "plum"]
    assert own.counts["test_out_of_vocabulary"] == 0
    with pytest.raises(SettingError, match=r"data.min_count must be 1 where data.vocabulary .* got 2"):
        Interactions("x", vocabulary=declared, min_count=2)
    with pytest.raises(DataError, match=r"items.txt: .* 'plum' stands twice"):
        load(written(tmp_path), vocabulary=written(tmp_path, "plum\nplum\n", "items.txt"))
    with pytest.raises(DataError, match=r"must hold names, found none"):
        load(written(tmp_path), vocabulary=written(tmp_path, "\n", "items.txt"))
    with pytest.raises(DataError, match=r"none.txt must be an existing file"):
        load(written(tmp_path), vocabulary=str(tmp_path / "none.txt"))


def test_without_time_the_last_ones_are_held_out(tmp_path: Path) -> None:
    rows = "user,item\n" + "".join(f"ann,i{n}\nbob,i{n % 3}\n" for n in range(10))
    data = load(written(tmp_path, rows), validation_share=0.2, test_share=0.1, vocabulary=None)
    assert lines_of(data)["ann"] == [f"i{n}" for n in range(7)]
    assert [len(mine) for mine in lines_of(data, "validation").values()] == [0, 2]  # i7, i8 are unknown
    assert data.counts["validation_out_of_vocabulary"] == 2
    assert data.train.columns.keys() == {"item", "session"}
    assert data.train.columns["session"].tolist() == [0] * 7 + [1] * 7
    with pytest.raises(DataError, match=r"data.columns.time .* data.test_from"):
        load(written(tmp_path, rows), test_from="2020-01-01")
    with pytest.raises(DataError, match=r"data.columns.time .* data.deduplicate=day, got none"):
        load(written(tmp_path, rows), deduplicate="day")
    last = load(written(tmp_path, rows), leave_last=1)
    assert lines_of(last)["bob"] == [f"i{n % 3}" for n in range(8)]


def test_a_partition_makes_clients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "item,time,country,shop\n" + "".join(f"i{n % 4},{n},c{n % 3},s{n % 2}\n" for n in range(60))
    path = written(tmp_path, rows)
    data = load(path, IID(5), validation_share=0, test_share=0.1)
    assert data.clients is None
    assert data.train.num_clients == 5
    assert data.counts["test_events"] == 6
    same = load(path, IID(5), validation_share=0, test_share=0.1)
    np.testing.assert_array_equal(data.train.columns["item"], same.train.columns["item"])
    by_country = load(path, ByColumn("country"), validation_share=0, test_share=0)
    assert by_country.clients is not None
    assert by_country.clients.to_list() == ["c0", "c1", "c2"]
    assert by_country.train.columns.keys() == {"item", "time", "session"}
    by_item = load(path, ByColumn("item"), validation_share=0, test_share=0)
    assert lines_of(by_item) == {f"i{n}": [f"i{n}"] * 15 for n in range(4)}
    skewed = load(path, Dirichlet("shop", 3, 0.5), validation_share=0, test_share=0)
    assert skewed.train.num_examples == 60
    with pytest.raises(DataError, match=r"must have a client column for partition=natural, got none"):
        load(path)
    with pytest.raises(
        DataError, match=r"partition.column must name a column of .*got 'city'; there are 'item'"
    ):
        load(path, ByColumn("city"))
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        load(written(tmp_path, ROWS, "own.csv"), IID(2))
    assert "data.columns.client decides the clients" in caplog.text


def test_empty_sessions_are_days(tmp_path: Path) -> None:
    rows = "user,item,time,session\n" + "".join(
        f"{user},a,2020-01-{day:02},{session}\n"
        for user, day, session in (
            ("ann", 1, "x"),
            ("ann", 1, ""),
            ("ann", 1, ""),
            ("ann", 2, ""),
            ("bob", 1, "x"),
        )
    )
    data = load(written(tmp_path, rows), validation_share=0, test_share=0)
    mine, other = np.split(data.train.columns["session"], [4])
    assert mine[1] == mine[2]
    assert len({*mine.tolist()}) == 3
    assert other[0] not in mine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "data.min_count must be at least 1, got 0"),
        ({"min_client_count": 0}, "data.min_client_count must be at least 1, got 0"),
        ({"deduplicate": "week"}, "data.deduplicate must be one of none, day, got 'week'"),
        ({"columns": {"user": "u"}}, "data.columns must be among client, item, .* got 'user'"),
        ({"drop": {"invoice": "("}}, r"data.drop.invoice must be a regular expression, got '\('"),
        ({"positive": "price"}, r"data.positive must be a list of columns, got 'price'; write \[price\]"),
        ({"test_share": 2}, r"data.test_share must be in \[0, 1\), got 2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Interactions("data.csv", **settings)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (None, {}, r"data.csv must be an existing file, found nothing there"),
        ("", {}, "must have a header line and rows, found an empty file"),
        ("user,thing\nann,a\n", {}, r"data.columns.item must name a column of .*; there are 'user', 'thing'"),
        (ROWS, {"columns": {"item": "iten"}}, r"got 'iten'; there are .*did you mean 'item'\?"),
        (
            ROWS,
            {"positive": ["price"]},
            r"data.positive must name a column of .*, got 'price'; there are 'user'",
        ),
        (
            ROWS,
            {"drop": {"price": "C"}},
            r"data.drop must name a column of .*, got 'price'; there are 'user'",
        ),
        (ROWS, {"positive": ["user"]}, "must have usable rows, found none: rows_not_positive 1"),
        (
            ROWS,
            {"test_from": "2019-01-01"},
            "nothing is left to train on .*test_out_of_vocabulary 10.*; move data.test_from",
        ),
        (ROWS, {"min_count": 99}, "or lower data.min_count"),
        ("user,item,time\nann,a,12/1/2010 8:26\n", {}, "found none: .*rows_bad_time 1; set data.time_format"),
    ],
)
def test_bad_files(tmp_path: Path, rows: str | None, settings: dict[str, Any], message: str) -> None:
    path = str(tmp_path / "data.csv") if rows is None else written(tmp_path, rows)
    with pytest.raises(DataError, match=message) as raised:
        load(path, **settings)
    assert "\n" not in str(raised.value)


def test_own_time_format_and_place_of_bad_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "user,item,time\nann,a,12/1/2010 8:26\nann,b,never\nann,c,12/2/2010 8:26\n"
    data = load(written(tmp_path, rows), time_format="%m/%d/%Y %H:%M", test_share=0, validation_share=0)
    assert data.train.columns["time"].tolist() == [1291191960, 1291278360]
    assert "data.csv, line 3: 'never' is no time; such rows are left out and counted" in caplog.text


def test_parquet_with_native_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array([3, 1, 3, None]),
            "item": pa.array(["a", "b", "a", "a"]).dictionary_encode(),
            "time": pa.array([30, 20, 10, 5], pa.timestamp("ms")),
            "weight": pa.array([1.5, -1.0, float("nan"), 2.0]),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    data = load(str(tmp_path / "data.parquet"), validation_share=0, test_share=0)
    assert lines_of(data) == {"3": ["a"]}
    assert data.counts["rows_bad_weight"] == 2
    pq.write_table(table.append_column("nested", pa.array([[1]] * 4)), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"column 'nested' of .* must hold names, got values of type list"):
        load(str(tmp_path / "data.parquet"), columns={"item": "nested"})


def test_a_split_that_leaks_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check looks at what was built: a broken splitter cannot pass."""
    monkeypatch.setattr(HoldOut, "label", lambda self, lines, *_: np.zeros(lines.num_examples, np.int8))
    with pytest.raises(RuntimeError, match=r"training must hold nothing from 2020-02-01 00:00:00 on"):
        load(written(tmp_path), test_from="2020-02-01")


@needs_shared
def test_online_retail_as_it_is() -> None:
    """Rows without customer, or with Quantity below 0, go: the figures of shared/data/README.md."""
    data = load(str(SHARED))
    counts = data.counts
    assert (counts["rows_read"], counts["rows_missing_client"]) == (541_909, 135_080)
    assert (counts["rows_used"], counts["clients_read"], counts["items_read"]) == (397_924, 4_339, 3_665)
    held_out = counts["test_events"] + counts["test_out_of_vocabulary"] + counts["test_of_unseen_clients"]
    assert 0.08 < held_out / counts["rows_used"] < 0.12
    assert data.train.columns["time"].max() < data.held_out["validation"].columns["time"].min()
    assert data.held_out["validation"].columns["time"].max() < data.held_out["test"].columns["time"].min()


@needs_shared
@pytest.mark.parametrize(
    ("settings", "rows", "customers"),
    [
        ({"columns": {"quantity": ""}, "drop": {"InvoiceNo": "C"}}, 397_924, 4_339),
        ({"drop": {"InvoiceNo": "C"}, "positive": ["UnitPrice"]}, 397_884, 4_338),
        ({"columns": {"quantity": ""}}, 406_829, 4_372),
    ],
)
def test_rules_of_online_retail(settings: dict[str, Any], rows: int, customers: int) -> None:
    counts = load(str(SHARED), **settings).counts
    assert (counts["rows_used"], counts["clients_read"]) == (rows, customers)


def test_since_and_until_leave_events_out_and_count_them(tmp_path: Path) -> None:
    data = load(written(tmp_path), since="2020-01-02", until="2020-02-06", test_from="2020-02-01")
    assert lines_of(data) == {"ann": ["pear"], "bob": ["pear", "pear"]}
    assert lines_of(data, "test") == {"ann": ["pear"], "bob": []}
    assert data.counts["rows_before_since"] == 3
    assert data.counts["rows_after_until"] == 2
    whole = load(written(tmp_path), since="2019-01-01", until="2021-01-01", test_from="2020-02-01")
    assert lines_of(whole) == lines_of(load(written(tmp_path), test_from="2020-02-01"))
    with pytest.raises(SettingError, match=r"data\.since must be before data\.until"):
        load(written(tmp_path), since="2020-02-01", until="2020-02-01")
    with pytest.raises(DataError, match=r"data\.columns\.time must name a column where data\.since"):
        load(written(tmp_path), since="2020-02-01", columns={"time": ""})


def many(folder: Path, num_events: int = 300) -> str:
    rng = np.random.default_rng(0)
    rows = [
        f"c{rng.integers(6)},i{rng.integers(9)},2020-{1 + m // 28:02d}-{1 + m % 28:02d} {rng.integers(24):02d}:00:00"
        for m in rng.integers(0, 112, num_events)
    ]
    return written(folder, "\n".join(["user,item,time", *rows]), "many.csv")


def test_shuffled_times_stay_in_training_and_nothing_else_changes(tmp_path: Path) -> None:
    path = many(tmp_path)
    true, shuffled = (load(path, test_from="2020-04-01", shuffle_times=flag) for flag in (False, True))
    before, after = true.train, shuffled.train
    assert np.array_equal(before.sizes, after.sizes)
    assert after.columns["time"].max() <= before.columns["time"].max()

    def baskets(shards: Shards) -> tuple[list, list]:
        """Items of each client's sessions, and when each begins."""
        found: dict[tuple[int, int], list] = {}
        for owner, session, item, time in zip(
            shards.owners(), *(shards.columns[n].tolist() for n in ("session", "item", "time")), strict=True
        ):
            found.setdefault((int(owner), session), []).append((item, time))
        items = sorted((owner, sorted(i for i, _ in lines)) for (owner, _), lines in found.items())
        return items, sorted(min(t for _, t in lines) for lines in found.values())

    (items, starts), (same_items, same_starts) = baskets(before), baskets(after)
    assert items == same_items, "what was taken together stays together"
    assert starts == same_starts, "the sessions have each other's times"
    for client in range(before.num_clients):
        assert (np.diff(after.take(np.array([client])).columns["time"]) >= 0).all()
    assert (before.columns["time"] != after.columns["time"]).mean() > 0.9
    for name, column in true.held_out["test"].columns.items():
        assert np.array_equal(column, shuffled.held_out["test"].columns[name])
    assert true.past is None
    assert shuffled.past is not None
    for name, column in before.columns.items():
        assert np.array_equal(column, shuffled.past.columns[name]), "what is known of clients keeps its times"
    (history,) = history_before(shuffled, "test")
    assert history is shuffled.past


def test_shuffled_times_do_not_depend_on_memory(tmp_path: Path) -> None:
    path = many(tmp_path)
    one, other = (
        load(path, test_from="2020-04-01", shuffle_times=True, memory_bytes=budget)
        for budget in (1 << 30, 400)
    )
    for name, column in one.train.columns.items():
        assert np.array_equal(column, other.train.columns[name]), name
    again = load(path, test_from="2020-04-01", shuffle_times=True, seed=1)
    assert not np.array_equal(one.train.columns["time"], again.train.columns["time"])


def test_shuffled_times_need_a_split_by_time(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.shuffle_times must be false"):
        load(written(tmp_path), leave_last=1, shuffle_times=True)
