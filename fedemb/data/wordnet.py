"""WordNet's nouns, from its own database files, and the mammals among them, bundled.

``python -m fedemb.data.wordnet DICT_FOLDER FOLDER`` derives the bundled files anew.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from fedemb.data.links import check_shares
from fedemb.data.partition import IID
from fedemb.data.taxonomy import Edges, taxonomy_dataset
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError, SettingError
from fedemb.types import Dataset, Int64, Partition

MAMMAL_ROOT = "mammal.n.01"
# Leaves right below the root, which tell a sex and a pair of tusks rather than a kind of mammal; the
# usual mammal data leave them out, and these are the only two pairs that it lacks.
MAMMAL_EXCLUDE = ("female_mammal.n.01", "tusker.n.01")
MAMMALS_FILE = "mammals.json"  # JSON and Markdown: what a Flower bundle holds

# Names of the lexicographer files by number, as lexnames(5WN) has them, up to the nouns' last.
LEXICOGRAPHER_FILES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event"),
    *("noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object"),
    *("noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
)
MAX_BYTES = 1 << 28  # of a database file inside an archive: WordNet 3.0's largest has 15 MiB


@dataclass(frozen=True)
class Nouns:
    """What ``data.noun`` and ``index.noun`` say.

    Attributes:
        names: Of the synsets, in the order of the file, as NLTK writes them: ``dog.n.01``.
        child, parent: ``(edges,)`` places in ``names``: a synset and its hypernym.
        instance: ``(edges,)`` whether the synset is an instance (``@i``), not a kind (``@``).
        lexicographer: ``(synsets,)`` number of the lexicographer file.
        notice: The licence at the top of the file.
    """

    names: tuple[str, ...]
    child: Int64
    parent: Int64
    instance: Int64
    lexicographer: Int64
    notice: str


def read_nouns(path: str | Path) -> Nouns:
    """All noun synsets and their direct hypernyms.

    A synset is named by its first word in lower case and that word's sense number, which is the
    place of the synset in the word's line of ``index.noun``.

    Args:
        path: WordNet's ``dict`` folder (or the one around it), its ``data.noun`` beside its
            ``index.noun``, or Princeton's ``.tar.gz``.

    Raises:
        DataError: If a file is missing or a line is not as the manual says.

    Reference:
        Princeton University, "wndb(5WN)", WordNet 3.0 manual, 2006.
    """
    files = _files(Path(path))
    senses = dict(_sense(line, where) for line, where in _lines(files, "index.noun"))
    names: list[str] = []
    offsets: dict[int, int] = {}
    lexicographer: list[int] = []
    pointers: list[tuple[int, int, bool]] = []
    for line, where in _lines(files, "data.noun"):
        cells = line.split(" | ", 1)[0].split()
        try:
            offset, first = int(cells[0]), 4 + 2 * int(cells[3], 16)
            word = cells[4].lower()
            names.append(f"{word}.n.{senses[word].index(offset) + 1:02d}")
            lexicographer.append(int(cells[1]))
            ends = range(first + 1, first + 1 + 4 * int(cells[first]), 4)
            hypernyms = [(int(cells[at + 1]), cells[at] == "@i") for at in ends if cells[at] in ("@", "@i")]
        except (ValueError, IndexError, KeyError):
            raise DataError(
                f"{where} must be a synset as wndb(5WN) has it, its first word in index.noun, "
                f"got {line[:60]!r}"
            ) from None
        pointers.extend((len(offsets), target, instance) for target, instance in hypernyms)
        offsets[offset] = len(offsets)
    unknown = next((target for _, target, _ in pointers if target not in offsets), None)
    if unknown is not None:
        raise DataError(
            f"data.noun in {path} must hold every synset it points to, but {unknown:08d} is missing"
        )
    if not names:
        raise DataError(f"data.noun in {path} must hold synsets, found none")
    return Nouns(
        names=tuple(names),
        child=np.array([child for child, _, _ in pointers], dtype=np.int64),
        parent=np.array([offsets[target] for _, target, _ in pointers], dtype=np.int64),
        instance=np.array([instance for _, _, instance in pointers], dtype=np.int64),
        lexicographer=np.array(lexicographer, dtype=np.int64),
        notice=_notice(files["data.noun"]),
    )


def _files(path: Path) -> Mapping[str, bytes]:
    """Contents of ``data.noun`` and ``index.noun``."""
    wanted = ("data.noun", "index.noun")
    if path.is_file() and path.name != "data.noun":
        return _unpacked(path, wanted)
    folder = path.parent if path.is_file() else path
    folder = next((place for place in (folder, folder / "dict") if (place / "data.noun").is_file()), folder)
    for name in wanted:
        if not (folder / name).is_file():
            raise DataError(
                f"data.path must be WordNet's dict folder, its data.noun or Princeton's .tar.gz, got {path}, "
                f"where {name} is missing; Debian's wordnet-base puts the files into /usr/share/wordnet"
            )
    return {name: (folder / name).read_bytes() for name in wanted}


def _unpacked(path: Path, wanted: Sequence[str]) -> Mapping[str, bytes]:
    """Files out of an archive, read in memory: nothing is extracted to disk."""
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in wanted and member.isfile() and member.size <= MAX_BYTES:
                    content = archive.extractfile(member)
                    files[name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"data.path must be an archive with WordNet's dict, got {path}: {error}") from None
    for name in wanted:
        if name not in files:
            raise DataError(
                f"data.path must be an archive with WordNet's dict, got {path}, where {name} is missing"
            )
    return files


def _lines(files: Mapping[str, bytes], name: str) -> list[tuple[str, str]]:
    """Lines after the licence, and where each one stands."""
    text = files[name].decode("utf-8", errors="replace")
    return [
        (line, f"line {number} of {name}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip() and not line.startswith("  ")
    ]


def _sense(line: str, where: str) -> tuple[str, list[int]]:
    """A word and the offsets of its synsets in the order of its senses."""
    cells = line.split()
    try:
        return cells[0], [int(offset) for offset in cells[-int(cells[2]) :]]
    except (ValueError, IndexError):
        raise DataError(f"{where} must be a word as wndb(5WN) has it, got {line[:60]!r}") from None


def _notice(data: bytes) -> str:
    """The licence without the line numbers before each line."""
    lines = (line for line in data.decode("utf-8", errors="replace").split("\n") if line.startswith("  "))
    return "\n".join(line.strip().partition(" ")[2].rstrip() for line in lines) + "\n"


@dataclass(frozen=True)
class WordNet:
    """WordNet's noun hierarchy, from its own files.

    ``partition=column`` and ``dirichlet`` may go by the column ``lexicographer``: the file
    (``noun.animal``) that the child was written in, 26 in all.

    Attributes:
        path: WordNet's ``dict`` folder, its ``data.noun``, or Princeton's ``.tar.gz``.
        root: Only this synset and what is below it (``mammal.n.01``); None: all nouns.
        exclude: Synsets to leave out. With root ``mammal.n.01`` the usual mammal data need
            ``[female_mammal.n.01, tusker.n.01]`` (``MAMMAL_EXCLUDE``): 6,540 pairs over 1,180
            synsets instead of 6,542 over 1,182.
        instances: Whether instances (``@i``) count as children as kinds (``@``) do: 743,241 pairs
            over 82,115 nouns instead of 663,508 over 74,401.
        closure: Whether examples are all pairs of the transitive closure, or direct edges alone.
        validation_share: For link prediction: held out of the pairs that are not direct edges. 0: all
            pairs are for training, and the question is how well they are reconstructed.
        test_share: The same for testing.
    """

    path: str
    root: str | None = None
    exclude: Sequence[str] = ()
    instances: bool = True
    closure: bool = True
    validation_share: float = 0.0
    test_share: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise SettingError(
                f"data.exclude must be a list of synsets, got {self.exclude!r}; write [{self.exclude}]"
            )
        check_shares(self.validation_share, self.test_share, self.closure)

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The hierarchy as a data set.

        Raises:
            DataError: If the files are not WordNet's, or there is no such synset.
            SettingError: If the partition has too many clients for the data.
        """
        return self._prepare(read_nouns(self.path), partition, seed)

    def _prepare(self, nouns: Nouns, partition: Partition, seed: int) -> Dataset:
        counts = {"synsets_read": len(nouns.names), "edges_read": len(nouns.child)}
        order = np.argsort(np.array(nouns.names), kind="stable")
        place = np.argsort(order)
        chosen = np.ones(len(nouns.child), dtype=np.bool_) if self.instances else nouns.instance == 0
        edges = Edges(
            names=Vocabulary.of([nouns.names[synset] for synset in order]),
            child=place[nouns.child[chosen]],
            parent=place[nouns.parent[chosen]],
            labels={"lexicographer": nouns.lexicographer[order]},
            label_names={"lexicographer": Vocabulary.of(LEXICOGRAPHER_FILES)},
        )
        return taxonomy_dataset(
            edges,
            partition,
            seed,
            counts,
            self.closure,
            self.root,
            self.exclude,
            self.validation_share,
            self.test_share,
        )


