"""Hierarchical embeddings: a taxonomy in a space where the tree has room."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.manifolds import manifold
from fedemb.pairwise import sum_exp_distances
from fedemb.tasks.listwise import Blocks, not_looked_up
from fedemb.tasks.noise import ids_from_cdf, noise_cdf, uniform_ids
from fedemb.types import Batch, Candidates, Dataset, Dense, Drawn, Exclusion, Table

# The parameter that learns the scale counts in units of this: a step of the points' learning rate, which is
# large, then moves the scale of all distances by less than a per cent.
SCALE_STEP = 0.02


@dataclass(frozen=True)
class Hierarchical:
    """Draws child and ancestor together against negatives from all nodes.

    Loss of an example (u, v): ``-log( exp(-d(u, v)) / sum over v' in {v} and negatives of exp(-d(u, v')) )``.

    Negatives are drawn from a public distribution over all nodes, never from a batch; nodes that the client knows to
    be ancestors are left out. ``shared_negatives`` draws them once for all examples of a client in a step: distances
    are then a matrix product, and many more negatives cost less. With ``log_q_correction`` the sum over those drawn
    estimates that over all nodes; without, a hundred wrong nodes among 82,115 that are nearer than an ancestor hardly
    count, for a step sees one or two of them.

    With ``learn_scale`` all distances are ``k`` times as long, k a dense parameter that is learnt beside the points. In
    hyperbolic space that is a learnt curvature: the space of curvature ``c`` with distances k times as long is that
    of curvature ``c / k^2``, and points keep their coordinates.

    Attributes:
        num_nodes: Height of the table.
        dim: Dimensions.
        manifold: ``poincare``, ``lorentz`` or ``euclidean``.
        curvature: Sectional curvature of a hyperbolic space, below 0.
        negatives: Nodes drawn for each example and epoch, or for each step.
        shared_negatives: Whether all examples of a client in a step have the same negatives.
        init_scale: Rows start uniform in a cube of this half width around the origin.
        exclude_known: Leaves out negatives that the client knows to be ancestors.
        learn_scale: Whether the scale of distances is learnt: ``curvature`` is then where it begins.
        log_q_correction: Whether a negative counts ``1 / (negatives * probability)`` times.
        cdf: ``(num_nodes,)`` cumulative distribution that negatives are drawn from; None: uniform.

    Reference: Nickel, Kiela, "Poincaré Embeddings for Learning Hierarchical Representations", NeurIPS
    2017, eq. (5). There negatives never are ancestors; here a client leaves out those it knows. The correction:
    Bengio, Senécal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model",
    IEEE TNN 2008, section III.
    """

    num_nodes: int
    dim: int
    manifold: str = "poincare"
    curvature: float = -1.0
    negatives: int = 50
    init_scale: float = 1e-3
    exclude_known: bool = True
    shared_negatives: bool = False
    learn_scale: bool = False
    log_q_correction: bool = False
    cdf: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("dim", "negatives"):
            if getattr(self, name) < 1:
                raise SettingError(f"task.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.init_scale < math.inf:
            raise SettingError(
                f"task.init_scale must be a positive number, got {self.init_scale}; 1e-3 is usual"
            )
        try:
            manifold(self.manifold, self.curvature)
        except SettingError as error:
            raise SettingError(f"task.{error}") from error

    @staticmethod
    def build(dataset: Dataset, noise_power: float = 0.0, **settings: object) -> Hierarchical:
        """The task for these data.

        Args:
            dataset: A taxonomy.
            noise_power: Negatives are drawn in proportion to this power of how often a node occurs in the pairs, which
                must then be public; 0: uniformly.
            settings: Attributes of the task.

        Raises:
            SettingError: If the data are no taxonomy, or a setting is out of range.
        """
        if not {"child", "parent"} <= set(dataset.train.columns):
            raise SettingError(
                "task=hierarchical needs children and parents: use data=taxonomy, wordnet or wordnet_mammals"
            )
        if not 0 <= noise_power < math.inf:
            raise SettingError(
                f"task.noise_power must be at least 0 (0: uniform) and finite, got {noise_power}"
            )
        nodes = dataset.vocabularies["node"]
        cdf = noise_cdf(nodes, noise_power) if noise_power else None
        return Hierarchical(len(nodes), cdf=cdf, **settings)  # type: ignore[arg-type]

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        space = manifold(self.manifold, self.curvature)
        return (Table("node", self.num_nodes, self.dim, space, self.init_scale, entity="node"),)

    @property
    def dense(self) -> tuple[Dense, ...]:
        return (Dense("log_scale", ()),) if self.learn_scale else ()

    def learnt_curvature(self, dense: Mapping[str, Tensor]) -> float | None:
        """The curvature that was learnt; None where it is fixed, or the space flat."""
        if not self.learn_scale or self.manifold == "euclidean":
            return None
        return self.curvature * math.exp(-2 * SCALE_STEP * float(dense["log_scale"]))

    @property
    def num_draws(self) -> int:
        return 0 if self.shared_negatives else self.negatives

    @property
    def candidates(self) -> Mapping[str, Drawn | None]:
        return {"node": Drawn(self.negatives, self.cdf)} if self.shared_negatives else {}

    @property
    def exclusion(self) -> Exclusion | None:
        candidates = None if self.shared_negatives else "negatives"
        return Exclusion("child", "parent", candidates) if self.exclude_known else None

    def examples(self, shards: Shards) -> Shards:
        return Shards(
            {name: shards.columns[name] for name in ("child", "parent", "owner") if name in shards.columns},
            shards.offsets,
        )

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        if self.shared_negatives:
            return batch
        drawn = (
            uniform_ids(uniforms, self.num_nodes) if self.cdf is None else ids_from_cdf(uniforms, self.cdf)
        )
        return {**batch, "negatives": drawn}

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        pair = torch.stack((batch["child"], batch["parent"]), dim=1)
        return {"node": pair if self.shared_negatives else torch.cat((pair, batch["negatives"]), dim=1)}

    def loss(
        self,
        vectors: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        batch: Batch,
        candidates: Mapping[str, Candidates] | None = None,
    ) -> Tensor:
        nodes, space = vectors["node"], self.tables[0].manifold
        scale = torch.exp(SCALE_STEP * dense["log_scale"]).to(nodes) if self.learn_scale else None
        if candidates:
            return self._listwise_loss(nodes, candidates["node"], scale)
        logits = -space.distance(nodes[:, :1], nodes[:, 1:])
        if scale is not None:
            logits = logits * scale[:, None]
        negatives = batch["negatives"]
        if self.log_q_correction:
            logits = logits - pad(self._log_q(negatives), (1, 0))
        false = (negatives == batch["child"][:, None]) | (negatives == batch["parent"][:, None])
        if "known" in batch:
            false |= batch["known"]
        logits = torch.cat((logits[:, :1], logits[:, 1:].masked_fill(false, float("-inf"))), dim=1)
        return torch.logsumexp(logits, dim=1) - logits[:, 0]

    def _log_q(self, negatives: Tensor) -> Tensor:
        """How often each of these was expected to be drawn ``(examples, negatives)``, as a logarithm."""
        if self.cdf is None:
            return torch.full(negatives.shape, math.log(self.negatives / self.num_nodes)).to(negatives.device)
        q = self.cdf.diff(prepend=self.cdf.new_zeros(1)).log().to(negatives.device)
        return q[negatives] + math.log(self.negatives)

    def _listwise_loss(self, nodes: Tensor, drawn: Candidates, scale: Tensor | None) -> Tensor:
        space, blocks = self.tables[0].manifold, Blocks.of(drawn)
        negative = blocks.fill(not_looked_up(drawn))
        scales = None if scale is None else blocks.fill(scale)
        weight = drawn.weight.to(nodes) if self.log_q_correction else None
        others = sum_exp_distances(space, blocks.fill(nodes[:, 0]), drawn.points, negative, scales, weight)
        true = space.distance(nodes[:, 0], nodes[:, 1])
        if scale is not None:
            true = true * scale
        log_others = blocks.take(others).clamp_min(torch.finfo(others.dtype).tiny).log()
        return torch.logaddexp(-true, log_others) + true
