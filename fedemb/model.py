"""A trained model on disk and in memory: tables as safetensors, names as Parquet, facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.data.cells import show_time
from fedemb.data.shards import Shards
from fedemb.data.vocabulary import Vocabulary
from fedemb.errors import DataError
from fedemb.gaussian import Gaussian, split
from fedemb.report.metrics_log import read_metrics
from fedemb.similarity import similarity
from fedemb.types import Dataset, Table


def save_model(
    folder: Path,
    tables: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    specs: tuple[Table, ...],
    vocabularies: Mapping[str, Vocabulary],
    facts: Mapping[str, Any],
    fitted: Mapping[str, Tensor],
) -> None:
    """Writes ``tables.safetensors``, ``dense.safetensors``, a Parquet file of names per entity, and ``model.json``.

    ``facts`` go to ``model.json``, what an evaluation ``fitted`` to the model (``types.Fitted``) to
    ``fitted.safetensors``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fitted.safetensors").unlink(missing_ok=True)  # to the model that stood here before
    for name, tensors in (("tables", tables), ("dense", dense), ("fitted", fitted)):
        if tensors:
            plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            write_atomically(folder / f"{name}.safetensors", partial(save_file, plain))
    for entity, vocabulary in vocabularies.items():
        columns = {"id": np.arange(len(vocabulary)), "name": vocabulary.names}
        if vocabulary.counts is not None:
            columns["count"] = vocabulary.counts
        table = pa.table(columns)
        write_atomically(folder / f"{entity}.parquet", partial(pq.write_table, table))
    described = [
        {
            "name": t.name,
            "entity": t.entity,
            "rows": t.num_rows,
            "slices": t.num_slices,
            "dim": t.dim,
            "manifold": t.manifold.name,
            "curvature": t.manifold.curvature,
            "shared": t.shared,
            **({"prior_precision": t.manifold.prior_precision} if isinstance(t.manifold, Gaussian) else {}),
        }
        for t in specs
    ]
    text = json.dumps({"format": 1, "tables": described, **facts}, indent=2)
    write_atomically(folder / "model.json", lambda path: path.write_text(text))


