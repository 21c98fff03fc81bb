"""The command line as a person meets it: what a run leaves, what a mistake says, and what survives a kill."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedemb
from fedemb.cli import main
from fedemb.errors import DataError, SettingError

TREE = [
    "data=synthetic", "data.structure=tree", "data.num_items=60", "data.num_clients=8", "data.num_clusters=4",
    "data.examples_per_client=8", "task.dim=3", "task.negatives=4", "rounds=3",
]  # fmt: skip
ITEMS = [
    "data=synthetic", "data.num_items=40", "data.num_clients=8", "data.num_clusters=4", "data.examples_per_client=12",
    "task=factorization", "task.dim=3", "rounds=2", "baselines=[]",
]  # fmt: skip
FOLDER = "hydra.run.dir=run"
SPREAD = {"mean", "std", "worst_decile"}


def program(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedemb", "train", *arguments]


def spawned(folder: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = program(folder, *arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def cli(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """Calls ``main`` in an empty folder, as often as a test likes, and leaves this process as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    handlers, level, threads = list(logging.root.handlers), logging.root.level, torch.get_num_threads()

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as stop:  # argparse, within Hydra
            status = int(stop.code or 0)
        return Result(status, *capfd.readouterr())

    yield call
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    torch.set_num_threads(threads)


# --- a finished run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    place = tmp_path_factory.mktemp("finished")
    return place / "run", spawned(place, *TREE, FOLDER)


Finished = tuple[Path, subprocess.CompletedProcess[str]]


def test_finished_run_prints_a_table_and_its_folder(finished: Finished) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("federated ") for line in lines)
    assert any(line.startswith("centralized ") for line in lines)
    assert any(line.startswith("local-only ") for line in lines)
    assert lines[-1].startswith("run folder")
    assert lines[-1].endswith(str(folder))


def test_output_is_quiet_where_nobody_watches(finished: Finished) -> None:
    _, done = finished
    assert done.stderr == ""
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout), "control codes"


def test_run_folder_is_complete(finished: Finished) -> None:
    folder, _ = finished
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert config["task"]["dim"] == 3
    assert config["data"]["structure"] == "tree"
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == [*TREE]
    assert {path.name for path in (folder / "model").iterdir()} == {
        "tables.safetensors",
        "dense.safetensors",
        "node.parquet",
        "model.json",
    }
    model = json.loads((folder / "model" / "model.json").read_text())
    assert [(table["name"], table["rows"], table["dim"]) for table in model["tables"]] == [("node", 60, 3)]
    assert (folder / "convergence.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "clients.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "disk.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text()
    assert not list(folder.rglob("*.partial"))
    assert not [
        path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".pickle", ".pth", ".npy")
    ]


def test_metrics_have_a_line_a_round(finished: Finished) -> None:
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    federated = [line for line in lines if line["phase"] == "federated" and "round" in line]
    assert [line["round"] for line in federated] == [1, 2, 3]
    for line in federated:
        assert line["loss"] > 0
        assert line["client_updates"] == 8
        assert line["upload_bytes"] > 0
    assert {line["phase"] for line in lines} == {"federated", "centralized", "local_only"}


def numbers(part: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) and np.isfinite(value) for value in part.values())


def test_summary_is_as_scripts_rely_on(finished: Finished) -> None:
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    # DESIGN.md section 6, and counts of the data; privacy was not used, so that part is absent.
    documented = {"metrics", "baselines", "per_client", "communication", "work", "versions", "config_digest"}
    assert documented <= set(summary)
    assert set(summary) <= documented | {"data", "baselines_per_client"}
    assert summary["metrics"]
    assert numbers(summary["metrics"])
    assert set(summary["baselines"]) == {"centralized", "local_only"}
    for baseline in summary["baselines"].values():
        assert set(baseline) == set(summary["metrics"])
    assert summary["per_client"]
    for spread in summary["per_client"].values():
        assert set(spread) == SPREAD
    assert set(summary["communication"]) == {"upload_bytes", "download_bytes", "upload_bytes_dense"}
    assert all(isinstance(value, int) and value > 0 for value in summary["communication"].values())
    work = summary["work"]
    wanted = {
        "rounds",
        "client_updates",
        "examples",
        "seconds",
        "client_updates_per_second",
        "peak_rss_bytes",
    }
    assert wanted <= set(work)
    assert numbers(work)
    assert (work["rounds"], work["client_updates"]) == (3, 24)
    assert work["client_updates_per_second"] == pytest.approx(work["client_updates"] / work["seconds"])
    assert {"python", "fedemb", "flwr", "torch"} <= set(summary["versions"])
    assert re.fullmatch(r"[0-9a-f]{16}", summary["config_digest"])


