"""What events cost: published figures, two independent libraries, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedemb.privacy.accountant import UnknownEventError, epsilon, worst
from fedemb.privacy.events import (
    Composed,
    Event,
    FixedSizeSampled,
    GaussianNoise,
    PoissonSampled,
    Repeated,
    SkellamNoise,
    Slack,
)
from fedemb.privacy.gaussian_mechanism import analytic_noise_multiplier, gaussian_delta, gaussian_epsilon
from fedemb.privacy.solve import most_rounds, noise_multiplier_for, noise_multiplier_for_all

# sigma, q, T, delta -> epsilon by RDP, PLD, PRV: computed with two libraries that share no code.
TABLE = [
    (1.0, 1.0, 1, 1e-5, 4.7285, 4.3772, 4.3874),
    (10.0, 1.0, 100, 1e-5, 4.7285, 4.3772, 4.3874),
    (1.1, 256 / 60000, 14062, 1e-5, 2.5966, 2.3817, 2.3917),
    (1.0, 0.01, 1000, 1e-5, 2.1014, 1.8282, 1.8384),
    (1.0, 0.1, 100, 1e-5, 7.90, 7.0466, 7.0571),
    (1.1, 0.05, 30, 1e-5, 2.2148, 1.8114, 1.8216),
]


def sampled(sigma: float, rate: float, count: int) -> Event:
    return Repeated(PoissonSampled(rate, GaussianNoise(sigma)), count)


@pytest.mark.parametrize(("sigma", "rate", "count", "delta", "rdp", "pld", "prv"), TABLE)
def test_the_table(
    sigma: float, rate: float, count: int, delta: float, rdp: float, pld: float, prv: float
) -> None:
    event = sampled(sigma, rate, count)
    assert epsilon(event, delta, "rdp") == pytest.approx(rdp, abs=1e-2)
    assert epsilon(event, delta, "pld") == pytest.approx(pld, abs=1e-2)
    assert epsilon(event, delta, "prv") == pytest.approx(prv, abs=2e-2)


def test_two_libraries_agree_on_settings_that_stand_nowhere() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        sigma, rate = float(rng.uniform(0.6, 4)), float(10 ** rng.uniform(-2.5, 0))
        event = sampled(sigma, rate, int(10 ** rng.uniform(0, 3)))
        pld, prv, rdp = (epsilon(event, 1e-5, accountant) for accountant in ("pld", "prv", "rdp"))
        assert abs(pld - prv) <= 2e-2
        assert rdp >= pld - 1e-6


def test_a_finer_grid_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedemb.privacy import accountant

    for sigma, rate, count in ((1.1, 256 / 60000, 14062), (0.3, 0.05, 30), (0.7, 1e-3, 50_000)):
        usual = epsilon(sampled(sigma, rate, count), 1e-5)
        accountant._epsilon.cache_clear()
        monkeypatch.setattr(accountant, "_ERROR", 4e-5)
        finer = epsilon(sampled(sigma, rate, count), 1e-5)
        monkeypatch.undo()
        accountant._epsilon.cache_clear()
        assert finer <= usual + 1e-9  # pessimistic: a coarser grid never promises more
        assert usual - finer < 5e-3


def test_histories_of_several_kinds() -> None:
    event = Composed((sampled(1.0, 0.1, 50), sampled(2.0, 0.5, 20), GaussianNoise(3.0)))
    pld, prv, rdp = (epsilon(event, 1e-5, accountant) for accountant in ("pld", "prv", "rdp"))
    assert abs(pld - prv) <= 2e-2
    assert max(epsilon(part, 1e-5) for part in event.events) < pld < rdp  # type: ignore[union-attr]
    again = Composed(
        (GaussianNoise(3.0), sampled(2.0, 0.5, 20), sampled(1.0, 0.1, 20), sampled(1.0, 0.1, 30))
    )
    assert epsilon(again, 1e-5) == pld


def test_more_of_anything_costs_more() -> None:
    for accountant in ("pld", "prv", "rdp"):
        base = epsilon(sampled(1.2, 0.1, 40), 1e-5, accountant)
        assert epsilon(sampled(1.2, 0.1, 41), 1e-5, accountant) > base
        assert epsilon(sampled(1.2, 0.11, 40), 1e-5, accountant) > base
        assert epsilon(sampled(1.19, 0.1, 40), 1e-5, accountant) > base
        assert epsilon(sampled(1.2, 0.1, 40), 0.9e-5, accountant) > base


def test_samples_of_fixed_size_are_another_mechanism() -> None:
    fixed = Repeated(FixedSizeSampled(100, 10, GaussianNoise(1.0)), 100)
    assert epsilon(fixed, 1e-3, "rdp") == pytest.approx(79.3, abs=0.05)
    assert epsilon(sampled(1.0, 0.1, 100), 1e-3, "rdp") == pytest.approx(5.66, abs=0.01)
    assert epsilon(Repeated(GaussianNoise(1.0), 100), 1e-3, "rdp") == pytest.approx(85.2, abs=0.05)
    with pytest.raises(UnknownEventError, match=r"accountant=pld does not know.*accountant=rdp"):
        epsilon(fixed, 1e-3)
    with pytest.raises(UnknownEventError, match="one kind of cohort"):
        epsilon(Composed((fixed, sampled(1.0, 0.1, 1))), 1e-3, "rdp")


def test_fixed_size_doubles_gaussian_releases_beside_it() -> None:
    whole = FixedSizeSampled(
        10, 10, GaussianNoise(1.0)
    )  # everybody: one is replaced, and moves the sum by two norms
    alone = epsilon(whole, 1e-5, "rdp")
    assert alone == pytest.approx(epsilon(GaussianNoise(0.5), 1e-5, "rdp"), rel=0.02)
    both = epsilon(Composed((whole, GaussianNoise(1.0))), 1e-5, "rdp")
    assert both == pytest.approx(epsilon(Repeated(GaussianNoise(0.5), 2), 1e-5, "rdp"), rel=0.02)


def test_skellam_noise_is_nearly_gaussian_on_a_fine_grid() -> None:
    gaussian, found = epsilon(Repeated(GaussianNoise(2.0), 30), 1e-5, "rdp"), []
    for scale in (2.0, 16.0, 1024.0):
        noise = SkellamNoise((2 * scale) ** 2, scale * 100**0.5, scale)
        found.append(epsilon(Repeated(noise, 30), 1e-5, "rdp"))
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.05 * gaussian
    assert gaussian <= found[-1] < gaussian * 1.02  # the theorem is for whole orders; chords between them
    with pytest.raises(UnknownEventError, match="accountant=rdp"):
        epsilon(noise, 1e-5)


def test_what_is_sampled_surely_is_not_sampled() -> None:
    assert epsilon(sampled(2.0, 1.0, 9), 1e-5) == epsilon(Repeated(GaussianNoise(2.0), 9), 1e-5)
    assert epsilon(Repeated(GaussianNoise(2.0), 9), 1e-5) == pytest.approx(gaussian_epsilon(3 / 2.0, 1e-5))


def test_slack_is_taken_from_delta() -> None:
    event = Composed((GaussianNoise(1.0), Repeated(Slack(2e-6), 3)))
    assert epsilon(event, 1e-5) == pytest.approx(gaussian_epsilon(1.0, 4e-6))
    assert epsilon(Composed((GaussianNoise(1.0), Slack(1e-5))), 1e-5) == math.inf
    assert epsilon(Slack(1e-6), 1e-5) == 0


def test_nothing_and_no_noise() -> None:
    assert epsilon(Composed(()), 1e-5) == 0
    assert epsilon(Repeated(GaussianNoise(1.0), 0), 1e-5) == 0
    for accountant in ("pld", "prv", "rdp"):
        assert epsilon(sampled(0.0, 0.5, 2), 1e-5, accountant) == math.inf


@pytest.mark.parametrize(
    ("event", "delta", "accountant", "wrong"),
    [
        (GaussianNoise(-1.0), 1e-5, "pld", "noise multiplier"),
        (sampled(1.0, 1.5, 1), 1e-5, "pld", "sampling rate"),
        (sampled(1.0, 0.0, 1), 1e-5, "pld", "sampling rate"),
        (GaussianNoise(1.0), 0.0, "pld", "delta"),
        (GaussianNoise(1.0), 1.0, "pld", "delta"),
        (GaussianNoise(1.0), 1e-5, "gdp", "one of pld, prv, rdp"),
        (PoissonSampled(0.5, SkellamNoise(1.0, 1.0, 1.0)), 1e-5, "rdp", "no accountant"),
        (FixedSizeSampled(3, 4, GaussianNoise(1.0)), 1e-5, "rdp", "1 to 3"),
    ],
)
def test_what_cannot_be_is_refused(event: Event, delta: float, accountant: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        epsilon(event, delta, accountant)


@pytest.mark.parametrize("accountant", ["pld", "prv", "rdp"])
@pytest.mark.parametrize(
    ("target", "rate", "count"), [(1.0, 0.05, 200), (8.0, 1.0, 30), (0.3, 0.01, 1000), (30.0, 0.5, 5)]
)
def test_a_target_is_met_and_hardly_more(accountant: str, target: float, rate: float, count: int) -> None:
    def event(sigma: float) -> Event:
        return sampled(sigma, rate, count)

    found = noise_multiplier_for(event, target, 1e-5, accountant)
    assert epsilon(event(found), 1e-5, accountant) <= target
    assert epsilon(event(0.999 * found), 1e-5, accountant) > target


def test_a_target_that_nothing_meets() -> None:
    with pytest.raises(ValueError, match="cannot be met"):
        noise_multiplier_for(lambda sigma: Composed((GaussianNoise(sigma), Slack(1e-5))), 1.0, 1e-5)


def test_rounds_that_a_budget_lasts() -> None:
    def after(rounds: int) -> Event:
        return sampled(1.1, 0.05, rounds)

    costs = [epsilon(after(rounds), 1e-5) for rounds in range(1, 25)]
    for budget in (0.5, 1.0, costs[9], 1.5, 99.0):
        expected = sum(cost <= budget for cost in costs)
        assert most_rounds(lambda rounds: epsilon(after(rounds), 1e-5), budget, 1, 24) == expected
    assert most_rounds(lambda rounds: costs[rounds - 1], costs[9], 13, 24) == 12  # spent before it begins


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_largest_of_many(accountant: str) -> None:
    histories = [
        sampled(1.0, min(1.0, 32 / size), 3 * -(-size // 32)) for size in (5, 31, 40, 64, 200, 1000, 3000)
    ]
    found, event = worst(histories * 20, 1e-5, accountant)
    assert found == max(epsilon(history, 1e-5, accountant) for history in histories)
    assert found == epsilon(event, 1e-5, accountant)
    assert worst([], 1e-5, accountant) == (0, Composed(()))


def test_a_target_for_all_of_many() -> None:
    sizes = (5, 40, 200, 1000)

    def histories(sigma: float) -> list[Event]:
        return [sampled(sigma, min(1.0, 32 / size), 3 * -(-size // 32)) for size in sizes]

    for target in (0.5, 4.0):
        found = noise_multiplier_for_all(histories, target, 1e-5)
        assert worst(histories(found), 1e-5)[0] <= target < worst(histories(0.998 * found), 1e-5)[0]


def test_the_gaussian_curve() -> None:
    for mu in (0.05, 1.0, 6.0, 40.0):
        for delta in (1e-2, 1e-5, 1e-9):
            found = gaussian_epsilon(mu, delta)
            if found:
                assert gaussian_delta(mu, found) == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_delta(0.1, 0.0) == pytest.approx(0.0398776, abs=1e-6)  # 2 Phi(mu / 2) - 1


@pytest.mark.parametrize("target", [0.1, 1.0, 4.3772, 50.0])
def test_the_analytic_calibration(target: float) -> None:
    found = analytic_noise_multiplier(target, 1e-5)
    assert gaussian_delta(1 / found, target) <= 1e-5
    assert gaussian_delta(1 / (0.9999 * found), target) > 1e-5
    textbook = (2 * math.log(1.25 / 1e-5)) ** 0.5 / target
    assert found < textbook or target > 8  # where the textbook formula is not sound any more
