"""Records as they stand in a file: cells by role, before anything is made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedemb.data.columns import resolve_columns
from fedemb.data.events import show_counts
from fedemb.data.parts import PartRule
from fedemb.data.record_splits import OUT_OF_DISTRIBUTION, check_one_split, published
from fedemb.data.tabular import locate, read_columns
from fedemb.errors import DataError
from fedemb.types import Partition

logger = logging.getLogger("fedemb")

ROLES = ("id", "client", "label", "time", "split", "group")
PART = "part "  # before the names of roles that are components
PARTITION = "partition"  # the role of what the partition goes by
Rows = Mapping[str, pa.Array]


@dataclass(frozen=True)
class RecordReading:
    """How a file of records is read.

    Attributes:
        path, columns, label, delimiter: As in ``Records``.
        rules: Of the components.
    """

    path: str
    columns: Mapping[str, str | None]
    rules: Mapping[str, PartRule]
    label: str
    delimiter: str | None

    def rows(self, partition: Partition, counts: MutableMapping[str, int]) -> Rows:
        """Cells ``(records,)`` of each role: of ``ROLES`` those that there are, ``part <component>``, and ``partition``
        where that goes by a column. Splits are numbers.

        Raises:
            DataError: If the file or a column is not as it must be.
        """
        split = bool(self.columns.get("split"))
        columns = {**self.columns, "time": ""} if split else self.columns
        found = resolve_columns(self.path, columns, ROLES, ("label",), self.delimiter)
        roles = found or {"label": "label"}
        roles |= {PART + name: rule.column or name for name, rule in self.rules.items()}
        column = getattr(partition, "column", None)
        if column is not None and "client" not in found and column != "label":
            roles[PARTITION] = column
        rows = self._read(roles, {"id"} if split else {"id", "client", PARTITION}, counts)
        self._check_lists(rows, roles)
        return self._as_published(rows, roles, counts) if split else rows

    def _read(self, roles: Mapping[str, str], required: set[str], counts: MutableMapping[str, int]) -> Rows:
        several = {PART + name for name, rule in self.rules.items() if rule.kind in ("multi", "text")}
        try:
            batches = list(
                read_columns(
                    self.path,
                    roles,
                    delimiter=self.delimiter,
                    counts=counts,
                    required=frozenset(required & roles.keys()),
                    lists=frozenset(several | ({"label"} if self.label == "multi" else set())),
                )
            )
        except DataError as error:
            message = str(error)
            for name in self.rules:
                message = message.replace(f"data.columns.{PART}{name} ", f"data.components.{name}.column ")
            raise DataError(message.replace(f"data.columns.{PARTITION} ", "partition.column ")) from None
        if not batches:
            raise DataError(
                f"data file {self.path} must have usable records, found none: {show_counts(counts)}"
            )
        table = pa.Table.from_batches(batches).combine_chunks()
        return {role: table.column(role).combine_chunks() for role in roles}

    def _check_lists(self, rows: Rows, roles: Mapping[str, str]) -> None:
        for name, rule in self.rules.items():
            kind = rows[PART + name].type
            if pa.types.is_nested(kind) and (rule.kind not in ("multi", "text") or not _is_list(kind)):
                raise DataError(
                    f"data.components.{name} must be of kind multi where column {roles[PART + name]!r} of {self.path} "
                    f"holds lists, got {rule.kind} and {kind}"
                )
        if pa.types.is_nested(rows["label"].type) and self.label != "multi":
            raise DataError(
                f"data.label must be multi where column {roles['label']!r} of {self.path} holds lists, got {self.label}"
            )

    def _as_published(self, rows: Rows, roles: Mapping[str, str], counts: MutableMapping[str, int]) -> Rows:
        """The rows, their splits checked, without those that have no client, unless they are out of distribution."""

        def where(role: str) -> Callable[[str], str]:
            return lambda value: locate(self.path, roles[role], value, self.delimiter)

        split = published(rows["split"].cast(pa.string()), where("split"))
        if "id" in rows:
            check_one_split(rows["id"].cast(pa.string()), split, where("id"))
        whole = np.ones(len(split), dtype=np.bool_)
        for role in {"client", PARTITION} & roles.keys():
            lacks = np.asarray(pc.is_null(rows[role])) & (split != OUT_OF_DISTRIBUTION)
            counts[f"rows_missing_{role}"] = int(lacks.sum())
            if lacks.any():
                logger.warning(
                    "%s: %d rows have nothing in %r, and are left out", self.path, lacks.sum(), roles[role]
                )
            whole &= ~lacks
        kept = {**rows, "split": pa.array(split)}
        return {role: cells.filter(pa.array(whole)) for role, cells in kept.items()}


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