def test_second_run_into_the_folder_is_refused(finished: Finished, cli: Callable[..., Result]) -> None:
    folder, _ = finished
    before = (folder / "summary.json").read_bytes()
    done = cli("train", *TREE, f"hydra.run.dir={folder}")
    assert done.status == 2
    assert (
        done.err
        == f"fedemb: {folder} holds a finished run; choose another hydra.run.dir, or resume={folder}\n"
    )
    assert (folder / "summary.json").read_bytes() == before


# --- Python ---------------------------------------------------------------------------------------------


def test_python_is_the_same_run(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    mine = fedemb.train(TREE, folder=tmp_path / "run")
    assert capsys.readouterr() == ("", "")
    theirs = fedemb.load(folder)
    assert mine.tables == theirs.tables == ["node"]
    assert mine.summary["metrics"] == theirs.summary["metrics"]
    assert mine.summary["config_digest"] == theirs.summary["config_digest"]
    assert len(mine.metrics) == len(theirs.metrics)
    (ids, matrix), (other_ids, other) = mine.table("node"), theirs.table("node")
    assert ids == other_ids
    assert ids[:2] == ["item-00", "item-01"]
    assert matrix.shape == (60, 3)
    assert np.array_equal(matrix, other)
    assert np.isfinite(matrix).all()
    with pytest.raises(KeyError, match="table must be one of node, got 'item'"):
        mine.table("item")
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be the folder of a finished run"):
        fedemb.load(tmp_path)


def test_python_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"did you mean train\.learning_rate"):
        fedemb.train(["train.lerning_rate=1"], folder=tmp_path)


# --- mistakes -------------------------------------------------------------------------------------------

CYCLE = "child,parent\na,b\nb,c\nc,a\n"
STRANGE = "who,what\nann,pear\nbob,fig\n"
FEW = "client,item\nann,pear\nbob,fig\n"
MISTAKES: dict[str, tuple[list[str], str]] = {
    "typo": (
        ["train.lerning_rate=1"],
        "train.lerning_rate is not a setting here; did you mean train.learning_rate?",
    ),
    "option": (["task=skipgrams"], "task must be one of .*skipgram, got 'skipgrams'; did you mean skipgram?"),
    "foreign key": (
        ["data.min_count=3"],
        "data.min_count is not a setting of the chosen data; .*interactions",
    ),
    "kind": (["rounds=many"], "rounds must be a whole number, got 'many'"),
    "range": (["rounds=0"], "rounds must be at least 1, got 0"),
    "deep range": (["train.learning_rate=-1"], "train.learning_rate must be a positive number, got -1"),
    "deep kind": (["train.epochs=abc"], "train.epochs must be a whole number, got 'abc'"),
    "half a client": (["cohort=uniform", "cohort.size=2.5"], "cohort.size must be a whole number, got 2.5"),
    "not key=value": (["rounds"], "a setting must read key=value, got 'rounds'"),
    "no option": (["task=null"], "task must name one of its options"),
    "cohort": (
        ["cohort=uniform", "cohort.size=900"],
        "cohort.size must be at most 8, .* got 900; .*cohort=full",
    ),
    "baseline": (["baselines=[oracle]"], "baselines must be among fine_tuned, centralized, .* got 'oracle'"),
    "central": (
        ["centralized.learning_rate=-1", "baselines=[centralized]"],
        "centralized.learning_rate must be",
    ),
    "GPU": (["device=cuda"], "device=cuda needs a GPU, and none is available here; use device=cpu"),
    "device": (["device=tpu"], "device must be cpu, cuda or cuda:N, got 'tpu'"),
    "deployment": (["runner=deployment"], "runner=deployment is started by `flwr run`"),
    "resume": (["resume=nowhere"], "resume must name a run folder with a checkpoint, but nowhere has none"),
    "task and data": (["task=hierarchical"], "task=hierarchical needs .*data=taxonomy"),
    "folder": (
        ["hydra.run.dir=data.csv/run"],
        "hydra.run.dir must be a folder that can be written to, got data.csv",
    ),
    "no examples": (
        ["task=skipgram", "data.examples_per_client=1", "data.spread=0", "data.num_clients=2"],
        "no training example is left",
    ),
    "cohort of the task": (
        ["task=skipgram", "data.examples_per_client=2", "data.days=1", "cohort=uniform", "cohort.size=8"],
        "cohort.size must be at most [1-7], the clients with examples, got 8",
    ),
}
FILES: dict[str, tuple[str | None, list[str], str]] = {
    "no path": (None, ["data=interactions", "task=factorization"], "data.path must be set"),
    "missing": (None, ["data=interactions", "data.path=no.csv", "task=factorization"], "no.csv must be an existing"),
    "column": (STRANGE, ["data=interactions", "task=factorization"], "must name a column of .*'who', 'what'"),
    "named column": (
        STRANGE,
        ["data=interactions", "data.columns.client=user", "data.columns.item=what", "task=factorization"],
        "data.columns.client must name a column of .*got 'user'; there are 'who', 'what'",
    ),
    "empty": ("", ["data=interactions", "task=factorization"], "must have a header line and rows"),
    "header": ("client,item\n", ["data=interactions", "task=factorization"], "must have rows, found none"),
    "nothing left": (FEW, ["data=interactions", "task=factorization"], "lower data.min_count"),
    "cycle": (CYCLE, ["data=taxonomy", "task=hierarchical"], "must have no cycle, got a -> b -> c -> a"),
    "task": (FEW, ["data=interactions", "data.min_count=1", "task=hierarchical"], "task=hierarchical needs"),
    "clients": (
        "child,parent\na,b\nb,c\n",
        ["data=taxonomy", "task=hierarchical", "partition.num_clients=50"],
        "partition.num_clients must be at most",
    ),
}  # fmt: skip


