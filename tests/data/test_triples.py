"""data/triples.py: graphs as published and users' own files, splits, negatives, clients, and what is refused."""

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.partition import IID, ByColumn, Dirichlet, Entity, Natural, Relation
from fedemb.data.triples import Triples
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Partition

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "codex" / "codex-s"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there: CoDEx NOT TESTED")

TRAIN = [("a", "likes", "b"), ("b", "likes", "c"), ("c", "knows", "a"), ("a", "knows", "c")]
VALID = [("b", "knows", "a")]
TEST = [("c", "likes", "b"), ("a", "likes", "e")]
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
Rows = list[tuple[str, ...]]


def text(rows: Rows, delimiter: str = "\t") -> str:
    return "".join(delimiter.join(row) + "\n" for row in rows)


def published(folder: Path, **parts: Rows) -> str:
    """A folder in the form in which graphs are published."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {**PARTS, **parts}.items():
        (folder / f"{name}.txt").write_text(text(rows))
    return str(folder)


def load(path: str | Path, partition: Partition | None = None, seed: int = 0, **settings: Any) -> Dataset:
    return Triples(str(path), **settings).load(partition or Relation(2), seed)


def named(data: Dataset, part: str = "train") -> Rows:
    """The triples of a part by their names, in the order of the clients."""
    shards = data.train if part == "train" else data.held_out[part]
    names = {role: data.vocabularies[entity] for role, entity in data.entity_of.items()}
    lines = zip(*(shards.columns[role] for role in ("head", "relation", "tail")), strict=True)
    return [(names["head"].name(h), names["relation"].name(r), names["tail"].name(t)) for h, r, t in lines]


def test_published_form(tmp_path: Path) -> None:
    data = load(published(tmp_path))
    assert data.vocabularies["entity"].to_list() == ["a", "b", "c", "e"]
    assert data.vocabularies["relation"].to_list() == ["knows", "likes"]
    assert data.entity_of == {"head": "entity", "tail": "entity", "relation": "relation"}
    for entity, counts in (("entity", [3, 2, 3, 0]), ("relation", [2, 2])):
        counted = data.vocabularies[entity].counts
        assert counted is not None
        assert counted.tolist() == counts
    assert sorted(named(data)) == sorted(TRAIN)
    assert {*data.held_out} == {"validation", "test"}
    assert named(data, "validation") == VALID
    assert sorted(named(data, "test")) == sorted(TEST)
    for shards in (data.train, *data.held_out.values()):
        assert shards.num_clients == 2
        assert {name: column.dtype for name, column in shards.columns.items()} == {
            "head": np.int64, "relation": np.int64, "tail": np.int64,
        }  # fmt: skip
    assert data.clients is not None
    assert sorted(data.clients.to_list()) == ["knows", "likes"]
    counts = data.counts
    assert counts["rows_read"] == 7
    assert [counts[f"{part}_rows_read"] for part in ("training", "validation", "test")] == [4, 1, 2]
    assert counts["training_triples"] == 4
    assert counts["clients"] == 2
    assert counts["rows_malformed"] == counts["triples_repeated"] == counts["test_in_training"] == 0


@pytest.mark.parametrize("inside", ["Release", "text"])
def test_the_folder_of_an_archive(tmp_path: Path, inside: str) -> None:
    published(tmp_path / inside)
    (tmp_path / "README.txt").write_text("read me")
    assert sorted(named(load(tmp_path))) == sorted(TRAIN)


FORMS = {
    "train.tsv valid.tsv test.tsv": ("\t", "head\trelation\ttail\n"),
    "train.csv validation.csv test.csv": (",", "Subject,Predicate,Object\n"),
    "Train.csv.gz dev.csv.gz test.csv.gz": (",", "source,rel,target\n"),
    "training.txt val.txt test.txt": ("\t", '"head"\t"relation"\t"tail"\n'),
    "train.csv dev.csv test.csv": (",", ""),
    "train.tsv.gz valid.tsv.gz test.tsv.gz": ("\t", ""),
}


@pytest.mark.parametrize("files", FORMS)
def test_every_form_of_text(tmp_path: Path, files: str) -> None:
    delimiter, header = FORMS[files]
    for name, rows in zip(files.split(), PARTS.values(), strict=True):
        content = (header + text(rows, delimiter)).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    data, same = load(tmp_path), load(published(tmp_path / "same"))
    for part in ("train", "validation", "test"):
        assert named(data, part) == named(same, part)


def test_parquet_and_columns_by_name(tmp_path: Path) -> None:
    for name, rows in PARTS.items():
        head, relation, tail = zip(*rows, strict=True)
        table = {"o": pa.array(tail).dictionary_encode(), "wer": head, "was": relation}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    columns = {"head": "wer", "relation": "was", "tail": None}
    assert sorted(named(load(tmp_path, columns=columns))) == sorted(TRAIN)
    numbers = {"h": [1, 2], "r": [0, 1], "t": [2, 1]}
    pq.write_table(pa.table(numbers), tmp_path / "numbers.parquet")
    data = load(tmp_path / "numbers.parquet", validation_share=0, test_share=0)
    assert sorted(named(data)) == [("1", "0", "2"), ("2", "1", "1")]


def test_formats_may_differ_and_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    one = load(published(tmp_path / "one"))
    published(tmp_path / "two", train=TRAIN[::-1])
    (tmp_path / "two" / "test.txt").unlink()
    (tmp_path / "two" / "test.csv").write_text("tail,relation,head\n" + text([t[::-1] for t in TEST], ","))
    two = load(tmp_path / "two")
    assert two.vocabularies == one.vocabularies
    assert sorted(named(two)) == sorted(named(one))
    assert sorted(named(two, "test")) == sorted(named(one, "test"))


def test_names_of_columns_without_a_header(tmp_path: Path) -> None:
    rows = [("0.5", tail, "head", relation) for _, relation, tail in TRAIN]
    (tmp_path / "train.txt").write_text(text(rows))
    settings: dict[str, Any] = {"names": ["score", "tail", "head", "relation"], "test_share": 0}
    data = load(tmp_path, validation_share=0, **settings)
    assert sorted(named(data)) == sorted(("head", relation, tail) for _, relation, tail in TRAIN)
    own = Triples(str(tmp_path), names=["x", "b", "a", "r"], columns={"head": "a", "tail": "b"})
    assert own.load(Relation(2), 0).counts["rows_read"] == 4
    for names, said in (
        (["a", "relation", "tail"], "data.names must have a column for head, got a, relation, tail; set"),
        ("head,relation,tail", r"data.names must be a list of columns, got .*; write \[head,relation,tail\]"),
    ):
        with pytest.raises(SettingError, match=said):
            Triples("x", names=names)
    with pytest.raises(SettingError, match=r"data.names must have a column for client"):
        Triples("x", names=["head", "relation", "tail"], columns={"client": "org"})


def test_published_names_may_hold_quotes(tmp_path: Path) -> None:
    odd = [('"Weird_Al"_Yankovic', "likes", '"open'), ("NA", "knows", "null"), ("a, b", "likes", "c'")]
    assert sorted(named(load(published(tmp_path, train=odd)))) == sorted(odd)
    (tmp_path / "own.csv").write_text('head,relation,tail\n"a, b",likes,"say ""x"""\nc,knows,d\n')
    own = load(tmp_path / "own.csv", validation_share=0, test_share=0)
    assert sorted(named(own)) == [("a, b", "likes", 'say "x"'), ("c", "knows", "d")]


