"""Every YAML composes and builds; what is wrong is refused in the words of settings, before work starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from fedemb.build import Parts, _build
from fedemb.config import check, compose_config, conf_dir, digest
from fedemb.errors import DataError, SettingError
from fedemb.tasks.factorization import LOSSES

GROUPS = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))]
DATA = [option for group, option in OPTIONS if group == "data"]
TASKS = [option for group, option in OPTIONS if group == "task"]

# --- small data for every source that needs a file: a new one adds a line -------------------------------

_EVENTS = "client,item,time\n" + "".join(
    f"c{n % 4},i{(n * 7) % 5},2020-{month:02}-01\n" for month in range(1, 13) for n in range(8)
)
_PAIRS = "client,left,right,label\n" + "".join(f"c{n % 4},a{n % 5},a{n % 7},{n % 2}\n" for n in range(60))
_TEXTS = "client,text,time\n" + "".join(
    f"c{n % 4},The cat saw {'a dog' if n % 3 else 'an owl'}.,2020-{month:02}-01\n"
    for month in range(1, 13)
    for n in range(8)
)
_TREE = "child,parent\n" + "".join(f"n{n},n{n // 2}\n" for n in range(2, 40))
_NOUNS = (
    "00000100 03 n 01 entity 0 001 ~ 00000200 n 0000 | that which is  \n"
    "00000200 05 n 01 dog 0 001 @ 00000100 n 0000 | barks  \n"
    "00000300 18 n 01 cat 0 001 @ 00000100 n 0000 | does not  \n"
)
_INDEX = "cat n 1 1 @ 1 0 00000300  \ndog n 1 1 @ 1 0 00000200  \nentity n 1 1 ~ 1 1 00000100  \n"
_RETAIL = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n" + "".join(
    f"{month}{n},s{n % 5},thing,1,2011-{month:02}-{day:02} 10:00:00,2.5,{n % 4},UK\n"
    for month in (8, 9, 10, 11)
    for day in (3, 9)
    for n in range(12)
)
_RECORDS = "".join(
    json.dumps(
        {"id": n, "artist": f"c{n % 4}", "subjects": [f"s{n % 3}"], "title": f"The {n % 7}", "medium": "oil"}
        | {
            "dimensions": None,
            "year": 1800 + n,
            "classification": f"k{n % 2}",
            "movements": [],
            "inscription": None,
            "credit": f"Presented by {n % 3}",
        }
    )
    + "\n"
    for n in range(60)
)
_TRIPLES = [f"e{n % 7}\tr{n % 5}\te{n % 11}\n" for n in range(60)]
FILES = {
    "interactions": {"data.csv": _EVENTS},
    "pairs": {"data.csv": _PAIRS},
    "taxonomy": {"data.csv": _TREE},
    "triples": {
        "train.txt": "".join(_TRIPLES[:48]),
        "valid.txt": "".join(_TRIPLES[48:54]),
        "test.txt": "".join(_TRIPLES[54:]),
    },
    "wordnet": {"data.noun": _NOUNS, "index.noun": _INDEX},
    "online_retail": {"data.csv": _RETAIL},
    "text": {"data.csv": _TEXTS},
    "records": {"data.jsonl": _RECORDS},
}
FILES["clinc150"] = {
    "data_full.json": json.dumps(
        {
            split: [[f"please {intent} {n}", intent] for intent in ("pay", "lights") for n in range(6)]
            for split in ("train", "val", "test", "oos_test")
        }
    ),
    "domains.json": json.dumps({"bank": ["pay"], "home": ["lights"]}),
}
FILES["compositional"] = {"data.jsonl": _RECORDS}
FILES["probabilistic"] = FILES["clinc150"]
FILES["probabilistic_links"] = FILES["triples"]
FILES["knowledge_graph"] = FILES["triples"]  # the experiment of that name
FILES["leave_one_out"] = FILES["recommendation"] = FILES["dynamic"] = FILES["online_retail"]
FILES["dynamic_text"] = FILES["text"]
SYNTHETIC = ["data.num_clients=6", "data.num_items=60", "data.examples_per_client=20", "data.num_clusters=4"]
_GALLERY = [
    "data.components={title: text, year: number}",
    "data.columns={client: artist, label: subjects}",
    "data.label=multi",
]
# What else an option needs to stand on a few lines of data.
WITH = {
    ("data", "synthetic"): SYNTHETIC,
    ("data", "taxonomy"): ["partition.num_clients=3"],
    ("data", "triples"): ["partition.num_clients=3"],
    ("data", "records"): _GALLERY,
    ("data", "wordnet"): ["partition.num_clients=2"],
    ("partition", "column"): ["data=taxonomy", "partition.column=parent"],
    ("partition", "dirichlet"): ["data=taxonomy", "partition.column=parent", "partition.num_clients=3"],
    ("partition", "iid"): ["data=taxonomy", "partition.num_clients=3"],
    ("partition", "subtree"): ["data=taxonomy", "partition.num_clients=3"],
    ("partition", "relation"): ["data=triples", "task=knowledge_graph", "partition.num_clients=3"],
    ("partition", "entity"): ["data=triples", "task=knowledge_graph", "partition.num_clients=3"],
    ("partition", "natural"): ["data=interactions", "task=skipgram"],
    ("cohort", "uniform"): ["cohort.size=3"],
    ("cohort", "turns"): ["cohort.size=3"],
    ("aggregate", "secure"): ["privacy=client_distributed"],
    ("privacy", "client_distributed"): ["aggregate=secure"],
    ("experiment", "compositional"): ["data.label_tree.path=null"],
    ("experiment", "probabilistic_links"): ["partition.num_clients=3"],
    ("experiment", "knowledge_graph"): ["partition.num_clients=3"],
    ("experiment", "leave_one_out"): ["cohort.size=2", "evaluation.sampled=3"],
    ("experiment", "recommendation"): ["cohort.size=2"],
    ("experiment", "dynamic"): ["cohort.size=2"],
    ("experiment", "online_retail"): ["task=factorization", "cohort.size=2"],
}
# Which data a task can learn from; every other pair must be refused.
FITS = {
    "skipgram": {"interactions", "pairs", "synthetic", "text"},
    "dynamic": {"interactions", "synthetic", "text"},
    "factorization": {"interactions", "synthetic", "text"},
    "knowledge_graph": {"triples"},
    "compositional": {"clinc150", "records"},
    "probabilistic": {"clinc150", "triples"},
    "hierarchical": {"taxonomy", "wordnet", "wordnet_mammals", "tree"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, files in FILES.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
    return folder


def path_of(place: Path, source: str) -> list[str]:
    if source not in FILES:
        return []
    files = list(FILES[source])
    return [f"data.path={place / source / files[0] if len(files) == 1 else place / source}"]


def data_overrides(place: Path, source: str) -> list[str]:
    if source == "tree":
        return ["data=synthetic", "data.structure=tree", *SYNTHETIC]
    return [f"data={source}", *path_of(place, source), *WITH.get(("data", source), [])]


def overrides_of(place: Path, group: str, option: str) -> list[str]:
    """A configuration on small data in which this option is chosen."""
    extra = WITH.get((group, option), [])
    source = next((text.removeprefix("data=") for text in extra if text.startswith("data=")), None)
    if group == "data":
        task = next(task for task in TASKS if option in FITS[task])
        return [*data_overrides(place, option), f"task={task}"]
    if group == "task":
        source = next(
            source for source in ("synthetic", "tree", "triples", "records") if source in FITS[option]
        )
        return [*data_overrides(place, source), f"task={option}"]
    if group == "experiment":
        return [f"experiment={option}", *path_of(place, option), *extra]
    if source is None:
        source, task = "synthetic", ["task=factorization"]
        return [*data_overrides(place, source), *task, f"{group}={option}", *extra]
    return [f"{group}={option}", *path_of(place, source), *extra]


def built(overrides: list[str]) -> Parts:
    return _build(compose_config(overrides))


# --- everything in conf/ --------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_builds(group: str, option: str, place: Path) -> None:
    overrides = overrides_of(place, group, option)
    parts = built(overrides)
    assert parts.dataset.train.num_examples > 0
    tables, _ = parts.initial()
    assert tables
    for table in parts.shared:
        num_rows = len(parts.dataset.vocabularies[table.entity]) * table.num_slices
        assert len(tables[table.name]) == table.num_rows == num_rows


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("source", [*DATA, "tree"])
def test_task_takes_the_data_that_fit_it_and_refuses_others(task: str, source: str, place: Path) -> None:
    overrides = [*data_overrides(place, source), f"task={task}"]
    if source in FITS[task]:
        parts = built(overrides)
        assert (parts.task.examples(parts.dataset.train).sizes > 0).any()
        return
    if source == "tree" and task != "hierarchical":
        pytest.skip("a synthetic tree has items too")
    with pytest.raises(SettingError, match=f"task={task} needs .*data="):
        built(overrides)


def test_every_named_option_is_named_after_its_file() -> None:
    for group, option in OPTIONS:
        loaded = OmegaConf.load(conf_dir() / group / f"{option}.yaml")
        assert loaded.get("name", option) == option


# --- typos ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", "train.lerning_rate .* did you mean train.learning_rate?"),
        ("task.manifol=poincare", "task.manifol .* did you mean task.manifold?"),
        ("trian.epochs=1", "trian.epochs .* did you mean train.epochs?"),
        ("rouds=3", "rouds .* did you mean rounds?"),
        ("evaluate_evry=3", "evaluate_evry .* did you mean evaluate_every?"),
        ("+evaluate_evry=3", "evaluate_evry .* did you mean evaluate_every?"),
        ("centralized.lerning_rate=1", "centralized.lerning_rate .* did you mean centralized.learning_rate?"),
        ("taks=skipgram", "taks .* did you mean task?"),
        ("agregate.rows=sum", "agregate.rows .* did you mean aggregate.rows?"),
        ("hydra.foo=1", "hydra.foo is not a setting here$"),
        ("qqqq=1", "qqqq is not a setting here$"),
        ("~data.foo", "data.foo is not a setting here"),
        # keys of an option that is not chosen
        ("data.path=x.csv", "data.path is not a setting of the chosen data; data=clinc150 or .*taxonomy"),
        (
            "cohort.size=3",
            "cohort.size is not a setting of the chosen cohort; cohort=turns or uniform would have it",
        ),
        ("task.tied=true", "task.tied is not a setting of the chosen task; task=skipgram would have it"),
        ("runner.num_gpus=1", "runner.num_gpus .* runner=simulation would have it"),
    ],
)
def test_unknown_key_names_the_nearest_one(override: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        compose_config([override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.missing.column={title: 0.5}", r"names of your own.* as in '\+data.missing.column.title=...'$"),
        ("data.missing={randm: 0.1}", r"data.missing.randm is not a setting here; did you mean data.missing.random\?"),
        ("data.columns={lable: x}", r"data.columns.lable is not a setting here; did you mean data.columns.label\?"),
    ],
)  # fmt: skip
def test_unknown_key_among_settings_given_as_a_whole(override: str, message: str, place: Path) -> None:
    with pytest.raises(SettingError, match=message):
        compose_config([*data_overrides(place, "records"), "task=compositional", override])


@pytest.mark.parametrize(
    ("source", "key", "value", "message"),
    [
        ("records", "data.components", "title", r"data.components must be settings such as .*, got 'title'"),
        ("records", "data.components", ["title"], r"data.components must be settings .*, got \['title'\]"),
        ("records", "data.columns", "abc", r"data.columns must be settings such as .*, got 'abc'"),
        ("records", "data.label_tree", "abc", r"data.label_tree must be settings such as .*, got 'abc'"),
        ("records", "data.missing", "abc", r"data.missing must be settings such as .*, got 'abc'"),
        ("records", "data.labels", 2.5, r"data.labels must be a whole number .*, got 2.5"),
        ("records", "data.labels", [], r"data.labels must be .* a list of different names, .*, got \[\]"),
        ("records", "data.labels", ["s1", "s1"], r"a list of different names, .*, got \['s1', 's1'\]"),
        ("interactions", "data.positive", "x", r"data.positive must be a list such as \[a, b\], got 'x'"),
        ("interactions", "data.drop", "x", r"data.drop must be settings such as {name: value}, got 'x'"),
    ],
)  # fmt: skip
def test_one_value_for_many_is_refused(source: str, key: str, value: Any, message: str, place: Path) -> None:
    config = composed(place, "data", source).copy()
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(SettingError, match=message):
        _build(config)


def test_experiment_without_its_label_tree_is_refused(place: Path) -> None:
    given = ["experiment=compositional", *path_of(place, "compositional")]
    with pytest.raises(SettingError, match=r"data.label_tree.path must be a table .* or null .*, got ''"):
        built(given)


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_option_lists_those_there_are(group: str) -> None:
    there = ", ".join(option for name, option in OPTIONS if name == group)
    with pytest.raises(SettingError) as caught:
        compose_config([f"{group}=qqqq"])
    assert str(caught.value) == f"{group} must be one of {there}, got 'qqqq'"


@pytest.mark.parametrize("group", sorted(set(GROUPS) - {"experiment"}))
def test_group_must_have_an_option(group: str) -> None:
    with pytest.raises(SettingError, match=f"^{group} must name one of its options, got {group}=null"):
        compose_config([f"{group}=null"])


@pytest.mark.parametrize("group", [g for g in GROUPS if (conf_dir() / g / "none.yaml").is_file()])
def test_name_of_an_option_cannot_be_claimed(group: str) -> None:
    """``privacy.name=example`` must not look like privacy."""
    with pytest.raises(SettingError, match=f"^{group} must be one of "):
        compose_config([f"{group}.name=claimed"])


@pytest.mark.parametrize(
    "override", ["+train.foo=1", "+data.foo=1", "+task.foo=1", "+server.foo=1", "+cohort.foo=1"]
)
def test_added_key_is_refused(override: str) -> None:
    with pytest.raises(SettingError, match="foo"):
        built([*data_overrides(Path(), "synthetic"), "task=factorization", override])


# --- wrong values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds=abc", "rounds must be a whole number, got 'abc'"),
        ("rounds=1.5", "rounds must be a whole number, got '1.5'"),
        ("rounds=0", "rounds must be at least 1, got 0"),
        ("rounds=null", "rounds must be a value"),
        ("seed=-1", "seed must be at least 0, got -1"),
        ("seed=[1]", "seed must be a whole number"),
        ("evaluate_every=-1", "evaluate_every must be at least 0"),
        ("checkpoint_every=-1", "checkpoint_every must be at least 0"),
        ("verbose=maybe", "verbose must be true or false"),
        ("baselines=centralized", "baselines must be a list, such as "),
        ("resume=[a]", "resume must be text"),
        ("centralized=3", "centralized must be "),
        ("runner.num_nodes=0", "runner.num_nodes must be a whole number, at least 1, got 0"),
        ("runner.num_nodes=1.5", "runner.num_nodes must be a whole number"),
        ("runner.num_nodes=many", "runner.num_nodes must be a whole number"),
        ("runner.timeout_seconds=-1", "runner.timeout_seconds must be a number"),
        ("runner.timeout_seconds=.nan", "runner.timeout_seconds must be a number"),
        ("data=interactions", "data.path must be set"),
        ("experiment=dynamic", "data.path must be set, it has no default"),
        ("partition=dirichlet", "partition.column must be set"),
        ("rounds=${nothing}", "rounds must refer to a setting"),
        ("rounds", "a setting must read key=value, got 'rounds'"),
        ("data=<x>", "a setting must read key=value"),
        ("=3", "must name one of its options"),
    ],
)
def test_wrong_value_of_the_spine(override: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        compose_config([override])
    assert "\n" not in str(caught.value)


def leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}.{key}")
        elif not str(key).startswith("_"):
            yield f"{prefix}.{key}", value


def settings_of(group: str, option: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{option}.yaml"), resolve=False)
    assert isinstance(loaded, dict)
    inner = loaded.get(group, loaded)
    return {key: value for key, value in leaves(inner, group) if not key.startswith(f"{group}.defaults")}


def _numbers() -> Iterator[tuple[str, str, str, Any]]:
    """Every number in every option of every group (those of the spine and of runners: above)."""
    for group, option in OPTIONS:
        if group not in ("experiment", "runner"):
            for key, value in settings_of(group, option).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield group, option, key, value


NUMBERS = list(_numbers())
# The value that is refused where it is not -1, and what must hold for it to matter.
TOO_FAR: dict[str, Any] = {"task.curvature": 1.0}
ONLY_WITH = {"data.branching": {"data.structure": "tree"}}
# Any number will do.
ANY = {"task.noise_power"}


@lru_cache(maxsize=64)
def composed(place: Path, group: str, option: str) -> DictConfig:
    return compose_config(overrides_of(place, group, option))


def checked_and_built(config: DictConfig) -> None:
    check(config)
    _build(config)


def refused(place: Path, group: str, option: str, key: str, value: Any) -> str:
    config = composed(place, group, option).copy()
    for other, setting in {**ONLY_WITH.get(key, {}), key: value}.items():
        OmegaConf.update(config, other, setting)
    with pytest.raises((SettingError, DataError)) as caught:
        checked_and_built(config)
    message = str(caught.value)
    assert key.rpartition(".")[2] in message, message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("group", "option", "key", "default"), [n for n in NUMBERS if n[2] not in ANY])
def test_number_out_of_range_is_refused(group: str, option: str, key: str, default: Any, place: Path) -> None:
    refused(place, group, option, key, TOO_FAR.get(key, -1))


@pytest.mark.parametrize(("group", "option", "key", "default"), NUMBERS)
def test_text_for_a_number_is_refused(group: str, option: str, key: str, default: Any, place: Path) -> None:
    assert "number" in refused(place, group, option, key, "abc")


WHOLE = (
    "dim", "negatives", "window", "recent", "num_clients", "size", "epochs", "batch_size", "chunk_bytes",
    "burn_in_rounds", "weight_cap", "min_count", "min_client_count", "num_items", "days", "num_parts", "branching",
)  # fmt: skip


@pytest.mark.parametrize(
    ("group", "option", "key", "default"), [n for n in NUMBERS if n[2].rpartition(".")[2] in WHOLE]
)
def test_half_of_a_thing_is_refused(group: str, option: str, key: str, default: Any, place: Path) -> None:
    refused(place, group, option, key, 2.5)


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("hierarchical", "task.manifold", "sphere", "euclidean, poincare or lorentz"),
        ("factorization", "task.objective", "warp", f"one of {', '.join(LOSSES)}"),
        ("factorization", "task.bias", 3, "true or false"),
        ("skipgram", "task.tied", "abc", "true or false"),
        ("factorization", "train.optimizer", "lbfgs", "train.optimizer must be one of sgd, adagrad, adam"),
        ("factorization", "server.optimizer", "lbfgs", "server.optimizer must be one of sgd, momentum"),
        ("factorization", "aggregate.rows", "median", "aggregate.rows must be one of ratio"),
        ("factorization", "aggregate.mean", "median", "aggregate.mean must be one of tangent"),
        ("factorization", "aggregate.weights", "all", "aggregate.weights must be one of examples"),
        ("factorization", "aggregate.clip_norm", 0, "aggregate.clip_norm must be a positive number"),
        ("factorization", "aggregate.clip_norm", "abc", "aggregate.clip_norm must be a .*number"),
        ("factorization", "data.structure", "ring", "data.structure must be clusters or tree"),
        (
            "factorization",
            "train.learning_rate",
            float("nan"),
            "train.learning_rate must be a positive number",
        ),
        (
            "factorization",
            "train.learning_rate",
            float("inf"),
            "train.learning_rate must be a positive number",
        ),
        ("factorization", "server.momentum", 1.0, r"server.momentum must be in \[0, 1\)"),
        ("factorization", "device", "tpu", "device must be cpu, cuda"),
        ("factorization", "data.held_out", 0.5, "data.held_out must be in"),
    ],
)
def test_choice_out_of_range_is_refused(task: str, key: str, value: Any, message: str, place: Path) -> None:
    config = composed(place, "task", task).copy()
    OmegaConf.update(config, key, value)
    with pytest.raises(SettingError, match=message):
        _build(config)


def test_sums_of_unbounded_weights_are_refused(place: Path) -> None:
    config = composed(place, "task", "factorization").copy()
    config.aggregate.rows, config.aggregate.weights = "sum", "examples"
    with pytest.raises(SettingError, match=r"aggregate\.rows=sum .* must be uniform or capped"):
        _build(config)


def test_cohort_larger_than_the_population_is_refused(place: Path) -> None:
    many = ["task=factorization", "cohort=uniform", "cohort.size=7"]
    with pytest.raises(SettingError, match=r"cohort\.size must be at most 6, the clients with .* got 7"):
        built([*data_overrides(place, "synthetic"), *many])


# --- the digest -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1000)
def digest_of(*overrides: str) -> str:
    return digest(compose_config(list(overrides)))


@pytest.mark.parametrize(
    "override",
    [
        "rounds=7", "runner=simulation", "runner.num_nodes=3", "runner.clients_per_wave=5", "checkpoint_every=2",
        "evaluate_every=3", "evaluation.sampled=9", "baselines=[]", "centralized.learning_rate=3", "resume=auto",
        "verbose=true",
    ],
)  # fmt: skip
def test_digest_ignores_what_does_not_decide_the_result(override: str) -> None:
    assert digest_of(override) == digest_of()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "train.learning_rate=0.9", "train.epochs=2", "train.optimizer=adam", "task.dim=3", "task=skipgram",
        "server.learning_rate=0.5", "aggregate.rows=ratio", "cohort=poisson", "partition.num_clients=3",
        "data=synthetic", "aggregate.clip_norm=1", "experiment=mammals_2d",
    ],
)  # fmt: skip
def test_digest_tells_what_decides_the_result(override: str) -> None:
    assert digest_of(override) != digest_of()


def test_digest_does_not_depend_on_the_order_or_on_defaults_written_out() -> None:
    one = digest_of("train.epochs=1", "seed=0", "task.dim=10")
    assert one == digest_of("task.dim=10", "seed=0") == digest_of()
