"""report/clients.py and report/folder.py: who gains from the federation."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

import fedemb.report.clients
import fedemb.report.plots
from fedemb.data.shards import Shards
from fedemb.data.vocabulary import Vocabulary
from fedemb.manifolds import Euclidean
from fedemb.report.canvas import COLOURS
from fedemb.report.clients import Compared, compared, gains, gains_figure
from fedemb.report.folder import draw
from fedemb.report.metrics_log import MetricsLog
from fedemb.report.phases import phase_colours
from fedemb.types import Dataset, Evaluated, Table

NAMES = Vocabulary.of(["<script>alert(1)</script>", "$x^$ 猫\n\x00", "a name " * 9, "plain"])
SIZES = np.array([1_234_567, 0, 20, 3])


def evaluated(values: Any, metric: str = "map", clients: Any = None) -> Evaluated:
    values = np.asarray(values, dtype=np.float64)
    ids = np.arange(len(values)) if clients is None else np.asarray(clients)
    return Evaluated({metric: float(np.nanmean(values))}, {metric: values}, ids)


def models(metric: str = "map") -> dict[str, Evaluated]:
    return {
        "federated": evaluated([0.5, 0.25, 0.75, np.nan], metric),
        "centralized": evaluated([0.75, 0.5, 0.625, 0.5], metric),
        "local_only": evaluated([0.25, np.nan, 1.0, 0.5], metric),
    }


def found_in(measured: Mapping[str, Evaluated]) -> Compared:
    found = compared(measured)
    assert found is not None
    return found


def shown(found: Compared, sizes: Any = SIZES, names: Vocabulary | None = NAMES) -> Any:
    """The axes of the picture."""
    return gains_figure(found, phase_colours(found.values), sizes, names).axes[0]


def texts(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_what_is_compared() -> None:
    """The best client first, and only those that the federated model was measured on."""
    found = found_in(models())
    assert found.metric == "map"
    assert found.clients.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(found.values["federated"], [0.75, 0.5, 0.25])
    np.testing.assert_array_equal(found.values["local_only"], [1.0, 0.25, np.nan])
    assert found_in(models("mean_rank")).clients.tolist() == [1, 0, 2]


def test_clients_are_matched_by_id() -> None:
    found = found_in(
        {
            "federated": evaluated([0.5, 0.25, 0.75], clients=[3, 0, 2]),
            "local_only": evaluated([0.1, 0.3, 0.2], clients=[1, 3, 2]),
            "popularity": Evaluated({"map": 0.5}, {}, np.arange(4)),
            "nobody": evaluated([0.5], clients=[7]),
            "empty": Evaluated({}, {"map": np.empty(0)}, np.empty(0, dtype=np.int64)),
        }
    )
    assert found.clients.tolist() == [2, 3, 0]
    assert list(found.values) == ["federated", "local_only"]  # the others have no value per client
    np.testing.assert_array_equal(found.values["local_only"], [0.2, 0.3, np.nan])


def test_the_first_metric_that_was_measured() -> None:
    per_client = {"mrr": np.full(3, np.nan), "map": np.array([0.5, np.inf, 0.25]), "hits": np.ones(3)}
    found = found_in({"federated": Evaluated({}, per_client, np.arange(3))})
    assert found.metric == "map"
    assert found.clients.tolist() == [0, 2]  # infinity cannot be drawn


@pytest.mark.parametrize("values", [[], [0.5], [0.5, np.nan], [np.nan, np.nan]])
def test_fewer_than_two_clients_are_no_picture(values: list[float]) -> None:
    federated = Evaluated({}, {"map": np.array(values)}, np.arange(len(values)))
    assert compared({"federated": federated, "local_only": evaluated([0.5, 0.5])}) is None
    assert compared({"local_only": evaluated([0.5, 0.5])}) is None
    assert compared({"federated": Evaluated({"map": 0.5}, {}, np.arange(2))}) is None
    assert compared({}) is None


def test_a_row_per_client() -> None:
    panel = shown(found_in(models()))
    lines, *dots = panel.collections
    places = {found.get_label(): found.get_offsets().data.tolist() for found in dots}
    assert places == {
        "federated": [[0.75, 0], [0.5, 1], [0.25, 2]],
        "centralized": [[0.625, 0], [0.75, 1], [0.5, 2]],
        "local-only": [[1.0, 0], [0.25, 1]],
    }
    # From local-only, or from the worst where there is none: that is the federated model itself.
    ends = [path.vertices.tolist() for path in lines.get_paths()]
    assert ends == [[[1.0, 0], [0.75, 0]], [[0.25, 1], [0.5, 1]], [[0.25, 2], [0.25, 2]]]
    better = [tuple(colour[:3]) for colour in lines.get_colors()]
    assert better == [to_rgb(COLOURS[number]) for number in (2, 0, 0)]
    assert "federated beats local-only at 1 of 2 clients, loses at 1" in texts(panel)
    assert panel.get_xlabel() == "map ↑"


def test_lower_may_be_better() -> None:
    measured = models("mean_rank")
    panel = shown(found_in(measured))
    assert panel.get_xlabel() == "mean_rank ↓"
    assert panel.get_title(loc="left") == "mean rank at each client"
    lines = panel.collections[0]
    assert [path.vertices[0].tolist() for path in lines.get_paths()] == [[0.5, 0], [0.25, 1], [1.0, 2]]
    better = [tuple(colour[:3]) for colour in lines.get_colors()]
    assert better == [to_rgb(COLOURS[number]) for number in (0, 2, 0)]
    del measured["local_only"]
    panel = shown(found_in(measured))
    assert not any("beats" in text for text in texts(panel))
    starts = [path.vertices[0].tolist() for path in panel.collections[0].get_paths()]
    assert starts == [[0.5, 0], [0.75, 1], [0.75, 2]]


def test_ties_are_counted_and_seen() -> None:
    """What the dots of other models would hide is a ring around them."""
    same = evaluated([0.5, 0.25])
    panel = shown(found_in({"federated": same, "centralized": same, "local_only": evaluated([0.5, 0.1])}))
    assert "federated beats local-only at 1 of 2 clients, ties at 1" in texts(panel)
    sizes = [dots.get_sizes().tolist() for dots in panel.collections[1:]]
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[0][1] == sizes[2][1] < sizes[1][1]
    orders = [dots.get_zorder() for dots in panel.collections[1:]]
    assert sorted(orders, reverse=True) == orders
    legend = {size for dot in panel.get_legend().legend_handles for size in dot.get_sizes()}
    assert len(legend) == 1


def test_names_are_text(tmp_path: Path) -> None:
    measured = {**models(), "$a^$ model": evaluated([0.1, 0.2, 0.3, 0.4])}
    found = found_in(
        {name: Evaluated({}, {"$m^$": e.per_client["map"]}, e.clients) for name, e in measured.items()}
    )
    panel = shown(found)
    written = texts(panel)
    assert "<script>alert(1)</scrip…" in written
    assert "$x^$ 猫 \x00" in written
    assert "a name a name a name a…" in written
    assert {"1,234,567", "0", "20"} < set(written)
    assert "plain" not in written  # nothing was measured there
    assert not any(text.get_parse_math() for text in panel.texts)
    path = tmp_path / "pictures" / "clients.png"
    gains(found, phase_colours(found.values), SIZES, NAMES, path)
    assert min(imread(path).shape[:2]) > 150
    assert {"client 0", "client 1", "client 2"} < set(texts(shown(found, names=None)))


def test_equal_values_can_be_drawn(tmp_path: Path) -> None:
    found = found_in({"federated": evaluated([0.0, 0.0]), "local_only": evaluated([0.0, 0.0])})
    gains(found, phase_colours(found.values), SIZES, None, tmp_path / "clients.png")
    assert "federated beats local-only at 0 of 2 clients, ties at 2" in texts(shown(found, names=None))


@pytest.mark.parametrize(("count", "curves"), [(40, 0), (41, 2)])
def test_many_clients_are_a_distribution(count: int, curves: int) -> None:
    values = np.linspace(0, 1, count)
    found = found_in({"federated": evaluated(values), "local_only": evaluated(values[::-1] / 2)})
    panel = shown(found, np.ones(count, dtype=np.int64), None)
    assert len(panel.lines) == curves
    assert len(panel.collections) == (0 if curves else 3)


@pytest.mark.parametrize(("metric", "first", "arrow"), [("map", 0.0, "↑"), ("mean_rank", 1.0, "↓")])
def test_curves_go_from_the_worst_to_the_best(metric: str, first: float, arrow: str) -> None:
    values = np.append(np.random.default_rng(0).permutation(101) / 100, np.nan)
    measured = {"federated": evaluated(values, metric), "centralized": evaluated(values / 2, metric)}
    panel = shown(found_in(measured), np.ones(102, dtype=np.int64), None)
    federated, centralized = panel.lines
    np.testing.assert_allclose(federated.get_ydata(), abs(first - np.linspace(0, 1, 401)), atol=1e-12)
    np.testing.assert_allclose(centralized.get_ydata(), federated.get_ydata() / 2)
    assert (federated.get_color(), centralized.get_color()) == COLOURS[:2]
    assert panel.get_ylabel() == f"{metric} {arrow}"
    assert panel.get_xlabel().startswith("101 clients")
    assert federated.get_zorder() > centralized.get_zorder()


def test_a_million_clients_cost_little(tmp_path: Path) -> None:
    count = 1_000_000
    generator = np.random.default_rng(0)
    measured = {
        name: evaluated(generator.random(count)) for name in ("federated", "centralized", "local_only")
    }
    begin = time.perf_counter()
    found = found_in(measured)
    gains(found, phase_colours(found.values), np.ones(count, dtype=np.int64), None, tmp_path / "clients.png")
    assert time.perf_counter() - begin < 20
    panel = shown(found, np.ones(count, dtype=np.int64), None)
    assert max(len(line.get_xdata()) for line in panel.lines) < 1000


# The folder


def dataset(num_clients: int) -> Dataset:
    offsets = np.arange(num_clients + 1)
    return Dataset(Shards({"item": np.zeros(num_clients, dtype=np.int64)}, offsets), {})


def drawn(folder: Path, measured: Mapping[str, Evaluated]) -> list[str]:
    """Pictures in a folder after drawing."""
    table = Table("item", 2, 2, Euclidean(), 0.1)
    draw(folder, {}, dataset(4), (table,), {"item": torch.zeros(2, 2)}, measured, "seed: 0")
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_folder_shows_its_clients(tmp_path: Path) -> None:
    assert drawn(tmp_path, models()) == ["clients.png"]
    assert 'alt="clients"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    one = {"federated": evaluated([0.5, np.nan, np.nan, np.nan]), "local_only": evaluated([0.5] * 4)}
    assert drawn(tmp_path, one) == []  # and the old picture is gone
    assert "<img" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_colours_are_those_of_convergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference without values per client has a colour too, so that the others keep theirs."""
    log = MetricsLog(tmp_path)
    for phase in ("federated", "ablation", "local_only", "fine_tuned", "popularity"):
        log({"phase": phase, "map": 0.5})
    figures = {}
    for module in (fedemb.report.clients, fedemb.report.plots):
        monkeypatch.setattr(module, "save", lambda made, path: figures.update({path.stem: made}))
    names = ("federated", "local_only", "fine_tuned", "popularity")
    measured = {name: evaluated([0.1, 0.2, 0.3, 0.4]) for name in names}
    measured["ablation"] = Evaluated({"map": 0.5}, {}, np.arange(4))
    drawn(tmp_path, measured)
    curves = {line.get_label(): to_rgb(line.get_color()) for line in figures["convergence"].axes[0].lines}
    dots = {
        found.get_label(): tuple(found.get_facecolor()[0][:3])
        for found in figures["clients"].axes[0].collections[1:]
    }
    assert set(curves) == {"federated", "ablation", "local-only", "fine tuned", "popularity"}
    assert dots == {name: colour for name, colour in curves.items() if name != "ablation"}
