"""Taxonomies from files: pairs, clients, subgraphs, counts and refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedemb.data.partition import IID, Natural, Subtree
from fedemb.data.taxonomy import TaxonomyFile
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "wordnet"
COLUMNS = {"child": "child", "parent": "parent", "client": None}
OWNED = {"child": "child", "parent": "parent", "client": "owner"}
TREE = "child,parent\nmammal,animal\ndog,mammal\ncat,mammal\npuppy,dog\npet,animal\ndog,pet\noak,plant\n"


def written(folder: Path, content: str) -> str:
    path = folder / "edges.csv"
    path.write_text(content)
    return str(path)


def pairs_of(data: Dataset, client: int | None = None) -> set[tuple[str, str]]:
    shards = data.train if client is None else data.train.take(np.array([client]))
    name = data.vocabularies["node"].name
    child, parent = shards.columns["child"], shards.columns["parent"]
    return {(name(a), name(b)) for a, b in zip(child, parent, strict=True)}


def test_the_closure_of_a_file(tmp_path: Path) -> None:
    data = TaxonomyFile(written(tmp_path, TREE), COLUMNS).load(IID(2), 0)
    assert data.vocabularies["node"].to_list() == [
        "animal",
        "cat",
        "dog",
        "mammal",
        "oak",
        "pet",
        "plant",
        "puppy",
    ]
    edges = {tuple(line.split(",")) for line in TREE.split()[1:]}
    assert pairs_of(data) == edges | {
        ("dog", "animal"),
        ("cat", "animal"),
        ("puppy", "mammal"),
        ("puppy", "pet"),
        ("puppy", "animal"),
    }
    assert data.train.num_clients == 2
    assert data.clients is None
    assert data.entity_of == {"child": "node", "parent": "node"}
    assert data.train.columns["child"].dtype == data.train.columns["parent"].dtype == np.int64
    taxonomy = data.taxonomy
    assert taxonomy is not None
    assert len(taxonomy.child) == data.train.num_examples == 12
    assert taxonomy.direct.sum() == 7
    depth = dict(zip(data.vocabularies["node"].to_list(), taxonomy.depth.tolist(), strict=True))
    assert depth == {"animal": 0, "cat": 2, "dog": 2, "mammal": 1, "oak": 1, "pet": 1, "plant": 0, "puppy": 3}


def test_edges_alone_keep_the_whole_taxonomy(tmp_path: Path) -> None:
    data = TaxonomyFile(written(tmp_path, TREE), COLUMNS, closure=False).load(IID(1), 0)
    assert pairs_of(data) == {tuple(line.split(",")) for line in TREE.split()[1:]}
    assert data.taxonomy is not None
    assert len(data.taxonomy.child) == 12


def test_below_a_root_without_some(tmp_path: Path) -> None:
    path = written(tmp_path, TREE)
    data = TaxonomyFile(path, COLUMNS, root="mammal").load(IID(1), 0)
    assert pairs_of(data) == {("dog", "mammal"), ("cat", "mammal"), ("puppy", "dog"), ("puppy", "mammal")}
    assert data.taxonomy is not None
    assert data.taxonomy.depth.tolist() == [1, 1, 0, 2]
    data = TaxonomyFile(path, COLUMNS, root="mammal", exclude=["dog", "oak"]).load(IID(1), 0)
    assert pairs_of(data) == {("cat", "mammal"), ("puppy", "mammal")}
    assert data.taxonomy is not None
    assert data.taxonomy.direct.all()
    data = TaxonomyFile(path, COLUMNS, root="mammal", closure=False).load(IID(1), 0)
    assert pairs_of(data) == {("dog", "mammal"), ("cat", "mammal"), ("puppy", "dog")}


def test_a_client_holds_the_pairs_that_start_with_its_own_edges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owned = "child,parent,owner\nmammal,animal,A\ndog,mammal,B\ndog,pet,C\npet,animal,A\n"
    owned += "puppy,dog,B\ndog,mammal,B\n"
    path = written(tmp_path, owned + "puppy,dog,D\noak,plant,E\n")
    source = TaxonomyFile(path, OWNED, root="animal")
    data = source.load(Natural(), 0)
    assert data.clients is not None
    assert data.clients.to_list() == ["A", "B", "C", "D"], "E has nothing below the root"
    puppy = {("puppy", "dog"), ("puppy", "mammal"), ("puppy", "pet"), ("puppy", "animal")}
    assert pairs_of(data, 0) == {("mammal", "animal"), ("pet", "animal")}
    assert pairs_of(data, 1) == {("dog", "mammal"), ("dog", "animal"), *puppy}
    assert pairs_of(data, 2) == {("dog", "pet"), ("dog", "animal")}
    assert pairs_of(data, 3) == puppy
    assert data.train.sizes.tolist() == [2, 6, 2, 4], "each pair once"
    assert data.counts["edges_repeated"] == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        assert pairs_of(source.load(IID(2), 0), 0) == pairs_of(data, 0)
    assert "the partition is not used" in caplog.text
    both = TaxonomyFile(written(tmp_path, owned + "dog,pet,B\n"), OWNED).load(Natural(), 0)
    assert both.train.sizes.tolist() == [2, 7, 2], "an ancestor on two ways counts once"
    path = written(tmp_path, owned + "puppy,dog,D\noak,plant,E\n")
    data = TaxonomyFile(path, OWNED, closure=False).load(Natural(), 0)
    assert pairs_of(data, 1) == {("dog", "mammal"), ("puppy", "dog")}
    assert pairs_of(data, 4) == {("oak", "plant")}


def test_what_is_dropped_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "child,parent\na,b\na,b\nc,c\nb,\n,b\na\nd,b\n")
    with caplog.at_level(logging.WARNING, logger="fedemb"):
        data = TaxonomyFile(path, COLUMNS).load(IID(1), 0)
    assert pairs_of(data) == {("a", "b"), ("d", "b")}
    assert data.counts == {
        "rows_read": 7,
        "rows_malformed": 1,
        "rows_missing_child": 1,
        "rows_missing_parent": 1,
        "edges_self_loop": 1,
        "edges_repeated": 1,
    }
    assert f"{path}, line 5: no parent in column 'parent'" in caplog.text
    assert f"{path}, line 7: expected 2 cells, got 1" in caplog.text


def test_parquet_with_numbers_as_names(tmp_path: Path) -> None:
    path = tmp_path / "edges.parquet"
    pq.write_table(pa.table({"child": [1, 2], "parent": [10, 1]}), path)
    data = TaxonomyFile(str(path), COLUMNS).load(Subtree(2), 0)
    assert pairs_of(data) == {("1", "10"), ("2", "1"), ("2", "10")}
    assert data.clients is not None
    assert set(data.clients.to_list()) <= {"1", "2", "10"}
    pq.write_table(pa.table({"child": [[1], [2]], "parent": [10, 1]}), path)
    with pytest.raises(
        DataError, match=r"data\.columns\.child of .* must hold names, got values of type list"
    ):
        TaxonomyFile(str(path), COLUMNS).load(IID(1), 0)


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("child,parent\na,b\nb,c\nc,a\n", {}, "must have no cycle, got a -> b -> c -> a; remove one"),
        (
            TREE,
            {"root": "mamal"},
            "data.root must name a node of the taxonomy, got 'mamal'; did you mean 'mammal'?",
        ),
        (
            TREE,
            {"exclude": ["qqq"]},
            "data.exclude must name a node of the taxonomy, got 'qqq'; there are 8 others",
        ),
        (TREE, {"root": "oak"}, "an edge between two different nodes, got none at or below data.root=oak"),
        ("child,parent\na,a\n", {}, "must have an edge between two different nodes, got none"),
        ("kid,parent\na,b\n", {}, "data.columns.child must name a column of"),
    ],
)
def test_bad_taxonomies_are_refused(
    tmp_path: Path, content: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        TaxonomyFile(written(tmp_path, content), COLUMNS, **settings).load(IID(1), 0)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": {"child": "a", "parents": "b"}}, "got 'parents'; did you mean data.columns.parent?"),
        ({"columns": {"child": "a", "parent": None}}, "data.columns.parent must name a column, got None"),
        ({"columns": {"parent": "a"}}, "data.columns.child must name a column, got None"),
        (
            {"columns": COLUMNS, "exclude": "dog"},
            "data.exclude must be a list of nodes, got 'dog'; write [dog]",
        ),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        TaxonomyFile("edges.csv", **settings)
    assert said in str(caught.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there: WordNet's edges are NOT tested")
def test_the_closure_of_all_nouns_has_the_published_size() -> None:
    data = TaxonomyFile(str(SHARED / "noun_direct.csv.gz"), COLUMNS).load(IID(10), 0)
    assert data.counts["rows_read"] == 84_427
    assert data.train.num_examples == 743_241
    assert len(data.vocabularies["node"]) == 82_115