@dataclass(frozen=True)
class Mammals:
    """The mammals of WordNet 3.0, bundled: 6,540 pairs (child, any ancestor) over 1,180 synsets.

    Attributes:
        validation_share: For link prediction: held out of the 5,360 pairs that are not direct edges. 0:
            all pairs are for training, and the question is how well they are reconstructed.
        test_share: The same for testing.
    """

    validation_share: float = 0.0
    test_share: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self.validation_share, self.test_share, closure=True)

    def load(self, partition: Partition, seed: int) -> Dataset:
        """The mammals as a data set.

        Raises:
            DataError: If the partition does not fit the data.
            SettingError: If the partition has too many clients for the data.
        """
        text = (resources.files("fedemb.data") / "bundled" / MAMMALS_FILE).read_text(encoding="utf-8")
        ancestors: dict[str, list[str]] = json.loads(text)
        names = Vocabulary.of(sorted({*ancestors, *(name for above in ancestors.values() for name in above)}))
        child = names.index([name for name, above in ancestors.items() for _ in above])
        parent = names.index([name for above in ancestors.values() for name in above])
        return taxonomy_dataset(
            Edges(names, child, parent),
            partition,
            seed,
            {"pairs_read": len(child)},
            validation_share=self.validation_share,
            test_share=self.test_share,
        )


def bundle(dictionary: str | Path, folder: str | Path) -> None:
    """Writes ``mammals.json`` (child to all its ancestors, the same bytes each time) and ``WORDNET-LICENSE.md``.

    Raises:
        DataError: If the files are not WordNet's.
    """
    nouns = read_nouns(dictionary)
    data = WordNet(str(dictionary), MAMMAL_ROOT, MAMMAL_EXCLUDE)._prepare(nouns, IID(1), seed=0)
    names = data.vocabularies["node"].to_list()
    train = data.train.columns
    ancestors: dict[str, list[str]] = {}
    for child, parent in zip(train["child"], train["parent"], strict=True):
        ancestors.setdefault(names[child], []).append(names[parent])
    lines = (
        f"{json.dumps(child)}: {json.dumps(sorted(above))}" for child, above in sorted(ancestors.items())
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MAMMALS_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    (folder / "WORDNET-LICENSE.md").write_text(nouns.notice, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m fedemb.data.wordnet DICT_FOLDER FOLDER")
    try:
        bundle(sys.argv[1], sys.argv[2])
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
