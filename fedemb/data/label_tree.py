"""Labels that stand in a tree, taken up to the ancestors at one depth."""

from __future__ import annotations

from collections.abc import Mapping

from fedemb.data.tabular import read_columns
from fedemb.errors import DataError


def read_label_tree(path: str, depth: int) -> Mapping[str, str]:
    """Per id, the name of its ancestor at ``depth`` (roots are at 0); ids that stand higher are left out.

    Args:
        path: A file that ``read_columns`` reads, with the columns ``id``, ``parent`` (empty for roots) and, optionally,
            ``name``.
        depth: From 0 on.

    Raises:
        DataError: If the file is not such a tree.
    """
    parent: dict[str, str | None] = {}
    name: dict[str, str] = {}
    columns = {"id": "id", "parent": "parent", "name": "name"}
    for batch in read_columns(path, columns, frozenset({"name"}), required=frozenset({"id"})):
        ids = [str(one) for one in batch.column("id").to_pylist()]
        parents = [None if one is None else str(one) for one in batch.column("parent").to_pylist()]
        parent.update(zip(ids, parents, strict=True))
        names = batch.column("name").to_pylist() if "name" in batch.schema.names else ids
        name.update(zip(ids, (str(one) for one in names), strict=True))
    found = {}
    for one in parent:
        way = [one]
        while (above := parent[way[-1]]) is not None:
            if above not in parent:
                raise DataError(f"{path}: {above!r}, the parent of {way[-1]!r}, has no row of its own")
            if above in way:
                raise DataError(f"{path}: {above!r} is an ancestor of itself; a tree has no circles")
            way.append(above)
        if len(way) > depth:
            found[one] = name[way[-1 - depth]]
    if not found:
        raise DataError(f"{path}: nothing stands at data.label_tree.depth={depth}; lower it")
    return found
