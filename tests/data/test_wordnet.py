"""WordNet's own files: the format, the known sizes, and the bundled mammals."""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedemb.data import wordnet
from fedemb.data.partition import IID, ByColumn, Subtree
from fedemb.data.wordnet import (
    LEXICOGRAPHER_FILES,
    MAMMAL_EXCLUDE,
    MAMMAL_ROOT,
    MAMMALS_FILE,
    Mammals,
    Nouns,
    WordNet,
    bundle,
    read_nouns,
)
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "wordnet"
BUNDLED = Path(wordnet.__file__).parent / "bundled"
PLACES = (os.environ.get("FEDEMB_WORDNET_DICT", ""), "/usr/share/wordnet", "/usr/share/wordnet/dict")
DICT = next((Path(place) for place in PLACES if place and (Path(place) / "data.noun").is_file()), None)

needs_wordnet = pytest.mark.skipif(
    DICT is None,
    reason="WordNet's files are NOT tested: set FEDEMB_WORDNET_DICT to the folder with data.noun",
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"{SHARED} is not there: names and mammals are NOT compared with it"
)

# Two words for one synset, a capital, sense numbers out of order, an instance, a word number in hexadecimal.
NOTICE = "  1 This is a licence  \n  2  \n  3 of three lines.  \n"
DATA = NOTICE + (
    "00000100 03 n 01 entity 0 001 ~ 00000200 n 0000 | that which is  \n"
    "00000200 05 n 02 Dog 0 domestic_dog 0 002 @ 00000100 n 0000 + 00009999 v 0101 | a | b  \n"
    "00000300 18 n 01 dog 1 001 @ 00000100 n 0000 | a dull person  \n"
    "00000400 18 n 0a Rex 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 "
    "002 @i 00000200 n 0000 @ 00000300 n 0000 | one dog  \n"
)
INDEX = NOTICE + (
    "dog n 2 2 @ ~ 2 1 00000300 00000200  \n"
    "domestic_dog n 1 1 @ 1 0 00000200  \n"
    "entity n 1 1 ~ 1 1 00000100  \n"
    "rex n 1 1 @i 1 0 00000400  \n"
)


def written(folder: Path, data: str = DATA, index: str = INDEX) -> Path:
    (folder / "dict").mkdir(exist_ok=True)
    (folder / "dict" / "data.noun").write_text(data)
    (folder / "dict" / "index.noun").write_text(index)
    return folder / "dict"


def pairs_of(data: Dataset) -> set[tuple[str, str]]:
    names = data.vocabularies["node"].to_list()
    child, parent = (data.train.columns[name].tolist() for name in ("child", "parent"))
    return {(names[a], names[b]) for a, b in zip(child, parent, strict=True)}


def archive(folder: Path, members: dict[str, str]) -> Path:
    with tarfile.open(folder / "WordNet-3.0.tar.gz", "w:gz") as file:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            file.addfile(info, io.BytesIO(text.encode()))
    return folder / "WordNet-3.0.tar.gz"


def test_the_format_from_a_folder_a_file_and_an_archive(tmp_path: Path) -> None:
    folder = written(tmp_path)
    packed = archive(tmp_path, {"WordNet-3.0/dict/data.noun": DATA, "WordNet-3.0/dict/index.noun": INDEX})
    for path in (folder, tmp_path, folder / "data.noun", packed):
        nouns = read_nouns(path)
        assert nouns.names == ("entity.n.01", "dog.n.02", "dog.n.01", "rex.n.01")
        assert nouns.child.tolist() == [1, 2, 3, 3]
        assert nouns.parent.tolist() == [0, 0, 1, 2]
        assert nouns.instance.tolist() == [0, 0, 1, 0]
        assert nouns.lexicographer.tolist() == [3, 5, 18, 18]
        assert nouns.notice == "This is a licence\n\nof three lines.\n"


def test_the_source(tmp_path: Path) -> None:
    folder = str(written(tmp_path))
    data = WordNet(folder).load(ByColumn("lexicographer"), 0)
    assert len(data.train.columns["child"]) == 5
    assert data.clients is not None
    assert data.clients.to_list() == ["noun.animal", "noun.person"]
    assert data.train.sizes.tolist() == [1, 4]
    assert data.counts == {"synsets_read": 4, "edges_read": 4, "edges_self_loop": 0, "edges_repeated": 0}
    links = WordNet(folder, validation_share=0.9).load(ByColumn("lexicographer"), 0)
    assert links.held_out["validation"].sizes.tolist() == [0, 1]
    assert pairs_of(data) - pairs_of(links) == {("rex.n.01", "entity.n.01")}, "all other pairs are direct"
    assert (links.counts["validation_pairs"], links.counts["test_pairs"]) == (1, 0)
    kinds = WordNet(folder, instances=False).load(IID(1), 0)
    assert pairs_of(kinds) == pairs_of(data) - {("rex.n.01", "dog.n.02")}
    assert pairs_of(WordNet(folder, root="dog.n.02").load(IID(1), 0)) == {("rex.n.01", "dog.n.02")}
    assert ("rex.n.01", "entity.n.01") not in pairs_of(WordNet(folder, closure=False).load(IID(1), 0))


