"""The audit flags pipelines that are broken on purpose, and lets sound ones pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from fedemb.build import Parts
from fedemb.cohort import Full
from fedemb.config import compose_config
from fedemb.privacy.audit import Claimed, Finding, audited
from fedemb.privacy.claim import Segment
from fedemb.privacy.noise import Noise
from fedemb.run.audit import audit_of, canary_parts, claimed_of, run_canaries
from fedemb.stages.central_noise import CentralNoise
from fedemb.stages.clip import Clip
from fedemb.types import RowUpdates, StageContext, Total, Updates
from tests.gallery import gallery_overrides

ROUNDS, CANARIES = 10, 1000
SMALL = [
    "data=synthetic", "data.num_clients=40", "data.num_items=60", "data.examples_per_client=12", "task=skipgram",
    "task.dim=8", "baselines=[]", "privacy.clip_norm=0.5", "privacy.noise_multiplier=1.5",
    "privacy.seeded_noise=true",
]  # fmt: skip
CENTRAL = [*SMALL, "privacy=client_central"]
POISSON = [*CENTRAL, "cohort=poisson", "cohort.rate=0.3"]
EXAMPLE = [*SMALL, "privacy=example", "train.batch_size=64", "train.epochs=2"]
PARTS = [*gallery_overrides(), *(text for text in SMALL if not text.startswith(("data", "task")))]


def findings_of(
    overrides: list[str],
    break_: Callable[[Parts], Parts] = lambda parts: parts,
    lie: Callable[[Parts, Claimed], Claimed] = lambda parts, claimed: claimed,
) -> list[Finding]:
    config = compose_config(overrides)
    assert isinstance(config, DictConfig)
    parts = canary_parts(config, CANARIES, ROUNDS, 0)
    return audited(run_canaries(break_(parts), config, ROUNDS), lie(parts, claimed_of(parts, ROUNDS)))


@dataclass(frozen=True)
class ClipEach:
    """A bound on each table by itself, or on each number: what others call clipping."""

    clip_norm: float
    coordinates: bool
    name: str = "clip"
    bounded: bool = True

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        tables = {name: replace(rows, values=self._of_rows(rows)) for name, rows in updates.tables.items()}
        dense = {name: self._short(value.flatten(1)).view_as(value) for name, value in updates.dense.items()}
        return replace(updates, tables=tables, dense=dense)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total

    def _short(self, values: Tensor) -> Tensor:
        if self.coordinates:
            return values.clamp(-self.clip_norm, self.clip_norm)
        return values * (self.clip_norm / values.norm(dim=1, keepdim=True).clamp(min=self.clip_norm))

    def _of_rows(self, rows: RowUpdates) -> Tensor:
        if self.coordinates:
            return self._short(rows.values)
        squares = torch.zeros(len(rows.offsets) - 1, dtype=torch.float64)
        client = torch.repeat_interleave(rows.offsets.diff())
        squares.scatter_add_(0, client, rows.values.double().square().sum(1))
        factor = (self.clip_norm / squares.sqrt().clamp(min=self.clip_norm))[client]
        return rows.values * factor[:, None].to(rows.values)


@dataclass(frozen=True)
class Heavy:
    """A weight that nobody bounds."""

    name: str = "heavy"
    bounded: bool = False

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        return replace(updates, weights=updates.weights * 3)

    def on_server(self, total: Total, context: StageContext) -> Total:
        return total


@dataclass(frozen=True)
class TouchedRowsOnly:
    """Noise where something was sent, and nowhere else."""

    inner: CentralNoise
    name: str = "touched"
    bounded: bool = False

    @property
    def clip_norm(self) -> float:
        return self.inner.clip_norm

    def on_clients(self, updates: Updates, context: StageContext) -> Updates:
        return updates

    def on_server(self, total: Total, context: StageContext) -> Total:
        noisy = self.inner.on_server(total, context)
        tables = {}
        for name, rows in noisy.tables.items():
            sent = torch.zeros(len(rows.rows), dtype=torch.bool)
            sent[total.tables[name].rows] = True
            tables[name] = replace(rows, rows=rows.rows[sent], steps=rows.steps[sent])
        return replace(noisy, tables=tables)


@dataclass(frozen=True)
class SameNoise(Noise):
    """Noise that knows nothing of rounds."""

    def normal(self, purpose: str, width: int, dtype: torch.dtype, *numbers: Any) -> Tensor:
        return super().normal(purpose, width, dtype, 0, *numbers[1:])


def without(kind: type) -> Callable[[Parts], Parts]:
    return lambda parts: replace(parts, stages=tuple(s for s in parts.stages if not isinstance(s, kind)))


def instead(make: Callable[[Clip], Any]) -> Callable[[Parts], Parts]:
    def broken(parts: Parts) -> Parts:
        return replace(parts, stages=tuple(make(s) if isinstance(s, Clip) else s for s in parts.stages))

    return broken


def noise(**change: Callable[[CentralNoise, Parts], Any]) -> Callable[[Parts], Parts]:
    def broken(parts: Parts) -> Parts:
        def stages() -> tuple[Any, ...]:
            (stage,) = parts.server_stages_of()
            assert isinstance(stage, CentralNoise)
            return (replace(stage, **{name: value(stage, parts) for name, value in change.items()}),)

        return replace(parts, server_stages_of=stages)

    return broken


def wrapped(parts: Parts) -> Parts:
    return replace(
        parts, server_stages_of=lambda: tuple(TouchedRowsOnly(s) for s in parts.server_stages_of())
    )  # type: ignore[arg-type, misc]


def privacy(**change: Any) -> Callable[[Parts], Parts]:
    def broken(parts: Parts) -> Parts:
        own = parts.training.privacy
        assert own is not None
        return replace(parts, training=replace(parts.training, privacy=replace(own, **change)))

    return broken


def size_of(parts: Parts) -> float:
    assert parts.protection is not None
    return parts.protection.claim.facts.participation.size


def forgets_rounds(parts: Parts, claimed: Claimed) -> Claimed:
    assert parts.protection is not None
    z = parts.protection.claim.noise_multiplier
    return replace(claimed, epsilon=parts.protection.claim.spent([Segment(1, 1, z)]))


BROKEN: Mapping[str, tuple[list[str], Callable[[Parts], Parts]]] = {
    "no clipping": (CENTRAL, without(Clip)),
    "each table clipped by itself": (CENTRAL, instead(lambda clip: ClipEach(clip.clip_norm, False))),
    "each number clipped by itself": (CENTRAL, instead(lambda clip: ClipEach(clip.clip_norm, True))),
    "dense parameters clipped by themselves": (
        [*PARTS, "privacy=client_central"], instead(lambda clip: ClipEach(clip.clip_norm, False)),
    ),
    "weight of three": (CENTRAL, lambda parts: replace(parts, stages=(*parts.stages, Heavy()))),
    "noise divided by clients": (CENTRAL, noise(noise_multiplier=lambda s, p: s.noise_multiplier / size_of(p))),
    "half the noise": (CENTRAL, noise(noise_multiplier=lambda s, p: s.noise_multiplier / 2)),
    "half the variance": (CENTRAL, noise(noise_multiplier=lambda s, p: s.noise_multiplier / 2**0.5)),
    "variance for deviation": (CENTRAL, noise(noise_multiplier=lambda s, p: s.noise_multiplier**2 * s.clip_norm)),
    "noise on touched rows only": (CENTRAL, wrapped),
    "one noise for all rounds": (CENTRAL, noise(noise=lambda s, p: SameNoise(3))),
    "everybody takes part": (POISSON, lambda parts: replace(parts, sampler=Full())),
    "half the noise of examples": (EXAMPLE, lambda parts: privacy(noise_multiplier=0.75)(parts)),
    "examples not clipped": (EXAMPLE, privacy(clip_norm=1e9)),
    "no noise of examples": (EXAMPLE, privacy(noise_multiplier=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_pipeline_is_flagged(fault: str) -> None:
    overrides, break_ = BROKEN[fault]
    assert not any(finding.refutes for finding in findings_of(overrides)), "sound before it is broken"
    assert any(finding.refutes for finding in findings_of(overrides, break_))


@pytest.mark.parametrize("overrides", [CENTRAL, POISSON, EXAMPLE], ids=["central", "poisson", "example"])
def test_an_accountant_that_does_not_compose_is_flagged(overrides: list[str]) -> None:
    found = findings_of(overrides, lie=forgets_rounds)
    assert any(finding.refutes and finding.what.startswith("epsilon") for finding in found)


def test_bounds_from_one_run_alone_see_that_nothing_is_clipped() -> None:
    found = {f.what: f for f in findings_of([*CENTRAL, "privacy.noise_multiplier=4"], without(Clip))}
    assert found["epsilon, at least (one run, Gaussian)"].refutes


def test_bounds_from_one_run_alone_miss_half_the_noise() -> None:
    found = {
        f.what: f for f in findings_of(CENTRAL, noise(noise_multiplier=lambda s, p: s.noise_multiplier / 2))
    }
    assert not found["epsilon, at least (one run)"].refutes
    assert found["noise, over the claimed"].refutes
    assert found["mu, distance in deviations"].refutes


SOUND = {
    "central": CENTRAL,
    "central-dense": [*PARTS, "privacy=client_central"],
    "poisson": POISSON,
    "adaptive": [*CENTRAL, "privacy.adaptive_clip.quantile=0.5"],
    "correlated": [*CENTRAL, "cohort=turns", "cohort.size=10", "privacy.bands=auto"],
    "fixed": [*CENTRAL, "cohort=uniform", "cohort.size=10", "privacy.accountant=rdp"],
    "local": [*SMALL, "privacy=local"],
    "distributed": [*SMALL, "privacy=client_distributed", "aggregate=secure"],
    "example": EXAMPLE,
    "example-whole": [*SMALL, "privacy=example", "train.batch_size=0", "train.epochs=1"],
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_pipeline_passes_whatever_the_seed(name: str) -> None:
    canaries = {"distributed": 152, "local": 200, "central-dense": 200}.get(
        name, 300
    )  # fours; each sends all rows
    for seed in range(20):
        config = compose_config([*SOUND[name], f"seed={seed}"])
        findings, _ = audit_of(config, canaries, ROUNDS, 0.95, seed)
        assert not any(finding.refutes for finding in findings), (seed, findings)


@pytest.mark.parametrize("mode", ["client_central", "local"])
def test_rounds_in_which_nobody_took_part_are_rounds(mode: str) -> None:
    config = compose_config([*SMALL, f"privacy={mode}", "cohort=poisson", "cohort.rate=0.004"])
    parts = canary_parts(config, 202, ROUNDS, 0)
    released = run_canaries(parts, config, ROUNDS)
    assert released.along.shape == released.sent.shape == (ROUNDS, 204)  # four clients can share them evenly
    nobody = ~released.sent.any(1)
    assert 0 < nobody.sum() < ROUNDS
    assert (released.along[nobody] == 0).all() == (
        mode == "local"
    )  # a trusted server's noise comes all the same


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fedemb
    from fedemb.cli import main

    folder = tmp_path / "run"
    fedemb.train([*CENTRAL, "rounds=1"], folder)
    assert main(["audit", str(folder), "canaries=400"]) == 0
    shown = capsys.readouterr().out
    assert "not refuted" in shown
    found = json.loads((folder / "audit.json").read_text())
    assert not found["refuted"]
    assert found["claimed"]["noise_multiplier"] == 1.5