@dataclass(frozen=True)
class Run:
    """A finished run.

    >>> import fedemb  # doctest: +SKIP
    >>> ids, matrix = fedemb.load("runs/mine").table("node")  # doctest: +SKIP

    Attributes:
        folder: Its run folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "model" / "model.json").is_file():
            raise DataError(
                f"{self.folder} must be the folder of a finished run, but model/model.json is missing"
            )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``."""
        loaded: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return loaded

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """``metrics.jsonl``: a row for each round."""
        return read_metrics(self.folder)

    @cached_property
    def _model(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "model" / "model.json").read_text())
        return loaded

    @property
    def facts(self) -> Mapping[str, Any]:
        """``model.json``: the tables in words, and what the training data looked like."""
        return self._model

    @property
    def name(self) -> str:
        """Which trained model the folder holds: the same words, the same model."""
        return f"{self._model['config_digest']} after {self._model['rounds']} rounds"

    @cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Names of the rows, and how often each stood in the training data, per entity of a shared table."""
        found = {}
        for entity in dict.fromkeys(table["entity"] for table in self._model["tables"] if table["shared"]):
            columns = pq.read_table(self.folder / "model" / f"{entity}.parquet")
            counts = columns["count"].to_numpy() if "count" in columns.column_names else None
            found[entity] = Vocabulary(columns["name"].combine_chunks(), counts)
        return found

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Shared tables and dense parameters by name."""
        dense = self.folder / "model" / "dense.safetensors"
        tables = load_file(self.folder / "model" / "tables.safetensors")
        return tables, load_file(dense) if dense.is_file() else {}

    def fitted(self) -> dict[str, Tensor]:
        """What an evaluation fitted to the model, such as ``calibration/temperature``; nothing if it fits nothing."""
        path = self.folder / "model" / "fitted.safetensors"
        return load_file(path) if path.is_file() else {}

    def without_examples(self) -> Dataset:
        """The data that the run was trained on, less all examples: what its task can be built from again.

        Raises:
            DataError: If the folder does not say enough of them.
        """
        if "columns" not in self._model:
            raise DataError(f"{self.folder} does not say what data it was trained on; train it again")
        entity_of = dict(self._model["entity_of"])
        for column, entity in entity_of.items():
            if entity not in self.vocabularies:
                raise DataError(f"{self.folder} holds no names of {entity}, which column {column} is made of")
        columns = {name: np.zeros(0, dtype=dtype) for name, dtype in self._model["columns"].items()}
        span, slices = self._model["span"], self._model.get("slices")
        return Dataset(
            train=Shards(columns, np.zeros(1, dtype=np.int64)),
            vocabularies=self.vocabularies,
            entity_of=entity_of,
            span=None if span is None else (int(span[0]), int(span[1])),
            slices=None if slices is None else np.array(slices, dtype=np.int64),
        )

    @property
    def tables(self) -> list[str]:
        """Names of the shared tables, the main one first."""
        return [table["name"] for table in self._model["tables"] if table["shared"]]

    def table(self, name: str) -> tuple[list[str], npt.NDArray[Any]]:
        """Names of the rows and the matrix ``(rows, coordinates)`` of a table; of Gaussian rows, their means.

        A table with rows for each slice of time has the names ``entity@2011-03-01``: the day that the slice begins.

        Raises:
            KeyError: If there is no such table.
        """
        if name not in self.tables:
            raise KeyError(f"table must be one of {', '.join(self.tables)}, got {name!r}")
        spec = next(t for t in self._model["tables"] if t["name"] == name)
        ids = pq.read_table(self.folder / "model" / f"{spec['entity']}.parquet")["name"].to_pylist()
        if spec.get("slices", 1) > 1:
            days = [show_time(int(begin))[:10] for begin in self._model["slices"][:-1]]
            ids = [f"{own}@{day}" for own in ids for day in days]
        matrix = self._matrix(name)
        return ids, (split(matrix)[0] if spec["manifold"] == "gaussian" else matrix).numpy()

    def precision(self, name: str) -> npt.NDArray[Any]:
        """Precisions ``(rows, dim)`` of a table's Gaussian rows, beside the means of ``table``.

        Raises:
            KeyError: If there is no such table, or its rows are none.
        """
        return split(self._gaussian(name))[1].numpy()

    def similarity(
        self, name: str, first: Sequence[str], second: Sequence[str], level: float = 0.9
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Expected cosines ``(pairs,)`` of Gaussian rows, and the ends of the intervals that hold them.

        Args:
            name: Of the table.
            first, second: Names of the rows of each pair.
            level: Probability that an interval holds the cosine.

        Raises:
            KeyError: If there is no such table or row, or its rows are not Gaussian.
            ValueError: If ``level`` is out of range.
        """
        matrix, places = self._gaussian(name), {own: at for at, own in enumerate(self.table(name)[0])}
        for own in (*first, *second):
            if own not in places:
                raise KeyError(f"table {name} has no row {own!r}")
        pairs = [matrix[[places[own] for own in names]] for names in (first, second)]
        found = similarity(pairs[0], pairs[1], level)
        return found.value.numpy(), found.low.numpy(), found.high.numpy()

    def _matrix(self, name: str) -> Tensor:
        return load_file(self.folder / "model" / "tables.safetensors")[name]

    def _gaussian(self, name: str) -> Tensor:
        gaussian = [t["name"] for t in self._model["tables"] if t["manifold"] == "gaussian"]
        if name not in gaussian:
            among = ", ".join(gaussian) or "none of this run"
            raise KeyError(f"table must have Gaussian rows, which are those of {among}; got {name!r}")
        return self._matrix(name)


def load(folder: str | Path) -> Run:
    """A finished run.

    Raises:
        DataError: If the folder holds none.
    """
    return Run(Path(folder))
