"""Link prediction on a taxonomy: which pairs of its closure are kept from training."""

from __future__ import annotations

import numpy as np

from fedemb.data.assemble import keep_lines
from fedemb.data.held_out import SPLITS, TEST, TRAIN, VALIDATION, HoldOut, Label
from fedemb.data.shards import Shards
from fedemb.errors import SettingError
from fedemb.seeds import bits, stream_keys
from fedemb.types import Taxonomy


def check_shares(validation_share: float, test_share: float, closure: bool) -> None:
    """Checks what a source of a taxonomy is asked to hold out.

    Raises:
        SettingError: If a share is out of range, or examples are direct edges alone.
    """
    HoldOut(validation_share=validation_share, test_share=test_share)
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if share and not closure:
            raise SettingError(
                f"data.{name} must be 0 where data.closure is false, got {share}; direct edges are never "
                "held out, so set data.closure=true"
            )


def label_pairs(taxonomy: Taxonomy, validation_share: float, test_share: float, seed: int) -> Label:
    """Part ``(pairs,)`` that each pair of the closure belongs to.

    Direct edges are for training: all else follows from them, and without them nothing does. Of the other
    pairs, the ones with the least draws are for testing and the next ones for validation, exactly as
    many as the share says. A draw is keyed by its pair, so that clients and their order do not matter.

    Args:
        taxonomy: Its pairs in any order.
        validation_share: Of the pairs that are not direct edges.
        test_share: The same for testing.
        seed: Of the draws.

    Reference: Nickel, Kiela, "Poincaré Embeddings for Learning Hierarchical Representations", NeurIPS
    2017, section 4.1.
    """
    far = np.flatnonzero(~taxonomy.direct)
    keys = stream_keys(seed, "held-out pairs", taxonomy.child[far], taxonomy.parent[far])
    far = far[np.argsort(bits(keys, 1)[:, 0], kind="stable")]
    num_test, num_validation = round(test_share * len(far)), round(validation_share * len(far))
    label = np.full(len(taxonomy.child), TRAIN, dtype=np.int8)
    label[far[:num_test]] = TEST
    label[far[num_test : num_test + num_validation]] = VALIDATION
    return label


def split_pairs(pairs: Shards, taxonomy: Taxonomy, label: Label) -> tuple[Shards, dict[str, Shards]]:
    """Each client's pairs for training, and those of each part that has any: same clients, same order.

    A pair that several clients hold goes the same way at all of them. A client may be left with
    nothing to train on.

    Args:
        pairs: Columns ``child`` and ``parent``: pairs of the closure.
        taxonomy: Its pairs sorted by child, then parent.
        label: ``(pairs of the closure,)`` from ``label_pairs``.
    """
    num_nodes = len(taxonomy.depth)
    keys = taxonomy.child * num_nodes + taxonomy.parent
    wanted = pairs.columns["child"] * num_nodes + pairs.columns["parent"]
    part = label[np.searchsorted(keys, wanted)]
    held_out = {name: keep_lines(pairs, part == number) for name, number in SPLITS.items()}
    train = keep_lines(pairs, part == TRAIN)
    return train, {name: shards for name, shards in held_out.items() if shards.num_examples}
