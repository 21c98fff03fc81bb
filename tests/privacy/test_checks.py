"""Every combination that would make a claim of privacy untrue is an error that names the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedemb.build import build
from fedemb.config import compose_config
from fedemb.errors import SettingError
from tests.graphs import graph_files

TREE = [
    "data=synthetic", "data.structure=tree", "data.num_items=60", "data.num_clients=8", "data.examples_per_client=6",
    "task.dim=3", "task.negatives=4", "rounds=2",
]  # fmt: skip
ITEMS = [
    "data=synthetic", "data.num_clients=20", "data.num_items=30", "data.examples_per_client=12", "task.dim=3",
    "rounds=2",
]  # fmt: skip
TRIPLES = [
    "data=triples", f"data.path={graph_files()}", "partition=natural", "task=knowledge_graph", "task.dim=4", "rounds=2",
]  # fmt: skip
CENTRAL, EXAMPLE, LOCAL = "privacy=client_central", "privacy=example", "privacy=local"
DISTRIBUTED = ["privacy=client_distributed", "aggregate=secure"]

UNSOUND = {
    "divided by who holds a row": ([*TREE, CENTRAL, "aggregate.rows=ratio"], "aggregate.rows=fedavg or sum"),
    "holders are counted": ([*TREE, LOCAL, "aggregate.rows=heat"], "aggregate.rows=fedavg or sum"),
    "the population's holders are counted": (
        [*TREE, EXAMPLE, "aggregate.rows=population"], "aggregate.rows=fedavg or sum",
    ),
    "points are averaged": (
        [*TREE, CENTRAL, "aggregate.rows=fedavg", "aggregate.mean=centroid"], "aggregate.mean=tangent",
    ),
    "weights are not bounded": (
        [*TREE, CENTRAL, "aggregate.rows=fedavg", "aggregate.weights=examples"], "aggregate.weights=uniform or capped",
    ),
    "two bounds": ([*TREE, CENTRAL, "aggregate.clip_norm=1"], "aggregate.clip_norm must be null"),
    "shares of noise without a secure sum": ([*TREE, "privacy=client_distributed"], "needs aggregate=secure"),
    "a secure sum without noise": ([*TREE, "aggregate=secure"], "needs privacy=client_distributed"),
    "a secure sum with noise elsewhere": ([*TREE, CENTRAL, "aggregate=secure"], "needs privacy=client_distributed"),
    "negatives by private counts": (
        [*ITEMS, "task=skipgram", CENTRAL, "task.noise_power=0.75"], "task.noise_power must be 0",
    ),
    "examples dropped by private counts": (
        [*ITEMS, "task=skipgram", EXAMPLE, "task.subsample=0.01"], "task.subsample must be 0",
    ),
    "losses know other examples": ([*TREE, EXAMPLE, "task.exclude_known=true"], "task.exclude_known must be false"),
    "losses may know other examples": (
        [*TREE, EXAMPLE, "privacy.uses_other_examples=true", "task.exclude_known=false"],
        "task.exclude_known must be false",
    ),
    "compared with what the client holds": (
        [*TRIPLES, EXAMPLE, "task.against=own", "aggregate.rows=fedavg"], "task.against=all",
    ),
    "rows found without noise": (
        [*ITEMS, "task=factorization", EXAMPLE, "train.personal=reconstructed"], "train.personal=stateful",
    ),
    "examples in turn": ([*ITEMS, "task=skipgram", EXAMPLE, "train.share=0.5"], "train.share must be 1"),
    "fixed cohorts accounted as coins": (
        [*TREE, CENTRAL, "cohort=uniform", "cohort.size=3"], "does not know FixedSizeSampled.*privacy.accountant=rdp",
    ),
    "an accountant that does not know the noise": (
        [*TREE, *DISTRIBUTED, "privacy.accountant=pld"], "does not know SkellamNoise.*privacy.accountant=rdp",
    ),
    "cohorts that may be too small": ([*TREE, *DISTRIBUTED, "cohort=poisson"], "cohort=full, uniform or turns"),
    "more survivors than there are": (
        [*TREE, *DISTRIBUTED, "privacy.min_clients=9"], "privacy.min_clients must be at most 8",
    ),
    "no room in the ring": ([*TREE, *DISTRIBUTED, "privacy.grid=1e-10"], "aggregate.ring=64 or a larger privacy.grid"),
    "correlated noise of changing size": (
        [*TREE, CENTRAL, "privacy.bands=2", "cohort=turns", "cohort.size=4", "privacy.adaptive_clip.quantile=0.5"],
        "privacy.adaptive_clip.quantile must be null",
    ),
    "no rounds between participations": ([*TREE, CENTRAL, "privacy.bands=4"], "cohort=turns"),
    "more bands than rounds between participations": (
        [*TREE, CENTRAL, "privacy.bands=4", "cohort=turns", "cohort.size=4"], r"privacy\.bands must be in 1 \.\. 2",
    ),
    "too little noise on the count": (
        [*TREE, CENTRAL, "privacy.noise_multiplier=3", "privacy.adaptive_clip.quantile=0.5",
         "privacy.adaptive_clip.count_noise=1"],
        "count_noise must be more than half",
    ),
    "rows chosen where nobody may count": ([*TREE, LOCAL, "privacy.universe=select"], "declare the universe"),
    "a target and the noise": (
        [*TREE, CENTRAL, "privacy.target_epsilon=2", "privacy.noise_multiplier=1"], "noise_multiplier must be null",
    ),
    "a target that nothing meets": (
        [*TREE, CENTRAL, "privacy.universe=select", "privacy.target_epsilon=2", "privacy.selection.delta=1e-5"],
        "cannot be met",
    ),
    "models trained on the same data": (
        [*TREE, CENTRAL, "privacy.metrics=none"], r"baselines must be empty.*baselines=\[\]",
    ),
    "ablations on the same data": (
        [*TREE, CENTRAL, "privacy.metrics=none", "baselines=[]", '+ablations.flat=["task.manifold=euclidean"]'],
        "ablations must be empty",
    ),
    "integers without masks at a real server": (
        [*TREE, *DISTRIBUTED, "runner=deployment", "baselines=[]", "privacy.metrics=none"], "privacy=local or example",
    ),
    "raw figures of real clients": (
        [*TREE, CENTRAL, "runner=deployment", "baselines=[]"], "privacy.metrics must be none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_pair_is_refused(case: str) -> None:
    overrides, remedy = UNSOUND[case]
    with pytest.raises(SettingError, match=remedy) as caught:
        build(compose_config(overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [*TREE, CENTRAL],
        [*TREE, EXAMPLE],
        [*TREE, LOCAL],
        [*TREE, *DISTRIBUTED],
        [*TREE, CENTRAL, "cohort=uniform", "cohort.size=3", "privacy.accountant=rdp"],
        [*ITEMS, "task=factorization", EXAMPLE],
        [*ITEMS, "task=dynamic", CENTRAL],
        [*TRIPLES, EXAMPLE, "aggregate.rows=fedavg"],
        [*TRIPLES, CENTRAL, "aggregate.rows=sum", "aggregate.weights=capped"],
        [*TREE, CENTRAL, "privacy.metrics=none", "baselines=[]"],
        [*TREE, CENTRAL, "privacy.metrics=none", "baselines=[]", "runner=deployment"],
    ],
)
def test_sound_ones_are_built(overrides: list[str]) -> None:
    assert build(compose_config(overrides)).protection is not None


def test_a_delta_that_lets_a_client_be_published_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build(compose_config([*TREE, CENTRAL, "privacy.delta=0.2"]))
    assert any("published outright" in record.message for record in caplog.records)


def test_a_universe_is_a_file_of_names(tmp_path: Path) -> None:
    parts = build(compose_config([*ITEMS, "task=skipgram"]))
    names = parts.dataset.vocabularies["item"].to_list()
    path = tmp_path / "public.txt"
    path.write_text("\n".join([*names[:7], "never seen"]))
    for mode in (CENTRAL, LOCAL, EXAMPLE):
        made = build(compose_config([*ITEMS, "task=skipgram", mode, f"privacy.universe={path}"]))
        assert made.protection is not None
        for table in made.shared:
            assert made.protection.layout.ids(table).tolist() == list(range(7))
    path.write_text("nobody\n")
    with pytest.raises(SettingError, match="none of its names"):
        build(compose_config([*ITEMS, "task=skipgram", CENTRAL, f"privacy.universe={path}"]))