def assert_one_line(done: Result, message: str, wordy: bool = False) -> None:
    """One line, exit status 2. What was read may be told before that (``wordy``)."""
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    errors = [line for line in lines if line.startswith("fedemb: ")]
    assert len(errors) == 1, done.err
    assert lines[-1] == errors[0]
    assert wordy or lines == errors, done.err
    assert re.search(message, errors[0]), errors[0]
    assert done.status == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_absent_gpu_is_refused(cli: Callable[..., Result]) -> None:
    assert_one_line(cli("train", *ITEMS, FOLDER, "device=cuda"), "device=cuda needs a GPU")


@pytest.mark.parametrize("name", [name for name in MISTAKES if name != "GPU"])
def test_mistake_is_one_line(name: str, cli: Callable[..., Result]) -> None:
    Path("data.csv").write_text("")
    overrides, message = MISTAKES[name]
    done = cli("train", *ITEMS, FOLDER, *overrides)
    assert_one_line(done, message)
    assert not Path("run/summary.json").exists()
    assert not Path("run/model").exists()


@pytest.mark.parametrize("name", FILES)
def test_unusable_data_are_one_line(name: str, cli: Callable[..., Result]) -> None:
    text, overrides, message = FILES[name]
    if text is not None:
        Path("data.csv").write_text(text)
        overrides = [*overrides, "data.path=data.csv"]
    assert_one_line(cli("train", FOLDER, "rounds=1", "baselines=[]", *overrides), message, wordy=True)
    assert not Path("run/model").exists()


