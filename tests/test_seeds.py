"""seeds.py: keyed draws are uniform, independent of chunking and reproducible."""

import numpy as np
import pytest
from scipy import stats

from fedemb.seeds import bits, generator, stream_keys, uniforms


def test_chunks_do_not_change_draws() -> None:
    clients = np.arange(50)
    whole = uniforms(stream_keys(7, "negatives", 3, clients), 20)
    parts = [uniforms(stream_keys(7, "negatives", 3, part), 20) for part in np.array_split(clients, 7)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    tail = uniforms(stream_keys(7, "negatives", 3, clients), 5, start=15)
    np.testing.assert_array_equal(whole[:, 15:], tail)
    per_stream = uniforms(stream_keys(7, "negatives", 3, clients), 1, start=clients % 20)
    np.testing.assert_array_equal(whole[clients, clients % 20], per_stream[:, 0])


@pytest.mark.parametrize("other", [(8, "negatives", 3), (7, "shuffle", 3), (7, "negatives", 4)])
def test_every_part_of_the_key_matters(other: tuple[int, str, int]) -> None:
    ours = bits(stream_keys(7, "negatives", 3, np.arange(20)), 50).ravel()
    theirs = bits(stream_keys(*other, np.arange(20)), 50).ravel()
    assert not np.isin(ours, theirs).any()


def test_uniform_and_uncorrelated() -> None:
    draws = uniforms(stream_keys(0, "check", 1, np.arange(2000)), 100)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(draws[:, 0], "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    lagged = np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01
    assert abs(lagged) < 0.01


def test_generator_is_keyed() -> None:
    assert generator(1, "a", 2).random() == generator(1, "a", 2).random()
    assert generator(1, "a", 2).random() != generator(1, "a", 3).random()