def owned(client: str, rows: Rows) -> Rows:
    return [(*row, client) for row in rows]


def test_client_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A fourth cell, or a column with a usual name; who has no training triples is left out."""
    train = owned("zoe", TRAIN[:1]) + owned("ann", TRAIN) + owned("bob", TRAIN[1:2])
    valid, test = owned("ann", VALID), owned("zoe", TEST[:1]) + owned("eve", TEST)
    data = load(published(tmp_path, train=train, valid=valid, test=test), Natural())
    assert data.clients is not None
    assert data.clients.to_list() == ["ann", "bob", "zoe"]
    assert data.train.sizes.tolist() == [4, 1, 1]
    assert data.held_out["validation"].sizes.tolist() == [1, 0, 0]
    assert data.held_out["test"].sizes.tolist() == [0, 0, 1]
    assert data.counts["test_of_unseen_clients"] == 2
    assert data.counts["clients_without_training"] == 1
    assert data.counts["clients_read"] == 4
    large = load(tmp_path, Natural(), min_client_count=2)
    assert large.train.sizes.tolist() == [4]
    assert large.counts["clients_below_min_count"] == 2
    assert large.counts["training_of_unseen_clients"] == 2
    assert {*large.held_out} == {"validation"}
    assert "partition is not used" not in caplog.text
    same = load(tmp_path, Relation(2))
    assert "data.columns.client decides the clients; the partition is not used" in caplog.text
    np.testing.assert_array_equal(same.train.columns["head"], data.train.columns["head"])
    without = load(tmp_path, Relation(2), columns={"client": ""})
    assert without.counts["triples_repeated"] == 2
    for name, rows in {"train": train, "valid": valid, "test": test}.items():
        (tmp_path / f"{name}.txt").write_text("s\tp\to\tuser\n" + text(rows))
    again = load(tmp_path, Natural())
    assert named(again) == named(data)
    assert again.clients == data.clients


def test_all_files_have_owners_or_none(tmp_path: Path) -> None:
    published(tmp_path, train=owned("ann", TRAIN), valid=owned("bob", VALID))
    with pytest.raises(
        DataError, match=r"must name a column of every file, but test.txt has none; add it, or"
    ):
        load(tmp_path, Natural())


def test_negatives_go_with_their_part(tmp_path: Path) -> None:
    negatives = {"valid_negatives": [("b", "likes", "a")], "test_negatives": [("c", "knows", "b"), TEST[0]]}
    data = load(published(tmp_path, **negatives), ByColumn("relation"))
    assert [*data.held_out] == ["validation", "test", "validation_negatives", "test_negatives"]
    assert data.held_out["validation_negatives"].sizes.tolist() == [0, 1]
    assert data.held_out["test_negatives"].sizes.tolist() == [1, 1]
    assert named(data, "validation_negatives") == [("b", "likes", "a")]
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=r"must hold test.txt beside test_negatives.txt, found none"):
        load(tmp_path)


def test_unseen_entities(tmp_path: Path) -> None:
    data = load(published(tmp_path), entities="train")
    assert data.vocabularies["entity"].to_list() == ["a", "b", "c"]
    assert named(data, "test") == TEST[:1]
    assert data.counts["test_out_of_vocabulary"] == 1
    assert data.counts["test_triples"] == 1
    assert sorted(named(data)) == sorted(TRAIN)
    with pytest.raises(SettingError, match=r"data.entities must be all or train, got 'test'"):
        Triples("x", entities="test")


def test_repeated_and_overlapping_triples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(published(tmp_path, train=[*TRAIN, *TRAIN[:2]], test=[*TEST, TRAIN[0], TRAIN[0]]))
    assert sorted(named(data)) == sorted(TRAIN)
    assert data.counts["triples_repeated"] == 2
    assert data.counts["rows_read"] == 11
    assert sorted(named(data, "test")) == sorted([*TEST, TRAIN[0], TRAIN[0]])
    assert (data.counts["validation_in_training"], data.counts["test_in_training"]) == (0, 2)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == ["triples held out stand in training as well and are kept: 0 of validation, 2 of test"]


def test_bad_rows_are_counted_and_located(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published(tmp_path)
    (tmp_path / "train.txt").write_text("a\tlikes\tb\n\nb\tlikes\n" + text(TRAIN) + "a\t\tb\n")
    data = load(tmp_path)
    assert sorted(named(data)) == sorted(TRAIN)
    assert data.counts["rows_malformed"] == 1
    assert data.counts["rows_missing_relation"] == 1
    assert data.counts["triples_repeated"] == 1
    assert data.counts["training_rows_read"] == 7
    assert f"{tmp_path / 'train.txt'}, line 3: expected 3 cells, got 2" in caplog.text
    assert f"{tmp_path / 'train.txt'}, line 8: no relation" in caplog.text


def graph(folder: Path, num_triples: int = 600, client: bool = False) -> str:
    """A single file of different triples."""
    generator = np.random.default_rng(0)
    codes = generator.choice(40 * 12 * 40, num_triples, replace=False)
    rows = [(f"e{c // 480}", f"r{c // 40 % 12 if c % 3 else 0}x{c % 3}", f"e{c % 40}") for c in codes]
    named_rows = [(*row, f"c{number % 7}") for number, row in enumerate(rows)] if client else rows
    path = folder / "graph.tsv"
    path.write_text("\t".join(["head", "relation", "tail", "client"][: 3 + client]) + "\n" + text(named_rows))
    return str(path)


@pytest.mark.parametrize("client", [False, True])
def test_single_file_is_split_at_random_per_client(tmp_path: Path, client: bool) -> None:
    path = graph(tmp_path, client=client)
    partition = Natural() if client else Relation(7)
    data = load(path, partition, test_share=0.2)
    sizes = [shards.sizes for shards in (data.train, data.held_out["validation"], data.held_out["test"])]
    total = np.sum(sizes, axis=0)
    np.testing.assert_array_equal(sizes[1], np.floor(total * 0.1 + 0.5))
    np.testing.assert_array_equal(sizes[2], np.floor(total * 0.2 + 0.5))
    assert total.sum() == 600 - data.counts["triples_repeated"]
    everything = named(data) + named(data, "validation") + named(data, "test")
    assert client or len(set(everything)) == total.sum(), "a repeated line must not stand in two parts"
    same, other = load(path, partition, test_share=0.2), load(path, partition, 1, test_share=0.2)
    assert named(same, "test") == named(data, "test")
    assert sorted(named(other, "test")) != sorted(named(data, "test"))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "train.tsv").write_text(Path(path).read_text())
    assert named(load(alone, partition, test_share=0.2), "test") == named(data, "test")


def test_shares_are_for_a_single_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.test_share must be null where .* own splits, got 0.2"):
        load(published(tmp_path), test_share=0.2)
    with pytest.raises(SettingError, match=r"data.validation_share must be in \[0, 1\), got -1"):
        Triples("x", validation_share=-1)
    with pytest.raises(SettingError, match=r"must stay below 1"):
        Triples("x", validation_share=0.95)


@pytest.mark.parametrize(
    "partition", [IID(5), ByColumn("relation"), Dirichlet("relation", 5, 0.5), Relation(5), Entity(5)]
)
def test_partitions_deal_all_parts_by_one_rule(tmp_path: Path, partition: Partition) -> None:
    rows: Rows = [(f"e{n % 23}", f"r{n % 13}", f"e{n * 7 % 23}") for n in range(200)]
    path = published(tmp_path, train=rows[:150], valid=rows[150:170], test=rows[170:])
    data = load(path, partition)
    parts = [data.train, *data.held_out.values()]
    assert sum(part.num_examples for part in parts) == 200 - data.counts["triples_repeated"]
    assert len({part.num_clients for part in parts}) == 1
    again = load(path, partition)
    for part in ("train", "validation", "test"):
        assert named(again, part) == named(data, part)
    rule = {Relation: "relation", ByColumn: "relation", Entity: "head"}.get(type(partition))
    if rule is not None:
        owner: dict[int, int] = {}
        for part in parts:
            for value, client in zip(part.columns[rule].tolist(), part.owners().tolist(), strict=True):
                assert owner.setdefault(value, client) == client
    if isinstance(partition, ByColumn):
        assert data.clients is not None
        assert data.clients.to_list() == data.vocabularies["relation"].to_list()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    def said(path: Path, **settings: Any) -> str:
        with pytest.raises(DataError) as caught:
            load(path, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "x").mkdir()
    assert "must hold a file train (.txt, .tsv, .tab, .csv" in said(tmp_path / "x")
    assert "found nothing; rename it, or name a single file in data.path" in said(tmp_path / "x")
    folder = Path(published(tmp_path / "g"))
    (folder / "train.txt").rename(folder / "facts.txt")
    assert "found facts.txt, test.txt, valid.txt" in said(folder)
    (folder / "train.txt").write_text("")
    assert "train.txt must have a header line and rows, found an empty file" in said(folder)
    (folder / "train.txt").write_text("head\trelation\ttail\n")
    assert "train.txt must have rows, found none" in said(folder)
    (folder / "train.txt").write_text("a,likes,b\n")
    assert "must have three cells on a line (head, relation, tail), got 1 where cells are" in said(folder)
    (folder / "train.txt").write_text("subject\tpredicate\tthing\na\tb\tc\n")
    assert "data.columns.tail must name a column of" in said(folder)
    assert "got none; there are 'subject', 'predicate', 'thing'" in said(folder)
    assert "data.columns.tail must name a column of" in said(folder, columns={"tail": "things"})
    assert "got 'things'; there are 'subject', 'predicate', 'thing'; did you mean 'thing'?" in said(
        folder, columns={"tail": "things"}
    )
    (folder / "train.csv").write_text("a,b,c\n")
    assert "must hold one file of training triples, found train.csv, train.txt" in said(folder)
    assert "must be an existing file, found nothing there" in said(tmp_path / "none")
    single = graph(tmp_path, 6)
    assert "nothing is left" in said(Path(single), min_client_count=50)
    pq.write_table(pa.table({"head": [[1]], "relation": ["a"], "tail": ["b"]}), tmp_path / "odd.parquet")
    assert "data.columns.head of" in said(tmp_path / "odd.parquet")


def test_a_client_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.columns.client must name a column of .*train.txt, got 'org'"):
        load(published(tmp_path), columns={"client": "org"})


def test_settings_are_checked(tmp_path: Path) -> None:
    for settings, said in (
        ({"columns": {"subject": "x"}}, r"data.columns must be among head, .* got 'subject'"),
        ({"columns": {"head": ""}}, r"data.columns.head must name a column, or be null, got ''"),
        ({"min_client_count": 0}, r"data.min_client_count must be at least 1, got 0"),
    ):
        with pytest.raises(SettingError, match=said):
            Triples("x", **settings)  # type: ignore[arg-type]
    path = published(tmp_path)
    with pytest.raises(DataError, match=r"iid, column, dirichlet, relation or entity$"):
        load(path, Natural())
    with pytest.raises(SettingError, match=r"at most the number of relations, 2, got 3; lower it"):
        load(path, Relation(3))


@needs_shared
def test_codex() -> None:
    """The published numbers, and relation clients as the studies use them."""
    for num_clients in (5, 10):
        data = load(SHARED, Relation(num_clients))
        assert {name: len(names) for name, names in data.vocabularies.items()} == {
            "entity": 2_034, "relation": 42,
        }  # fmt: skip
        parts = {"train": data.train, **data.held_out}
        assert {name: shards.num_examples for name, shards in parts.items()} == {
            "train": 32_888, "validation": 1_827, "test": 1_828,
            "validation_negatives": 1_827, "test_negatives": 1_828,
        }  # fmt: skip
        assert data.train.num_clients == data.counts["clients"] == num_clients
        assert data.counts["triples_repeated"] == data.counts["test_in_training"] == 0
        owners = {
            (int(relation), int(client))
            for shards in parts.values()
            for relation, client in zip(shards.columns["relation"], shards.owners(), strict=True)
        }
        assert len(owners) == 42
        assert data.clients is not None
        assert "P106" in data.clients.to_list()
    seen = load(SHARED, entities="train")
    assert seen.counts["test_out_of_vocabulary"] == data.counts["test_out_of_vocabulary"] == 0
    with (SHARED / "test.txt").open() as file:
        assert sorted(named(seen, "test")) == sorted(tuple(line.rstrip("\n").split("\t")) for line in file)
