"""What modes release, against what they claim: sums, noise, bounds and books."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fedemb.build import Parts, build
from fedemb.config import compose_config
from fedemb.errors import RunError
from fedemb.privacy.accountant import epsilon
from fedemb.privacy.claim import Segment, charged
from fedemb.privacy.events import Composed, GaussianNoise, PoissonSampled, Repeated
from fedemb.privacy.gaussian_mechanism import gaussian_epsilon
from fedemb.privacy.history import History, load_history, save_history
from fedemb.privacy.ledger import Ledger, read_ledger
from fedemb.privacy.noise import Noise
from fedemb.privacy.select import Selection, votes_of
from fedemb.stages.central_noise import AdaptiveClip, CentralNoise
from fedemb.stages.distributed_noise import DistributedNoise
from fedemb.types import StageContext, Total, Updates

ITEMS = [
    "data=synthetic", "data.num_clients=20", "data.num_items=40", "data.examples_per_client=12", "task=skipgram",
    "task.dim=4", "rounds=5", "privacy.clip_norm=0.5", "privacy.noise_multiplier=1.5", "privacy.seeded_noise=true",
]  # fmt: skip
CONTEXT = StageContext(0, 1)


def parts_of(*overrides: str) -> Parts:
    return build(compose_config([*ITEMS, *overrides]))


def updates_of(parts: Parts, round: int = 1) -> Updates:
    tables, dense = parts.initial()
    tables = {name: table + 0.3 for name, table in tables.items()}
    return parts.host(0, 1).train(tables, dense, {}, np.arange(20), round)


def total_of(parts: Parts, updates: Updates) -> Total:
    aggregator = parts.aggregator_of({}, 20)
    aggregator.add(updates, parts.initial()[0])
    return aggregator.finish(parts.initial()[0])


def released(parts: Parts, updates: Updates, round: int = 1) -> Total:
    total = total_of(parts, updates)
    for stage in parts.server_stages_of():
        total = stage.on_server(total, StageContext(0, round))
    return total


def values(total: Total, parts: Parts) -> np.ndarray:
    found = []
    for table in parts.shared:
        whole = torch.zeros(table.num_rows, table.dim)
        if table.name in total.tables:
            whole[total.tables[table.name].rows] = total.tables[table.name].steps
        found.append(whole.double().numpy().ravel())
    return np.concatenate(found)


def test_a_trusted_server_releases_the_clipped_sum_and_the_promised_noise() -> None:
    parts = parts_of("privacy=client_central")
    updates = updates_of(parts)
    plain = values(total_of(parts, updates), parts)
    noise = np.stack([values(released(parts, updates, round), parts) - plain for round in range(1, 60)])
    assert stats.kstest(noise.ravel() / (1.5 * 0.5), "norm").pvalue > 1e-3
    assert (noise != 0).all()  # rows that nobody touched among them
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


def test_each_client_moves_the_sum_by_the_clip_norm_at_most() -> None:
    for mode in ("client_central", "local"):
        parts = parts_of(f"privacy={mode}", "privacy.noise_multiplier=0", "train.learning_rate=1000")
        updates = updates_of(parts)
        for client in np.flatnonzero(parts.task.examples(parts.dataset.train).sizes):
            square = 0.0
            for rows in updates.tables.values():
                own = slice(int(rows.offsets[client]), int(rows.offsets[client + 1]))
                square += float(rows.values[own].double().square().sum())
            assert square**0.5 == pytest.approx(0.5, rel=1e-5)


def test_means_are_divided_by_a_public_number() -> None:
    parts = parts_of("privacy=client_central", "aggregate.rows=fedavg", "cohort=poisson", "cohort.rate=0.5")
    updates = updates_of(parts)
    summed = values(total_of(parts_of("privacy=client_central"), updates), parts)
    expected = 0.5 * (parts.task.examples(parts.dataset.train).sizes > 0).sum()
    np.testing.assert_allclose(
        values(total_of(parts, updates), parts), summed / expected, rtol=1e-5, atol=1e-9
    )
    noise = values(released(parts, updates), parts) - values(total_of(parts, updates), parts)
    assert noise.std() == pytest.approx(1.5 * 0.5 / expected, rel=0.15)


def test_an_empty_round_is_noise_alone() -> None:
    parts = parts_of("privacy=client_central")
    (stage,) = parts.server_stages_of()
    found = stage.on_server(Total({}, {}, 0), CONTEXT)
    assert {name: len(rows.rows) for name, rows in found.tables.items()} == {"item": 40, "context": 40}
    assert values(found, parts).std() == pytest.approx(0.75, rel=0.15)


def test_local_noise_is_on_every_row_and_nothing_else_is_told() -> None:
    parts = parts_of("privacy=local", "privacy.metrics=none", "baselines=[]", "aggregate.weights=capped")
    updates = updates_of(parts)
    silent = updates_of(parts_of("privacy=local", "privacy.noise_multiplier=0", "aggregate.weights=capped"))
    noise = torch.cat([rows.values - silent.tables[name].values for name, rows in updates.tables.items()])
    assert stats.kstest(noise.double().numpy().ravel() / 0.75, "norm").pvalue > 1e-3
    for rows in updates.tables.values():
        assert torch.equal(rows.rows, torch.arange(40).repeat(20))
        assert (rows.counts == 1).all()
    assert (updates.weights == 1).all()
    assert all((value == 0).all() for value in updates.metrics.values())
    assert (parts.host(0, 1).sizes <= 1).all()


@pytest.mark.parametrize(("ring", "dtype"), [(32, torch.int32), (64, torch.int64)])
def test_integers_add_up_to_the_plain_sum_and_the_promised_noise(ring: int, dtype: torch.dtype) -> None:
    integers = ["privacy=client_distributed", "aggregate=secure", "aggregate.rows=sum"]
    parts = parts_of(*integers, f"aggregate.ring={ring}")
    updates = updates_of(parts)
    assert all(rows.values.dtype == dtype for rows in updates.tables.values())
    clear = parts_of("privacy=client_central", "privacy.noise_multiplier=0")
    plain = values(total_of(clear, updates_of(clear)), clear)
    noise = values(total_of(parts, updates), parts) - plain
    (stage,) = [s for s in parts.stages if isinstance(s, DistributedNoise)]
    claimed = (20 * stage.variance) ** 0.5 * stage.grid
    assert claimed == pytest.approx(1.5 * 0.5 * (20 / 18) ** 0.5, rel=0.01)
    assert abs(noise.std() / claimed - 1) < 4 / np.sqrt(2 * len(noise))
    assert stats.kstest(noise / claimed, "norm").pvalue > 1e-3


def test_the_grid_loses_little() -> None:
    integers = ["privacy=client_distributed", "aggregate=secure", "aggregate.rows=sum"]
    parts = parts_of(*integers, "privacy.noise_multiplier=0")
    clear = parts_of("privacy=client_central", "privacy.noise_multiplier=0")
    exact = values(total_of(clear, updates_of(clear)), clear)
    found = values(total_of(parts, updates_of(parts)), parts)
    assert np.linalg.norm(found - exact) < 5e-3 * np.linalg.norm(exact)


def test_too_few_survivors_release_nothing() -> None:
    parts = parts_of("privacy=client_distributed", "aggregate=secure")
    from fedemb.aggregate.check import select

    updates = updates_of(parts)
    assert parts.protection is not None
    assert parts.protection.min_clients == 18
    for count, aborted in ((18, False), (17, True)):
        total = total_of(parts, select(updates, np.arange(count)))
        assert total.aborted is aborted
        assert bool(total.tables) is not aborted


def test_a_universe_keeps_others_out(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(parts_of("privacy=local").dataset.vocabularies["item"].to_list()[5:15]))
    for mode in (["privacy=client_central"], ["privacy=local"], ["privacy=example"],
                 ["privacy=client_distributed", "aggregate=secure"]):  # fmt: skip
        parts = parts_of(*mode, f"privacy.universe={path}")
        updates = updates_of(parts)
        for rows in updates.tables.values():
            assert ((rows.rows >= 5) & (rows.rows < 15)).all()
        moved = values(released(parts, updates), parts).reshape(2, 40, 4)
        assert (moved[:, 5:15] != 0).all()
        assert not moved[:, :5].any()
        assert not moved[:, 15:].any()


def test_updates_that_are_not_finite_become_zero_ones() -> None:
    parts = parts_of("privacy=local", "privacy.noise_multiplier=0")
    raw = parts_of("privacy=client_central", "privacy.noise_multiplier=0")
    updates = updates_of(raw)
    item = updates.tables["item"]
    broken = item.values.clone()
    broken[0] = float("nan")
    found = replace(updates, tables={**updates.tables, "item": replace(item, values=broken)})
    for stage in parts.stages:
        found = stage.on_clients(found, CONTEXT)
    own = found.tables["item"].values.view(20, 40, -1)
    assert not own[0].any()
    assert own[1:].any()


def test_the_clip_norm_finds_the_quantile() -> None:
    """Andrew et al. 2021: where norms stay as they are, the clip norm ends at their quantile."""
    norms = np.random.default_rng(0).lognormal(size=400)
    adaptive, clip_norm = AdaptiveClip(0.7, 0.2, 20.0, 400.0), 0.01
    noise = Noise(3)
    found = []
    for round in range(200):
        normal = float(noise.normal("clip", 1, torch.float64, round))
        clip_norm = adaptive.next(clip_norm, 400, float((norms > clip_norm).sum()), normal)
        found.append(clip_norm)
    assert np.median(found[100:]) == pytest.approx(np.quantile(norms, 0.7), rel=0.1)


def test_counts_and_updates_together_cost_what_was_asked() -> None:
    adaptive = AdaptiveClip(0.5, 0.2, 4.0, 100.0)
    z = adaptive.share_of_updates(1.5)
    assert z > 1.5
    joint = (1 / z**2 + (0.5 / 4.0) ** 2) ** 0.5  # a count of half units beside updates of units
    assert gaussian_epsilon(joint, 1e-5) == pytest.approx(gaussian_epsilon(1 / 1.5, 1e-5))


def test_noise_follows_the_clip_norm_of_its_round() -> None:
    parts = parts_of("privacy=client_central", "privacy.adaptive_clip.quantile=0.5")
    (stage,) = parts.server_stages_of()
    assert isinstance(stage, CentralNoise)
    stage.clip_norm = 4.0
    found = values(stage.on_server(Total({}, {}, 20, clipped=20.0), CONTEXT), parts)
    assert found.std() == pytest.approx(4.0 * stage.noise_multiplier, rel=0.15)
    assert stage.clip_norm > 4.0  # all were clipped


def test_votes_have_length_one_and_thresholds_keep_one_client_out() -> None:
    held = {0: np.arange(30), 1: np.array([3]), 2: np.array([], dtype=np.int64)}
    votes = votes_of(held, 40, 9, 1)
    assert float(votes.square().sum()) <= 4  # at most two of one client each on the same row
    alone = votes_of({0: np.arange(30)}, 40, 9, 1)
    assert (alone > 0).sum() == 9
    assert float(alone.square().sum()) == pytest.approx(1.0)
    selection = Selection(1.0, 1e-3, 9)
    taken = [bool(selection.chosen(alone, Noise(seed)).any()) for seed in range(3000)]
    assert np.mean(taken) < 3e-3  # delta, and its error
    many = votes_of({client: np.arange(3) for client in range(60)}, 40, 9, 1)
    assert selection.chosen(many, Noise(0)).tolist() == [True] * 3 + [False] * 37


def test_claims_compose_over_rounds_and_restarts() -> None:
    parts = parts_of("privacy=client_central", "cohort=poisson", "cohort.rate=0.5")
    assert parts.protection is not None
    claim = parts.protection.claim
    whole = claim.spent([Segment(1, 7, 1.5)])
    assert whole == pytest.approx(epsilon(Repeated(PoissonSampled(0.5, GaussianNoise(1.5)), 7), 1e-5))
    twice = charged([Segment(1, 7, 1.5)], Segment(5, 9, 1.5))
    assert claim.spent(twice) == pytest.approx(
        epsilon(Repeated(PoissonSampled(0.5, GaussianNoise(1.5)), 12), 1e-5)
    )


def test_turns_cost_less_than_every_round() -> None:
    full = parts_of("privacy=local").protection
    turns = parts_of("privacy=local", "cohort=turns", "cohort.size=5").protection
    assert full is not None
    assert turns is not None
    assert full.claim.spent([Segment(1, 9, 1.5)]) == pytest.approx(gaussian_epsilon(3 / 1.5, 1e-5))
    assert turns.claim.spent([Segment(1, 9, 1.5)]) == pytest.approx(gaussian_epsilon(3**0.5 / 1.5, 1e-5))


def test_examples_compose_their_own_steps_and_the_worst_client_counts() -> None:
    parts = parts_of(
        "privacy=example", "train.batch_size=8", "train.epochs=2", "cohort=uniform", "cohort.size=6"
    )
    assert parts.protection is not None
    claim, sizes = parts.protection.claim, parts.task.examples(parts.dataset.train).sizes
    counts = claim.participations(Segment(1, 5, 1.5))
    assert counts.sum() == 30
    costs = []
    for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
        steps = int(-(-size // 8)) * 2 * int(count)
        event = Repeated(PoissonSampled(min(1.0, 8 / size), GaussianNoise(1.5)), steps)
        costs.append(epsilon(event, 1e-5))
    assert claim.spent([Segment(1, 5, 1.5)]) == pytest.approx(max(costs), rel=1e-6)


def test_a_target_is_met_after_all_rounds() -> None:
    for mode in (["privacy=client_central"], ["privacy=local"], ["privacy=example"],
                 ["privacy=client_distributed", "aggregate=secure"]):  # fmt: skip
        own = [text for text in ITEMS if "noise_multiplier" not in text]
        parts = build(compose_config([*own, *mode, "privacy.target_epsilon=3"]))
        assert parts.protection is not None
        claim = parts.protection.claim
        assert 2.98 < claim.spent([Segment(1, 5, claim.noise_multiplier)]) <= 3


def test_a_ledger_forgets_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for round in (1, 2, 3, 3, 4):
        ledger.charge(round, 1.5)
    ledger.charge(5, 2.0)
    ledger.charge_choice()
    found = read_ledger(tmp_path, 4, 9.9)
    assert found.segments == [Segment(1, 3, 1.5), Segment(3, 4, 1.5), Segment(5, 5, 2.0)]
    assert found.choices == 1
    assert read_ledger(tmp_path / "none", 4, 9.9).segments == [Segment(1, 4, 9.9)]
    assert read_ledger(tmp_path / "none", 0, 9.9).segments == []
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_ledger(tmp_path, 4, 9.9)


def test_a_client_s_history_composes_and_survives(tmp_path: Path) -> None:
    parts = parts_of("privacy=example", "train.batch_size=8", "privacy.budget=8")
    assert parts.protection is not None
    claim, history = parts.protection.claim, History.empty()
    clients, sizes = np.array([3, 5]), np.array([20, 50])
    for _ in range(3):
        history = history.charged(clients, sizes, claim)
    history = history.charged(clients[:1], sizes[:1], claim)
    save_history(tmp_path / "own" / "clients.safetensors", history)
    again = load_history(tmp_path / "own" / "clients.safetensors")
    assert again.epochs.tolist() == [4, 3]
    events: dict[int, Any] = again.events()
    twenty = Repeated(PoissonSampled(8 / 20, GaussianNoise(1.5)), 3 * 4)
    assert epsilon(events[3], 1e-5) == epsilon(Composed((twenty,)), 1e-5)
    assert again.spent(1e-5, "pld") == max(epsilon(event, 1e-5) for event in events.values())
    spent = again
    while not len(spent.exhausted(clients, sizes, claim)):
        spent = spent.charged(clients, sizes, claim)
    assert spent.exhausted(clients, sizes, claim).tolist() == [3]
    assert epsilon(spent.events()[3], 1e-5) <= 8
    (tmp_path / "own" / "clients.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        load_history(tmp_path / "own" / "clients.safetensors")
    assert len(load_history(tmp_path / "nothing").client) == 0
