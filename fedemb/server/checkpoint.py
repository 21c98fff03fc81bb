"""The server's state on disk: written whole or not at all, the last two kept, nothing pickled."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedemb.atomic import write_atomically
from fedemb.errors import RunError, SettingError

_KEPT = 2
_log = logging.getLogger("fedemb")


@dataclass(frozen=True)
class Checkpoint:
    """State after a round.

    Attributes:
        round: The last finished round.
        digest: Digest of the configuration that made it.
        tensors: ``table/...``, ``dense/...`` and ``optimizer/...``.
        tally: Running counts for the summary.
        meaning: What rows stand for; see ``run.resume.meaning_of``.
    """

    round: int
    digest: str
    tensors: Mapping[str, Tensor]
    tally: Mapping[str, Any]
    meaning: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes ``folder/round-NNNNNN.safetensors`` and removes all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: getattr(checkpoint, name) for name in ("round", "digest", "tally", "meaning")}
    tensors = {name: value.cpu().contiguous() for name, value in checkpoint.tensors.items()}
    path = folder / f"round-{checkpoint.round:06d}.safetensors"
    write_atomically(
        path, lambda partial: save_file(tensors, partial, metadata={"fedemb": json.dumps(facts)})
    )
    for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
        number = int(old.stem.removeprefix("round-"))
        old.unlink()
        for personal in folder.glob(f"personal-*-{number}.safetensors"):
            personal.unlink()


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["fedemb"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Checkpoint(facts["round"], facts["digest"], tensors, facts["tally"], facts.get("meaning", {}))


def load_checkpoint(folder: Path, digest: str) -> Checkpoint:
    """The newest checkpoint that can be read; a corrupt one is announced and passed over.

    Args:
        folder: A run folder or its ``checkpoint`` folder.
        digest: Digest of the present configuration.

    Raises:
        SettingError: If there is none, or it belongs to another configuration.
        RunError: If none can be read.
    """
    inner = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    paths = sorted(inner.glob("round-*.safetensors"), reverse=True)
    if not paths:
        raise SettingError(f"resume must name a run folder with a checkpoint, but {folder} has none")
    for path in paths:
        try:
            found = _read(path)
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            _log.warning("checkpoint %s cannot be read (%s); trying the one before", path, error)
            continue
        if found.digest != digest:
            raise SettingError(
                f"resume needs the configuration that the run began with (digest {found.digest}), got {digest}; "
                f"see {folder}/.hydra/config.yaml"
            )
        return found
    raise RunError(f"no checkpoint in {inner} can be read")
