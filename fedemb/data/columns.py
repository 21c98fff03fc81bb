"""Which column of a file plays which role: as the settings say, else by its usual name."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedemb.data import tabular
from fedemb.errors import DataError, SettingError

logger = logging.getLogger("fedemb")

# Compared without case and punctuation: CustomerID, customer_id and "Customer Id" are one name.
USUAL_NAMES: Mapping[str, Sequence[str]] = {
    "client": ("client", "clientid", "customer", "customerid", "user", "userid", "uid", "visitorid"),
    "item": ("item", "itemid", "product", "productid", "stockcode", "sku", "articleid", "movieid", "trackid"),
    "time": ("time", "timestamp", "datetime", "date", "eventtime", "invoicedate", "orderdate", "createdat"),
    "session": ("session", "sessionid", "invoice", "invoiceno", "orderid", "basket", "basketid"),
    "weight": ("weight",),
    "quantity": ("quantity", "qty"),
    "left": ("left", "leftid", "source", "item1"),
    "right": ("right", "rightid", "target", "item2"),
    "text": ("text", "body", "content", "document", "message", "description", "title", "sentence"),
    "label": ("label", "labels", "click", "clicked", "similar"),
    "id": ("id", "recordid", "key", "objectid"),
    "head": ("head", "headid", "headentity", "h", "subject", "subjectid", "s", "source", "from"),
    "relation": ("relation", "relationid", "rel", "r", "predicate", "predicateid", "p", "property", "edge"),
    "tail": ("tail", "tailid", "tailentity", "t", "object", "objectid", "o", "target", "to"),
}


def column_names(path: str | Path, delimiter: str | None = None, quoted: bool = True) -> list[str]:
    """Names of the columns of a file; empty where there is no such file.

    Args:
        path: A file that ``read_columns`` can read.
        delimiter: Between cells.
        quoted: Whether quotes enclose a cell.

    Raises:
        DataError: If the file cannot be read, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        return []
    return tabular.names_in(path, delimiter, quoted)


def check_roles(columns: Mapping[str, str | None], roles: Collection[str]) -> None:
    """Refuses settings for roles that there are not.

    Raises:
        SettingError: If there is such a setting, or a value is no name.
    """
    for role, name in columns.items():
        if role not in roles:
            near = difflib.get_close_matches(role, roles, n=1)
            hint = f"; did you mean data.columns.{near[0]}?" if near else ""
            raise SettingError(f"data.columns must be among {', '.join(roles)}, got {role!r}{hint}")
        if not (name is None or isinstance(name, str)):
            raise SettingError(f"data.columns.{role} must be the name of a column, got {name!r}")


def find_columns(
    present: Sequence[str], columns: Mapping[str, str | None], roles: Sequence[str]
) -> dict[str, str]:
    """The column of each role: what the settings say, there or not, else one of a usual name if there is one.

    >>> find_columns(["user", "object", "predicate", "subject"], {"client": ""}, ("head", "tail", "client"))
    {'head': 'subject', 'tail': 'object'}
    """
    plain = {name: re.sub(r"[\W_]", "", name).lower() for name in present}
    found = {role: name for role in roles if (name := columns.get(role))}
    for role in roles:
        if columns.get(role) is not None:
            continue
        free = [name for name in present if name not in found.values()]
        usual = [name for known in USUAL_NAMES.get(role, ()) for name in free if plain[name] == known]
        if usual:
            found[role] = usual[0]
    return {role: found[role] for role in roles if role in found}


def resolve_columns(
    path: str | Path,
    columns: Mapping[str, str | None],
    roles: Sequence[str],
    required: Collection[str],
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, str]:
    """The column of each role that the file has one for.

    Args:
        path: A file that ``read_columns`` can read.
        columns: Name per role; None, or no entry: whichever column has a usual name of that role;
            an empty name: the role stays empty, whatever columns there are.
        roles: In the order in which they choose.
        required: Roles that must be found.
        delimiter: Between cells.
        names: Column names of a text file that has no header line.

    Raises:
        DataError: If a required role has no column.
    """
    present = column_names(path, delimiter) if names is None else list(names)
    found = find_columns(present, columns, roles)
    for role, name in found.items():
        if columns.get(role) is None:
            logger.info("%s: column %r is taken as %s, by its name", path, name, role)
    for role in required:
        if role not in found and present:
            there = ", ".join(repr(name) for name in present)
            absent = next((r for r in roles if columns.get(r) and columns[r] not in present), None)
            at, got = (role, "none") if absent is None else (absent, repr(columns[absent]))
            raise DataError(f"data.columns.{at} must name a column of {path}, got {got}; there are {there}")
    return found