def test_mistake_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = spawned(tmp_path, *ITEMS, FOLDER, "train.epochs=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fedemb: train.epochs must be at least 1, got 0\n"


def test_unknown_command(cli: Callable[..., Result]) -> None:
    done = cli("trian")
    assert_one_line(done, "the command must be one of train.*, got 'trian'")


def test_help_and_version(cli: Callable[..., Result]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = cli(*arguments)
        assert done.status == 0
        assert done.out.startswith("usage: fedemb")
        assert "train" in done.out
    assert re.fullmatch(r"\d+\.\d+.*\n", cli("--version").out)
    done = cli("train", "--help")
    assert (done.status, done.err) == (0, "")
    for word in ("hierarchical", "wordnet_mammals", "rounds"):
        assert word in done.out


def test_composed_configuration_can_be_shown(cli: Callable[..., Result]) -> None:
    done = cli("train", "--cfg", "job", *ITEMS)
    assert (done.status, done.err) == (0, "")
    shown = yaml.safe_load(done.out)
    assert (shown["rounds"], shown["task"]["dim"], shown["data"]["num_items"]) == (2, 3, 40)
    assert not Path("runs").exists()


@pytest.mark.parametrize("flag_first", [True, False])
def test_sweep_has_a_folder_for_each_run(flag_first: bool, cli: Callable[..., Result]) -> None:
    arguments = ["-m", *ITEMS] if flag_first else [*ITEMS, "-m"]
    done = cli("train", *arguments, "seed=0,1", "hydra.sweep.dir=sweep")
    assert (done.status, done.err) == (0, "")
    runs = [fedemb.load(Path("sweep") / name) for name in ("0", "1")]
    assert runs[0].summary["config_digest"] != runs[1].summary["config_digest"]
    assert not np.array_equal(runs[0].table("item")[1], runs[1].table("item")[1])
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0", "1"]


def test_sweep_with_a_mistake_does_the_others_and_says_so(cli: Callable[..., Result]) -> None:
    done = cli("train", "-m", *ITEMS, "train.epochs=0,1", "hydra.sweep.dir=sweep")
    assert_one_line(done, "train.epochs must be at least 1, got 0")
    assert fedemb.load("sweep/1").summary["work"]["rounds"] == 2


def test_folder_in_use_is_refused(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert_one_line(
            cli("train", *ITEMS, FOLDER), "another run is writing to .*; choose another hydra.run.dir"
        )
    assert cli("train", *ITEMS, FOLDER).status == 0, "the system let go of the lock"


# --- interrupted, killed, taken up ----------------------------------------------------------------------

LONG = [*TREE[:-1], "baselines=[]", "checkpoint_every=2", FOLDER]


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        program(folder, *arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """A shell starts what it puts in the background deaf to Ctrl-C, and so would be what the tests start there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def rounds_done(folder: Path) -> int:
    path = folder / "run" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupt_leaves_a_usable_folder(number: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, *LONG, "rounds=1000000")
    wait_for(lambda: rounds_done(tmp_path) >= 4, process)
    if number == signal.SIGINT:
        second = spawned(tmp_path, *LONG, "rounds=5")
        assert second.returncode == 2
        assert re.fullmatch(
            r"fedemb: another run is writing to .*; choose another hydra.run.dir\n", second.stderr
        )
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.fullmatch(r"fedemb: interrupted; .*\n", err)
    assert "run folder" in out
    run = fedemb.load(tmp_path / "run")
    assert run.summary["interrupted"] is True
    assert run.summary["work"]["rounds"] >= 4
    assert run.summary["metrics"]
    assert run.table("node")[1].shape == (60, 3)
    assert (tmp_path / "run" / "report.html").is_file()


def tables_of(folder: Path) -> np.ndarray:
    return fedemb.load(folder).table("node")[1]


def test_same_command_takes_up_a_killed_run(tmp_path: Path) -> None:
    """Killed in the middle, its newest checkpoint torn: the same command ends as if nothing had happened."""
    process = started(tmp_path, *LONG, "rounds=100000", "resume=auto")
    checkpoints = tmp_path / "run" / "checkpoint"
    wait_for(lambda: len(list(checkpoints.glob("round-*.safetensors"))) == 2, process)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "run" / "summary.json").exists()
    before, newest = sorted(checkpoints.glob("round-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:100])
    last = int(before.stem.removeprefix("round-"))
    rounds = f"rounds={last + 5}"
    done = spawned(tmp_path, *LONG, rounds, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"checkpoint .*{newest.name} cannot be read .*trying the one before", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    whole = fedemb.train([*LONG[:-1], rounds], folder=tmp_path / "whole" / "run")
    assert np.array_equal(tables_of(tmp_path / "run"), whole.table("node")[1])
    resumed = fedemb.load(tmp_path / "run")
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    assert resumed.summary["communication"] == whole.summary["communication"]
    assert [m["round"] for m in resumed.metrics] == [m["round"] for m in whole.metrics]
    assert [m["loss"] for m in resumed.metrics] == [m["loss"] for m in whole.metrics]


def test_personal_rows_survive_a_resume(tmp_path: Path) -> None:
    """Clients' own vectors lie beside the checkpoint; without them a run cannot go on."""
    base = [*ITEMS, "checkpoint_every=2", "server.optimizer=adam"]
    whole = fedemb.train([*base, "rounds=4"], folder=tmp_path / "whole")
    fedemb.train([*base, "rounds=2"], folder=tmp_path / "half")
    rest = fedemb.train([*base, "rounds=4", f"resume={tmp_path / 'half'}"], folder=tmp_path / "rest")
    assert np.array_equal(rest.table("item")[1], whole.table("item")[1])
    assert rest.summary["metrics"] == whole.summary["metrics"]
    assert [line["round"] for line in rest.metrics] == [1, 2, 3, 4]


def test_resume_with_another_configuration_is_refused(tmp_path: Path, cli: Callable[..., Result]) -> None:
    one = fedemb.train([*TREE, "baselines=[]", "checkpoint_every=2"], folder=tmp_path / "one")
    done = cli("train", *TREE, "baselines=[]", "train.learning_rate=0.5", "resume=one", FOLDER)
    began = one.summary["config_digest"]
    assert_one_line(done, f"resume needs the configuration that the run began with .digest {began}")
    digests = re.findall(r"\b[0-9a-f]{16}\b", done.err)
    assert len(set(digests)) == 2
    assert cli("train", *TREE, "baselines=[]", "rounds=5", "resume=one", "hydra.run.dir=more").status == 0
    assert fedemb.load("more").summary["work"]["rounds"] == 5


def test_resume_auto_begins_anew_where_there_is_nothing(cli: Callable[..., Result]) -> None:
    assert cli("train", *ITEMS, FOLDER, "resume=auto").status == 0
    assert fedemb.load("run").summary["work"]["rounds"] == 2


def test_run_folder_is_made_by_time(cli: Callable[..., Result]) -> None:
    assert cli("train", *ITEMS).status == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert os.access(folder / "report.html", os.R_OK)