@pytest.mark.parametrize(
    ("data", "index", "said"),
    [
        (
            DATA + "00000500 18 n 01 cat 0 000 | cat\n",
            INDEX,
            "line 8 of data.noun must be a synset as wndb(5WN)",
        ),
        (DATA.replace("n 0a", "n zz"), INDEX, "line 7 of data.noun must be a synset"),
        (DATA.replace("002 @i 00000200", "002 @i 00000201"), INDEX, "points to, but 00000201 is missing"),
        (DATA, INDEX + "cat n x\n", "line 8 of index.noun must be a word as wndb(5WN) has it, got 'cat n x'"),
        (NOTICE, INDEX, "must hold synsets, found none"),
        ("00000100 03 n\n", INDEX, "line 1 of data.noun must be a synset"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: str, index: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_nouns(written(tmp_path, data, index))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 1, "usage: python -m fedemb.data.wordnet"),
        (["nowhere", "out"], 2, "data.path must be WordNet's dict"),
    ],
)
def test_the_command_is_plain_about_mistakes(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    command = [sys.executable, "-m", "fedemb.data.wordnet", *(str(tmp_path / name) for name in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"where data\.noun is missing; Debian's wordnet-base"):
        read_nouns(tmp_path / "nowhere")
    folder = written(tmp_path)
    (folder / "index.noun").unlink()
    with pytest.raises(DataError, match=r"where index\.noun is missing"):
        read_nouns(folder / "data.noun")
    with pytest.raises(DataError, match=r"archive with WordNet's dict, got .* where index\.noun is missing"):
        read_nouns(archive(tmp_path, {"dict/data.noun": DATA}))
    other = tmp_path / "other.zip"
    other.write_text("no archive")
    with pytest.raises(DataError, match="must be an archive with WordNet's dict"):
        read_nouns(other)
    monkeypatch.setattr(wordnet, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"where data\.noun is missing"):
        read_nouns(archive(tmp_path, {"dict/data.noun": DATA, "dict/index.noun": INDEX}))
    with pytest.raises(SettingError, match=r"data.exclude must be a list of synsets, got 'a'; write \[a\]"):
        WordNet("dict", exclude="a")


def test_the_bundled_mammals() -> None:
    data = Mammals().load(IID(1), 0)
    assert data.train.num_examples == 6_540
    assert len(data.vocabularies["node"]) == 1_180
    assert data.taxonomy is not None
    assert data.taxonomy.direct.sum() == 1_180
    roots = np.flatnonzero(data.taxonomy.depth == 0)
    assert [data.vocabularies["node"].name(int(root)) for root in roots] == [MAMMAL_ROOT]
    notice = (BUNDLED / "WORDNET-LICENSE.md").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    data = Mammals().load(Subtree(40), 0)
    assert data.clients is not None
    assert len(data.clients) == 40
    assert data.train.sizes.min() > 100
    assert data.train.sizes.max() < 250


@needs_shared
def test_the_bundle_is_the_list_in_use_and_the_licence_is_verbatim() -> None:
    with (SHARED / "mammal_closure.csv").open() as file:
        known = {(row["id1"], row["id2"]) for row in csv.DictReader(file)}
    assert pairs_of(Mammals().load(IID(1), 0)) == known
    debian = (SHARED / "LICENCE-wordnet-debian-copyright.txt").read_text().split("License: WordNet3.0\n")[1]
    debian = debian.split("Files: debian/*")[0]
    words = [line.strip().removesuffix(" .") for line in debian.strip().splitlines()]
    notice = (BUNDLED / "WORDNET-LICENSE.md").read_text().strip().splitlines()
    assert notice == ["" if line == "." else line for line in words]


@pytest.fixture(scope="module")
def nouns() -> Nouns:
    assert DICT is not None
    return read_nouns(DICT)


@needs_wordnet
@needs_shared
def test_names_and_edges_are_the_ones_in_use(nouns: Nouns) -> None:
    with gzip.open(SHARED / "noun_direct.csv.gz", "rt") as file:
        known = {(row["child"], row["parent"]) for row in csv.DictReader(file)}
    assert len(nouns.names) == len(set(nouns.names)) == 82_115
    assert len(nouns.child) == 84_427
    assert {(nouns.names[a], nouns.names[b]) for a, b in zip(nouns.child, nouns.parent, strict=True)} == known


@needs_wordnet
def test_lexicographer_files_have_their_names(nouns: Nouns) -> None:
    written_in = dict(zip(nouns.names, nouns.lexicographer.tolist(), strict=True))
    known = {"wind": "phenomenon", "rose": "plant", "money": "possession", "oxidation": "process"}
    known |= {"triangle": "shape", "sleep": "state", "water": "substance", "winter": "time", "body": "body"}
    assert {word: LEXICOGRAPHER_FILES[written_in[f"{word}.n.01"]] for word in known} == {
        word: f"noun.{name}" for word, name in known.items()
    }
    assert LEXICOGRAPHER_FILES[written_in["entity.n.01"]] == "noun.Tops"


@needs_wordnet
@pytest.mark.parametrize(
    ("settings", "num_nodes", "num_pairs"),
    [
        ({}, 82_115, 743_241),
        ({"instances": False}, 74_401, 663_508),
        ({"root": MAMMAL_ROOT}, 1_182, 6_542),
        ({"root": MAMMAL_ROOT, "exclude": MAMMAL_EXCLUDE}, 1_180, 6_540),
    ],
)
def test_the_known_sizes(settings: dict[str, Any], num_nodes: int, num_pairs: int) -> None:
    data = WordNet(str(DICT), **settings).load(ByColumn("lexicographer"), 0)
    assert len(data.vocabularies["node"]) == num_nodes
    assert data.train.num_examples == num_pairs
    assert data.clients is not None
    if not settings:
        assert len(data.clients) == 26


@needs_wordnet
def test_the_bundle_comes_out_of_wordnet_and_twice_the_same(tmp_path: Path) -> None:
    assert DICT is not None
    bundle(DICT, tmp_path / "first")
    bundle(DICT, tmp_path / "second")
    for name in (MAMMALS_FILE, "WORDNET-LICENSE.md"):
        first = (tmp_path / "first" / name).read_bytes()
        assert first == (tmp_path / "second" / name).read_bytes()
        assert first == (BUNDLED / name).read_bytes()
