"""Constructors called with a user's settings: what is wrong is said in the words of settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fedemb.errors import DataError, SettingError

_KINDS: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("text", (str,)),
    NoneType: ("null", (NoneType,)),
    Mapping: ("settings such as {name: value}", (Mapping,)),
    Sequence: ("a list such as [a, b]", (list, tuple)),
}

# Settings that have another name in a constructor.
_SETTINGS = {
    ("aggregate", "cap"): "weight_cap",
    ("aggregate", "by"): "weights",
    ("server", "rule"): "optimizer",
}


def _declared(make: Any) -> dict[str, Any]:
    """Types of a constructor's arguments; of what it returns where it only passes them on."""
    try:
        hints = get_type_hints(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
        made = hints.get("return")
        own = get_type_hints(made) if isinstance(made, type) and made is not NoneType else {}
    except NameError:  # a type that is only imported for type checkers
        return {}
    return {**own, **hints}


def _check_kinds(group: str, make: Any, settings: Mapping[str, Any]) -> None:
    """Refuses text for a number and the like, by the types that a constructor declares."""
    declared = _declared(make)
    for name, value in settings.items():
        hint = declared.get(name)
        hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [get_origin(one) or one for one in hints]
        if all(kind in _KINDS for kind in kinds):
            fits = (
                isinstance(value, _KINDS[k][1]) and (k is bool or not isinstance(value, bool)) for k in kinds
            )
            if not any(fits):
                words = " or ".join(_KINDS[kind][0] for kind in kinds)
                setting = _SETTINGS.get((group, name), name)
                raise SettingError(f"{group}.{setting} must be {words}, got {value!r}")


def _as_setting(group: str, message: str) -> str:
    """A constructor's complaint about an argument, in the words of settings."""
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    if found:
        return f"{group}.{found[1]} is not a setting of the chosen {group}; ~{group}.{found[1]} takes it out"
    found = re.search(r"missing .*? argument.*?: '(\w+)'", message)
    return f"{group}.{found[1]} must be set" if found else message.splitlines()[0]


def checked(group: str, make: Callable[..., Any], **settings: Any) -> Any:
    """What ``make`` makes of these settings, its complaints in the words of settings."""
    _check_kinds(group, make, settings)
    try:
        return make(**settings)
    except (SettingError, DataError):
        raise
    except (ValueError, TypeError) as error:
        raise SettingError(_as_setting(group, str(error))) from error
