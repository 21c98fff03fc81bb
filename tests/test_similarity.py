"""Intervals of cosines: against many more draws, and what a user asks a finished run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fedemb
from fedemb.similarity import similarity
from tests.flower.test_strategy import CASES, INTERACTIONS


def rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return torch.cat((mean, 1 + 9 * torch.rand(count, 5, dtype=torch.float64, generator=generator)), 1)


def test_intervals_hold_the_cosine_as_often_as_they_say() -> None:
    first, second = rows(20, 0), rows(20, 1)
    found = similarity(first, second, 0.8)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2, 20_000, 20, 5, dtype=torch.float64, generator=generator)
    ends = [own[:, :5] + n * own[:, 5:].rsqrt() for own, n in zip((first, second), noise, strict=True)]
    cosine = torch.cosine_similarity(ends[0], ends[1], dim=-1)
    inside = ((cosine >= found.low) & (cosine <= found.high)).double().mean(0)
    assert float((inside - 0.8).abs().max()) < 0.05
    torch.testing.assert_close(found.value, cosine.mean(0), rtol=0, atol=0.05)


def test_what_nobody_saw_may_be_like_anything() -> None:
    known, unseen = rows(1, 0), torch.tensor([[0.0] * 5 + [0.1] * 5], dtype=torch.float64)
    found = similarity(known, unseen)
    assert abs(float(found.value)) < 0.1
    assert float(found.low) < -0.5
    assert float(found.high) > 0.5


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = similarity(rows(9, 0), rows(9, 1))
    monkeypatch.setattr("fedemb.similarity._BLOCK_NUMBERS", 1)
    parts = similarity(rows(9, 0), rows(9, 1))
    torch.testing.assert_close(torch.stack((whole.low, whole.high)), torch.stack((parts.low, parts.high)))
    assert similarity(rows(0, 0), rows(0, 1)).value.shape == (0,)


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 90"):
        similarity(rows(1, 0), rows(1, 1), 90)


def test_a_finished_run_answers_with_intervals(tmp_path: Path) -> None:
    run = fedemb.train([*CASES["gaussian-labels"], "baselines=[]"], tmp_path / "labels")
    ids, means = run.table("label")
    precisions = run.precision("label")
    assert means.shape == precisions.shape == (len(ids), 8)
    assert (precisions > 0).all()
    value, low, high = run.similarity("label", [ids[0], ids[1]], [ids[0], ids[2]])
    assert (low <= value).all()
    assert (value <= high).all()
    assert value[0] > value[1]
    wide = run.similarity("label", ids[1:2], ids[2:3], level=0.99)
    assert wide[1][0] < low[1]
    assert np.isclose(wide[0][0], value[1])
    with pytest.raises(KeyError, match="no row 'nobody'"):
        run.similarity("label", ["nobody"], ["nobody"])
    plain = fedemb.train([*INTERACTIONS, "task=factorization", "baselines=[]"], tmp_path / "plain")
    with pytest.raises(KeyError, match="Gaussian rows, which are those of none of this run"):
        plain.precision("item")
