"""Who may import what, and what importing a part of the package brings along."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedemb

PACKAGE = Path(fedemb.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Who may import a library, as places under fedemb/.
ALLOWED = {
    "flwr": ("flower/", "run/"),
    "ray": ("run/",),
    "hydra": ("cli.py", "build.py", "config.py"),
    "omegaconf": ("cli.py", "build.py", "config.py", "run/", "flower/"),
    "opacus": ("train/opacus.py", "privacy/"),
    "dp_accounting": ("privacy/",),
    "fastapi": ("serve/",),
    "pydantic": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
}
WITHOUT_FLOWER = (
    "fedemb",
    "fedemb.tasks.skipgram",
    "fedemb.tasks.factorization",
    "fedemb.tasks.hierarchical",
    "fedemb.cohort",
    "fedemb.manifolds",
    "fedemb.stages.clip",
    "fedemb.aggregate.plain",
    "fedemb.server.optimizers",
    "fedemb.train.rows",
    "fedemb.data.interactions",
    "fedemb.evaluate.choose",
    "fedemb.model",
    "fedemb.config",
    "fedemb.build",
    "fedemb.serve.worker",
)
HEAVY = ("flwr", "ray", "opacus", "fastapi")
# Folders of somebody's own machine; what every Linux has, such as /usr/share/wordnet, may be named in a hint.
OWN_PATHS = re.compile(r"(?<![\w.])(/(?:home|work|root|Users|tmp|mnt|data|opt|venv)/|[A-Z]:\\\\)")


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_where_they_belong(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for name in imports(ast.parse(path.read_text())):
        where = ALLOWED.get(name, (place,))
        assert any(place.startswith(allowed) for allowed in where), f"only {where} may import {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_path_of_one_machine(path: Path) -> None:
    assert not OWN_PATHS.findall(path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.name)
def test_no_path_of_one_machine_in_the_settings(path: Path) -> None:
    assert not OWN_PATHS.findall(path.read_text())


def test_parts_import_without_flower() -> None:
    """One process: a part that brings Flower along is named with the chain's first module."""
    program = (
        "import importlib, sys\n"
        f"for part in {WITHOUT_FLOWER}:\n"
        "    importlib.import_module(part)\n"
        f"    found = sorted(set({HEAVY}) & set(sys.modules))\n"
        "    assert not found, f'importing {part} imports {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_costs_nothing() -> None:
    program = "import sys, fedemb; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)


def test_every_public_name_is_there() -> None:
    assert fedemb.__all__ == sorted(fedemb.__all__)
    for name in fedemb.__all__:
        assert callable(getattr(fedemb, name)), name
        assert getattr(fedemb, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedemb.nothing  # type: ignore[attr-defined]


def test_public_function_and_package_share_a_name() -> None:
    """``fedemb.train`` is called whether or not the package of that name was imported before, and more than once."""
    program = (
        "import fedemb; assert callable(fedemb.train); assert callable(fedemb.train)\n"
        "import fedemb.train.rows as rows; assert rows.LocalTraining; assert callable(fedemb.train)\n"
        "try:\n    fedemb.train(['rounds=0'])\nexcept ValueError as error:\n    assert 'rounds' in str(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_called_utils() -> None:
    names = {path.stem for path in SOURCES}
    assert not names & {"utils", "helpers", "base", "manager", "misc", "common"}
