"""tasks/scoring.py against the formulas of the papers, in NumPy's own complex numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedemb.tasks import scoring
from fedemb.tasks.scoring import MODELS

DIM, COUNT = 6, 5
every_model = pytest.mark.parametrize("name", MODELS)


def as_complex(row: Tensor) -> np.ndarray:
    real, imaginary = np.split(row.numpy(), 2)
    return np.asarray(real + 1j * imaginary)


def slow_score(name: str, head: Tensor, relation: Tensor, tail: Tensor) -> float:
    h, r, t = (x.numpy() for x in (head, relation, tail))
    match name:
        case "transe":
            return float(-np.abs(h + r - t).sum())
        case "transe_l2":
            return float(-np.sqrt(((h + r - t) ** 2).sum()))
        case "distmult":
            return float((h * r * t).sum())
        case "complex":
            return float((as_complex(head) * as_complex(relation) * np.conj(as_complex(tail))).sum().real)
        case _:
            return float(-np.abs(as_complex(head) * np.exp(1j * r) - as_complex(tail)).sum())


def random_triple(name: str, count: int = COUNT) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = (DIM, MODELS[name].relation_width(DIM), DIM)
    head, relation, tail = (
        2 * torch.randn(count, width, generator=generator, dtype=torch.float64) for width in widths
    )
    return head, relation, tail


@every_model
def test_score_is_the_papers(name: str) -> None:
    """Of every triple of some heads with their relations, and some tails; with and without an axis of clients."""
    scoring, (heads, relations, tails) = MODELS[name], random_triple(name)
    scores = scoring.compare(scoring.query(heads, relations), tails)
    expected = [
        [slow_score(name, head, relation, tail) for tail in tails]
        for head, relation in zip(heads, relations, strict=True)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
    stacked = [torch.stack((x, x.flip(0))) for x in (heads, relations, tails)]
    together = scoring.compare(scoring.query(stacked[0], stacked[1]), stacked[2])
    torch.testing.assert_close(together, torch.stack((scores, scores.flip(0, 1))))
    one_by_one = scoring.compare(scoring.query(heads, relations)[:, None], tails[:, None])[:, 0, 0]
    torch.testing.assert_close(one_by_one, scores.diagonal())


@every_model
def test_score_is_the_same_from_either_end(name: str) -> None:
    scoring, (heads, relations, tails) = MODELS[name], random_triple(name)
    forward = scoring.compare(scoring.query(heads, relations), tails).diagonal()
    backward = scoring.compare(scoring.query(tails, scoring.inverse(relations)), heads).diagonal()
    torch.testing.assert_close(backward, forward)
    torch.testing.assert_close(scoring.inverse(scoring.inverse(relations)), relations)


def test_rotate_keeps_moduli_and_turns_back() -> None:
    rotate, (heads, phases, _) = MODELS["rotate"], random_triple("rotate")
    turned = rotate.query(heads, phases)
    torch.testing.assert_close(rotate.moduli(turned), rotate.moduli(heads))
    torch.testing.assert_close(rotate.query(turned, rotate.inverse(phases)), heads)
    torch.testing.assert_close(rotate.query(heads, phases + 2 * np.pi), turned)
    assert not torch.allclose(turned, heads)


@every_model
def test_moduli_are_absolute_values(name: str) -> None:
    rows = random_triple(name)[0]
    expected = [np.abs(as_complex(row)) if MODELS[name].halves else np.abs(row.numpy()) for row in rows]
    np.testing.assert_allclose(MODELS[name].moduli(rows), expected, rtol=1e-12)


@every_model
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15])
def test_gradients_are_finite_where_everything_is_in_one_place(name: str, scale: float) -> None:
    scoring, inputs = MODELS[name], random_triple(name)
    head, relation, tail = ((scale * x).float().requires_grad_() for x in inputs)
    entities = torch.cat((tail, head))
    query = scoring.query(head, relation)
    norms = sum(scoring.moduli(x).pow(3).sum() for x in (query, tail)) if scale <= 1 else 0.0
    total = scoring.compare(query, entities).sum() + norms
    for gradient in torch.autograd.grad(total, (head, relation, tail)):
        assert gradient.isfinite().all()


@every_model
def test_a_true_triple_scores_highest(name: str) -> None:
    """Distances are 0 where the tail is the query; products are largest there among vectors of that length."""
    scoring, (heads, relations, tails) = MODELS[name], random_triple(name)
    query = scoring.query(heads, relations)
    tails = tails / tails.norm(dim=1, keepdim=True) * query.norm(dim=1, keepdim=True)
    best = scoring.compare(query[:, None], query[:, None])[:, 0, 0]
    assert (scoring.compare(query[:, None], tails[:, None])[:, 0, 0] < best).all()
    if scoring.margin:
        torch.testing.assert_close(best, torch.zeros_like(best))


def test_moduli_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_NUMBERS", 7)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    entities = torch.randn(1, 5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    difference = query.unsqueeze(-2) - entities.unsqueeze(-3)
    at_once = -(difference[..., :2] ** 2 + difference[..., 2:] ** 2).sqrt().sum(-1)
    blocks = MODELS["rotate"].compare(query, entities)
    torch.testing.assert_close(blocks, at_once)
    slope = torch.randn(at_once.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(blocks, [query, entities], slope),
        torch.autograd.grad(at_once, [query, entities], slope),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
