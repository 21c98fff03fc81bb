"""Embeddings that move: an item's vector is a function of time, and a client's state follows what it does."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedemb.data.cells import show_time
from fedemb.data.shards import Shards
from fedemb.data.time_slices import prolonged, slice_of, time_slices
from fedemb.data.vocabulary import OUT_OF_VOCABULARY
from fedemb.errors import SettingError
from fedemb.manifolds import Euclidean
from fedemb.tasks.contexts import DAY, NOTHING, earlier_items, latest_items, neighbours
from fedemb.tasks.noise import uniform_ids
from fedemb.types import Batch, Dataset, Dense, Exclusion, Int64, Table

_log = logging.getLogger("fedemb")

ROWS = ("static", "slices", "continuous")
STATES = ("mean", "exponential", "gated")
CONTEXTS = ("history", "window")
_DECAY_DAYS = 30.0  # where a learnt decay begins
_REPEAT_DAYS = (7.0, 60.0, float("inf"))  # how long a repeat is remembered: a mixture of these
_REPEAT_START = (
    1.0,
    1.0,
    -0.5,
    -0.5,
)  # of a repeat: constant, log of the memory, share of bias and of affinity
_MEMORY_START = (-0.5, 0.5, 1.0)
_FORGOTTEN = 1e-12
_IMPOSSIBLE = float("-inf")


@dataclass(frozen=True)
class Dynamic:
    """Scores which item an event at time t is by its context: ``bias_i(t) + <state, item_i(t)> / temperature``.

    **Items in time** (``rows``): ``static`` rows do not move. ``slices`` add to each vector an adjustment for the
    slice that t lies in, and the bias is the slice's own; an entity's slices follow a random walk, whose prior the
    server solves for. ``continuous`` rows are functions: the row plus coefficients of learnt features of time,
    a line and sine waves.

    **The state** (``state``) sums up the context, by vectors of their own: the ``mean`` of them; or it is
    carried forward in time by every new item, ``exponential``: ``s <- exp(-days / tau) s + context_j``, over
    the sum of the same weights plus one, or ``gated``: each coordinate fades likewise, and a gate says how much
    of the new item it takes up. The context (``context``) is the client's ``history`` before the session of the
    event, or in a text the ``window`` on both sides.

    **Repeats**: what the client took before gains ``repeat_i + w_0 + w_1 log(memory) + w_2 bias + w_3 <state,
    item>``, where the memory is what a self-exciting process remembers: a sum over the times it was taken of
    decays with age.

    Loss of an example: ``- log softmax`` of its item over all items, of which all terms but its own are
    estimated: ``own_negatives`` drawn from its own history stand for all of that, ``negatives`` drawn uniformly
    stand for the rest.

    Attributes:
        num_items: Height of the tables.
        bounds: ``(slices + 1,)`` epoch seconds.
        dim: Dimensions.
        negatives: Items drawn uniformly for each example and epoch.
        own_negatives: Items drawn from the example's own history, where repeats are scored; else 0.
        rows: ``static``, ``slices`` or ``continuous``.
        state: ``mean``, ``exponential`` or ``gated``.
        context: ``history`` or ``window``.
        length: Items of a history, or neighbours to either side in a window.
        repeats: Whether what a client took before is scored as a repeat.
        walk: Precision of the random walk of the slices.
        num_waves: Sine waves among the features of time.
        l2: Half of this times the squared norm of every vector looked up is added to the loss.
        init_scale: Of the vectors.
        temperature: Of their products: a small one lets short vectors say much, so that they learn as fast as biases.
        gated_steps: How many of a history's latest items a ``gated`` state steps through, one after another.
        follow: Names of items that the report follows through time.

    Raises:
        ValueError: From ``scores``, if a history reaches past the time when a client is asked.

    Reference: slices and walk: Bamler, Mandt, "Dynamic Word Embeddings", ICML 2017; Rudolph, Blei, "Dynamic
    Embeddings for Language Evolution", WWW 2018, eq. 2-4 (a moving vector against static contexts). Features of
    time: Kazemi et al., "Time2Vec", 2019, eq. 1. States: Kumar, Zhang, Leskovec, "Predicting Dynamic Embedding
    Trajectory in Temporal Interaction Networks", KDD 2019 (here over a truncated history, with diagonal gates).
    Repeats: Wang et al., "Modeling Item-Specific Temporal Dynamics of Repeat Consumption", WWW 2019. Sampled softmax:
    Bengio, Senecal, "Adaptive Importance Sampling", IEEE TNN 2008.
    """

    num_items: int
    bounds: Int64
    dim: int
    negatives: int
    own_negatives: int
    rows: str
    state: str
    context: str
    length: int
    repeats: bool
    walk: float
    num_waves: int
    l2: float
    init_scale: float
    temperature: float = 1.0
    gated_steps: int = 16
    follow: tuple[str, ...] = ()

    @staticmethod
    def build(
        dataset: Dataset,
        dim: int,
        negatives: int,
        own_negatives: int,
        rows: str,
        state: str,
        context: str,
        length: int,
        repeats: bool,
        slice: str,
        walk: float,
        num_waves: int,
        l2: float,
        init_scale: float,
        temperature: float = 1.0,
        gated_steps: int = 16,
        follow: list[str] | None = None,
    ) -> Dynamic:
        """The task for these data.

        Raises:
            SettingError: If the data have no times, or a setting is out of range.
        """
        if "item" not in dataset.train.columns or dataset.span is None:
            raise SettingError(
                "task=dynamic needs who took which item, and when: use data=interactions or data=text with times "
                "(data.columns.time)"
            )
        for name, word, words in (
            ("rows", rows, ROWS),
            ("state", state, STATES),
            ("context", context, CONTEXTS),
        ):
            if word not in words:
                raise SettingError(f"task.{name} must be one of {', '.join(words)}, got {word!r}")
        for name, value, low in (
            ("dim", dim, 1), ("negatives", negatives, 1), ("own_negatives", own_negatives, 0), ("length", length, 1),
            ("gated_steps", gated_steps, 1), ("walk", walk, 0), ("num_waves", num_waves, 0), ("l2", l2, 0),
        ):  # fmt: skip
            if not low <= value < float("inf"):
                raise SettingError(f"task.{name} must be at least {low}, got {value}")
        for name, value in (("init_scale", init_scale), ("temperature", temperature)):
            if not 0 < value < float("inf"):
                raise SettingError(f"task.{name} must be > 0, got {value}; 0.1 is usual")
        if context == "window" and (repeats or state != "mean"):
            raise SettingError(
                "task.context=window has no order in time: it needs task.state=mean and task.repeats=false, "
                f"got {state} and {str(repeats).lower()}"
            )
        names = dataset.vocabularies["item"]
        follow = [str(name) for name in follow or []]
        for name, index in zip(follow, names.index(follow), strict=True):
            if index == OUT_OF_VOCABULARY:
                raise SettingError(f"task.follow must name items of the vocabulary, got {name!r}")
        if dataset.slices is None:
            bounds = time_slices(dataset.span, slice)
            _warn_of_empty(np.asarray(dataset.train.columns["time"]), bounds, slice)
        else:  # of functions of time, whose span is a part of what they mean, newer events lie at the end
            bounds = prolonged(dataset.slices, dataset.span[1], slice) if rows == "slices" else dataset.slices
        return Dynamic(
            len(names), bounds, dim, negatives, own_negatives if repeats else 0, rows, state, context, length,
            repeats, walk, num_waves, l2, init_scale, temperature, gated_steps, tuple(follow),
        )  # fmt: skip

    @property
    def moves(self) -> bool:
        return self.rows != "static"

    @property
    def slices(self) -> Int64:
        return self.bounds

    @property
    def num_slices(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        flat, n = Euclidean(), self.num_items
        tables = [
            Table("item", n, self.dim, flat, self.init_scale),
            Table("context", n, self.dim, flat, self.init_scale),
        ]
        if self.rows != "slices":
            tables.append(Table("bias", n, 1, flat, 0.0))
        if self.rows == "slices":
            count, steps = self.num_slices * n, {"num_slices": self.num_slices, "walk": self.walk}
            tables += [
                Table("item_slice", count, self.dim, flat, 0.0, **steps),  # type: ignore[arg-type]
                Table("bias_slice", count, 1, flat, 0.0, **steps),  # type: ignore[arg-type]
            ]
        if self.rows == "continuous":
            tables += [
                Table("item_wave", n, self.num_features * self.dim, flat, 0.0),
                Table("bias_wave", n, self.num_features, flat, 0.0),
            ]
        if self.repeats:
            tables.append(Table("repeat", n, 1, flat, 0.0))
        return tuple(tables)

    @cached_property
    def dense(self) -> tuple[Dense, ...]:
        found = []
        if self.rows == "continuous" and self.num_waves:
            found.append(Dense("wave", (2, self.num_waves)))
        if self.state == "exponential":
            found.append(Dense("decay", ()))
        if self.state == "gated":
            found.append(Dense("gate", (4, self.dim)))
        if self.repeats:
            found.append(Dense("repeating", (len(_REPEAT_START) + len(_REPEAT_DAYS),)))
        return tuple(found)

    @property
    def num_features(self) -> int:
        """Features of time: a line, and the waves."""
        return 1 + self.num_waves

    @property
    def num_draws(self) -> int:
        return self.negatives + self.own_negatives

    @property
    def exclusion(self) -> Exclusion | None:
        """None: to leave out what a client took later would tell of the future. What it took before stands in the
        example itself.
        """
        return None

    def examples(self, shards: Shards) -> Shards:
        """Every event with its context: ``context`` ``(lines, length)`` int32, -1 for nothing, ``age`` in days."""
        columns = {
            n: shards.columns[n]
            for n in ("item", "time", "session", "weight", "owner")
            if n in shards.columns
        }
        if self.context == "window":
            columns["context"] = neighbours(shards, self.length)
        else:
            columns["context"], columns["age"] = earlier_items(shards, self.length)
        if self.rows == "slices":
            columns["slice"] = slice_of(np.asarray(shards.columns["time"]), self.bounds)
        return Shards(columns, shards.offsets)

    def sample(self, batch: Batch, uniforms: Tensor) -> Batch:
        out = {**batch, "negatives": uniform_ids(uniforms[:, : self.negatives], self.num_items)}
        if self.own_negatives:
            held = (batch["context"] != NOTHING).sum(1, keepdim=True)
            at = (uniforms[:, self.negatives :] * held).long()
            out["own"] = batch["context"].gather(1, at)
        return out

    def _candidates(self, batch: Batch) -> Tensor:
        """The example's item, draws of its own, and draws of all ``(examples, candidates)``; drawn ones come last."""
        item = batch["item"][:, None]
        own = [torch.where(batch["own"] == NOTHING, item, batch["own"].long())] if self.own_negatives else []
        return torch.cat((item, *own, batch["negatives"]), dim=1)

    def lookup(self, batch: Batch) -> dict[str, Tensor]:
        candidates, context = self._candidates(batch), batch["context"].long()
        some = context.amax(1, keepdim=True)  # a row that the example looks up anyway fills the gaps
        filler = torch.where(some == NOTHING, batch["item"][:, None], some)
        ids = {"item": candidates, "context": torch.where(context == NOTHING, filler, context)}
        if self.rows != "slices":
            ids["bias"] = candidates
        if self.rows == "slices":
            ids |= dict.fromkeys(
                ("item_slice", "bias_slice"), candidates * self.num_slices + batch["slice"][:, None]
            )
        if self.rows == "continuous":
            ids |= dict.fromkeys(("item_wave", "bias_wave"), candidates)
        if self.repeats:
            ids["repeat"] = candidates
        return ids

    def loss(self, vectors: Mapping[str, Tensor], dense: Mapping[str, Tensor], batch: Batch) -> Tensor:
        items, biases = vectors["item"], vectors["bias_slice" if self.rows == "slices" else "bias"][..., 0]
        if self.rows == "slices":
            items = items + vectors["item_slice"]
        if self.rows == "continuous":
            features = self.features(batch["time"], dense.get("wave"), items.dtype)
            shape = (*items.shape[:2], self.num_features, self.dim)
            items = items + torch.einsum("nf,nkfd->nkd", features, vectors["item_wave"].view(shape))
            biases = biases + torch.einsum("nf,nkf->nk", features, vectors["bias_wave"])
        present = batch["context"] != NOTHING
        age = batch["age"].to(items.dtype) if "age" in batch else None
        state = self._state(vectors["context"], present, age, dense)
        affinity = torch.einsum("nd,nkd->nk", state, items) / self.temperature
        scores, candidates = biases + affinity, self._candidates(batch)
        counts = (candidates[:, :, None] == batch["context"][:, None, :]).to(scores.dtype)
        if self.repeats and age is not None:
            memory = torch.einsum("nkl,nlj->nkj", counts, _remembered(age))
            gain = _repeat_gain(memory, biases, affinity, vectors["repeat"][..., 0], dense["repeating"])
            scores = torch.where(counts.sum(-1) > 0, scores + gain, scores)
        stands_for = self._stands_for(candidates, counts.sum(-1), present.sum(1))
        loss = torch.logsumexp(scores + stands_for, 1) - scores[:, 0]
        if self.l2:
            looked_up = vectors["context"].square().sum(-1).mul(present).sum(1) + items.square().sum((1, 2))
            if self.repeats:
                looked_up = looked_up + vectors["repeat"].square().sum((1, 2))
            loss = loss + 0.5 * self.l2 * looked_up
        return loss

    def _stands_for(self, candidates: Tensor, counts: Tensor, held: Tensor) -> Tensor:
        """Log of how many items each candidate stands for: 0 for the example's own, minus infinity for what is
        counted elsewhere.
        """
        same = candidates == candidates[:, :1]
        same[:, 0] = False
        log = torch.full_like(counts, float(np.log(self.num_items / self.negatives)))
        log[:, 0] = 0.0
        own = slice(1, 1 + self.own_negatives)
        if self.own_negatives:
            drawn = held.clamp(min=1).to(counts.dtype)[:, None] / self.own_negatives
            log[:, own] = torch.log(drawn / counts[:, own].clamp(min=1))
            elsewhere = counts > 0
            elsewhere[:, : 1 + self.own_negatives] = False
            same = same | elsewhere
        return log.masked_fill(same, _IMPOSSIBLE)

    def features(self, time: Tensor, wave: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Features of time ``(times, num_features)``: a line from -1 to 1 over all slices, and sine waves, over the
        root of their number, so that more of them do not make a row move further.

        Wave j begins with j half turns over that span; frequency and phase are learnt. Beyond the span time stands
        still: a function that was fitted there says nothing of what comes.

        Args:
            time: ``(times,)`` epoch seconds.
            wave: ``(times, 2, num_waves)`` relative change of each frequency, and phase.
            dtype: Of the result.
        """
        first, last = float(self.bounds[0]), float(self.bounds[-1])
        line = (((time.double() - first) / (last - first)).clamp(0.0, 1.0) * 2 - 1).to(dtype)[:, None]
        if wave is None:
            return line
        half_turns = torch.arange(1, self.num_waves + 1, device=time.device)
        wave = wave.to(dtype)
        angle = 0.5 * torch.pi * half_turns * (1 + wave[:, 0]) * (line + 1) + wave[:, 1]
        return torch.cat((line, torch.sin(angle)), dim=1) / math.sqrt(self.num_features)

    def _state(
        self, context: Tensor, present: Tensor, age: Tensor | None, dense: Mapping[str, Tensor]
    ) -> Tensor:
        """What a context comes to ``(examples, dim)``; zero without any.

        Args:
            context: ``(examples, length, dim)`` vectors, the latest first.
            present: ``(examples, length)`` bool.
            age: ``(examples, length)`` days.
            dense: ``(examples, *shape)``.
        """
        here = present.to(context.dtype)
        if self.state == "mean" or age is None:
            return torch.einsum("nl,nld->nd", here, context) / (here.sum(1, keepdim=True) + 1)
        if self.state == "exponential":
            weight = here * torch.exp(-age / (_DECAY_DAYS * torch.exp(dense["decay"]))[:, None])
            return torch.einsum("nl,nld->nd", weight, context) / (weight.sum(1, keepdim=True) + 1)
        latest = slice(None, self.gated_steps)
        context, present, age = context[:, latest], present[:, latest], age[:, latest]
        of_item, of_state, offset, log_decay = dense["gate"].unbind(1)
        rate = torch.exp(-log_decay) / _DECAY_DAYS
        state = torch.zeros_like(context[:, 0])
        earlier = age[:, -1]
        for step in range(context.shape[1] - 1, -1, -1):
            state = state * torch.exp(-rate * (earlier - age[:, step])[:, None])
            earlier = age[:, step]
            gate = torch.sigmoid(of_item * context[:, step] + of_state * state + offset)
            new = state + gate * (context[:, step] - state)
            state = torch.where(present[:, step, None], new, state)
        return state * torch.exp(-rate * earlier[:, None])

    @property
    def catalogue(self) -> str:
        return "item"

    def scores(
        self,
        tables: Mapping[str, Tensor],
        personal: Mapping[str, Tensor],
        history: Shards,
        now: Int64 | None = None,
    ) -> Tensor:
        """Scores ``(clients, items)`` at the time that each client is asked, by its own history until then.

        Repeats count all of that history; the state its last ``length`` items, as in training.
        """
        if now is None:
            raise ValueError("task=dynamic must be told when a client is asked, got no time")
        item = tables["item"]
        taken, days = latest_items(history, self.length, now)
        context, age = (torch.from_numpy(part).to(item.device) for part in (taken, days))
        asked = torch.from_numpy(now).to(item.device)
        own = {d.name: tables[d.name].expand(len(now), *d.shape) for d in self.dense}
        biases, affinity = self._of_all_items(tables, own, context, age.to(item.dtype), asked)
        scores = biases + affinity
        if not self.repeats:
            return scores
        taken_at, memory = self._memories(history, asked)
        client, which = taken_at // self.num_items, taken_at % self.num_items
        gain = _repeat_gain(
            memory[:, None], biases[client, which][:, None], affinity[client, which][:, None],
            tables["repeat"][which], own["repeating"][client],
        )  # fmt: skip
        return scores.index_put((client, which), gain[:, 0], accumulate=True)

    def _of_all_items(
        self,
        tables: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        context: Tensor,
        age: Tensor | None,
        time: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Biases and affinities ``(asked, items)`` of every item for each context at its time.

        Args:
            tables: All tables.
            dense: ``(asked, *shape)``.
            context: ``(asked, length)`` items, -1 for nothing.
            age: ``(asked, length)`` days, where contexts have ages.
            time: ``(asked,)`` epoch seconds.
        """
        item, present = tables["item"], context != NOTHING
        state = (
            self._state(tables["context"][context.clamp(min=0).long()], present, age, dense)
            / self.temperature
        )
        affinity = state @ item.T
        if self.rows != "slices":
            biases = tables["bias"][:, 0].expand(len(time), -1)
        if self.rows == "continuous":
            features = self.features(time, dense.get("wave"), item.dtype)
            lifted = (features[:, :, None] * state[:, None]).flatten(1)
            affinity = affinity + lifted @ tables["item_wave"].T
            biases = biases + features @ tables["bias_wave"].T
        if self.rows == "slices":
            at = slice_of(time.cpu().numpy(), self.bounds)
            biases = torch.empty_like(affinity)
            for number in np.unique(at):
                here = torch.from_numpy(np.flatnonzero(at == number)).to(item.device)
                affinity[here] += state[here] @ tables["item_slice"][number :: self.num_slices].T
                biases[here] = tables["bias_slice"][number :: self.num_slices, 0]
        return biases, affinity

    @property
    def by_context(self) -> bool:
        """Whether an item is predicted from what stands on both sides of it, and not from a client's past."""
        return self.context == "window"

    def context_scores(self, tables: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Scores ``(examples, items)`` of every item in the place of each example's own, by its context and time."""
        own = {d.name: tables[d.name].expand(len(batch["time"]), *d.shape) for d in self.dense}
        biases, affinity = self._of_all_items(tables, own, batch["context"], batch.get("age"), batch["time"])
        return biases + affinity

    def _memories(self, history: Shards, now: Tensor) -> tuple[Tensor, Tensor]:
        """Every ``client * num_items + item`` that was taken, and what is remembered of it, by decay."""
        columns = (np.asarray(history.columns[name]) for name in ("item", "time"))
        item, time = (torch.from_numpy(column).to(now.device) for column in columns)
        client = torch.from_numpy(history.owners()).to(now.device)
        keys, at = torch.unique(client * self.num_items + item, return_inverse=True)
        remembered = _remembered((now[client] - time) / DAY)
        return keys, remembered.new_zeros((len(keys), len(_REPEAT_DAYS))).index_add_(0, at, remembered)

    def vectors_at(self, tables: Mapping[str, Tensor], time: int) -> Tensor:
        """Item vectors ``(items, dim)`` at a point in time."""
        item = tables["item"]
        if self.rows == "slices":
            number = int(slice_of(np.array([time]), self.bounds)[0])
            return item + tables["item_slice"][number :: self.num_slices]
        if self.rows == "continuous":
            wave = tables["wave"][None] if self.num_waves else None
            features = self.features(torch.tensor([time], device=item.device), wave, item.dtype)[0]
            return item + torch.einsum(
                "f,ifd->id", features, tables["item_wave"].view(len(item), -1, self.dim)
            )
        return item


def _warn_of_empty(times: Int64, bounds: Int64, length: str) -> None:
    """Says so where most slices have no event: one date that is far off makes thousands of them."""
    filled = len(np.unique(slice_of(times, bounds)))
    if len(times) and filled < (len(bounds) - 1) / 2:
        _log.warning(
            "task.slice=%s makes %d slices from %s to %s, and %d of them have no training event: is a date far off? "
            "data.since and data.until leave such ones out",
            length, len(bounds) - 1, show_time(int(bounds[0]))[:10], show_time(int(bounds[-1]))[:10],
            len(bounds) - 1 - filled,
        )  # fmt: skip


def _remembered(age: Tensor) -> Tensor:
    """What is left of each event after so many days, by decay ``(..., decays)``."""
    return torch.exp(-age[..., None] / torch.tensor(_REPEAT_DAYS, dtype=age.dtype, device=age.device))


def _repeat_gain(memory: Tensor, biases: Tensor, affinity: Tensor, own: Tensor, dense: Tensor) -> Tensor:
    """What a repeat adds to a score ``(examples, candidates)``; see ``Dynamic``.

    Args:
        memory: ``(examples, candidates, decays)``.
        biases, affinity: ``(examples, candidates)``, of the score without it.
        own: ``(examples, candidates)`` the items' own.
        dense: ``(examples, 4 + decays)``.
    """
    weights = dense[:, :4] + dense.new_tensor(_REPEAT_START)
    mixture = softplus(dense[:, 4:] + dense.new_tensor(_MEMORY_START))
    log = torch.log(torch.einsum("nkj,nj->nk", memory, mixture).clamp(min=_FORGOTTEN))
    constant, slope, of_bias, of_affinity = weights[:, :, None].unbind(1)
    return own + constant + slope * log + of_bias * biases + of_affinity * affinity
