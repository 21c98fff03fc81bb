"""The built wheel, in an empty folder, without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def called(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = called(command, target)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = target.glob("fedemb-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content alone; its dependencies are this environment's."""
    target = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    done = called([*command, "--disable-pip-version-check"], target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licence = next(
            name for name in names if name.endswith("licenses/fedemb/data/bundled/WORDNET-LICENSE.md")
        )
        assert b"Princeton" in archive.read(licence)
        metadata = next(archive.read(name).decode() for name in names if name.endswith("METADATA"))
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedemb").rglob("*.py")}
    assert sources <= names
    settings = {f"fedemb/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert settings <= names
    bundled = [path for path in (ROOT / "fedemb" / "data" / "bundled").iterdir() if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in bundled} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fedemb"}, (
        "tests or experiments slipped in"
    )
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".pt", ".pkl"))]
    assert "Requires-Dist: flwr" in metadata


def test_wheel_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    python = [sys.executable, "-P"]
    where = called(
        [*python, "-c", "import fedemb; print(fedemb.__file__)"], tmp_path, PYTHONPATH=str(installed)
    )
    assert Path(where.stdout.strip()) == installed / "fedemb" / "__init__.py", where.stderr
    settings = [
        "data.num_clients=6",
        "data.num_items=40",
        "data.examples_per_client=12",
        "data.num_clusters=4",
    ]
    command = [
        *python,
        "-m",
        "fedemb",
        "train",
        "data=synthetic",
        *settings,
        "task=factorization",
        "task.dim=3",
    ]
    done = called([*command, "rounds=2", "hydra.run.dir=run"], tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["work"]["rounds"] == 2
    assert (tmp_path / "run" / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wheel_has_the_mammals(installed: Path, tmp_path: Path) -> None:
    """The default data are bundled: the shortest command works from the wheel."""
    command = [sys.executable, "-P", "-m", "fedemb", "train", "rounds=1", "baselines=[]", "hydra.run.dir=run"]
    done = called(command, tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "1,180 nodes" in done.stdout
