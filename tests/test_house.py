"""The house stands as it was drawn: import contracts, one licence, pinned tools, a wheel that carries its configurations."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

PACKAGES = ("twin", "controllers", "simulators", "service")
PURE = ("twin", "controllers", "simulators")


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").split()
    return {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}


def sources(root: Path, *packages: str) -> list[Path]:
    return [p for package in packages for p in sorted((root / package).rglob("*.py"))]


def test_import_contracts_are_kept(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_pure_packages_read_no_clock_and_no_global_randomness(root: Path) -> None:
    """Time and randomness are arguments (rule 7 of the house): no call of a clock, no module-level generator."""
    clocks = {("time", "time"), ("time", "monotonic"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
    found: list[str] = []
    for path in sources(root, *PURE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            where = f"{path.relative_to(root)}:{node.lineno}"
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            if (name, node.func.attr) in clocks:
                found.append(f"{where}: {name}.{node.func.attr}()")
            if name == "random" and node.func.attr not in (
                "Generator",
                "default_rng",
                "SeedSequence",
                "PCG64",
                "Philox",
            ):
                found.append(f"{where}: random.{node.func.attr}()")
            if node.func.attr == "default_rng" and not node.args:
                found.append(f"{where}: default_rng() without a seed")
    assert found == []


def test_no_pickle_no_unsafe_yaml_no_eval(root: Path) -> None:
    found: list[str] = []
    for path in sources(root, *PACKAGES):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [
                    f"{path}: import {a.name}"
                    for a in node.names
                    if a.name.split(".")[0] in ("pickle", "shelve", "marshal")
                ]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{path}:{node.lineno}: {node.func.id}()")
    assert found == []


def test_files_and_folders_stay_small(root: Path) -> None:
    long = {
        str(p.relative_to(root)): n
        for p in sources(root, *PACKAGES)
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}, "split a file that holds two ideas"
    folders = [
        d for package in PACKAGES for d in (root / package, *(root / package).rglob("*/")) if d.name != "__pycache__"
    ]
    held = {str(d.relative_to(root)): sum(p.name != "__init__.py" for p in d.glob("*.py")) for d in folders}
    crowded = {d: n for d, n in held.items() if n > 16 and d != "service/cli"}  # there: one module a verb
    assert crowded == {}


def test_every_module_says_what_it_is_for(root: Path) -> None:
    mute = [
        str(p.relative_to(root))
        for p in sources(root, *PACKAGES)
        if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))
    ]
    assert mute == []


def test_licence_is_apache_2(root: Path, project: dict[str, Any]) -> None:
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project["project"]["license"] == "Apache-2.0"


def test_constraints_are_exact_and_name_no_place(root: Path) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", line)]
    assert odd == []
    assert len({line.split("==")[0].lower() for line in lines}) == len(lines)


def test_every_dependency_is_pinned(project: dict[str, Any], pins: dict[str, str]) -> None:
    table = project["project"]
    wanted = [*table["dependencies"], *(d for extra in table["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[<>=!~ ]", d)[0].lower().replace("_", "-") for d in wanted} - {"celltwin"}
    assert names - set(pins) == set()


def test_hooks_use_the_pinned_tools(root: Path, pins: dict[str, str]) -> None:
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {r["repo"].rpartition("/")[2]: r.get("rev") for r in hooks["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{pins['ruff']}"


def test_ci_runs_what_a_person_runs(root: Path) -> None:
    script = root / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    commands = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert "make check" in commands
    assert commands[-1] == "make test"
    assert any(line.startswith("set -e") for line in commands)


@pytest.mark.slow
def test_the_wheel_carries_its_configurations_and_nothing_else(root: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=root, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("celltwin-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert tops == set(PACKAGES)
    shipped = {n.removeprefix("twin/configs/") for n in names if n.startswith("twin/configs/")}
    here = {str(p.relative_to(root / "configs")) for p in (root / "configs").rglob("*") if p.is_file()}
    assert shipped == here
    assert "service/report/page.css" in names
    probe = "from twin.config import configs_dir, load_config; load_config('car_nk'); print(configs_dir())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {probe}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "site" / "twin" / "configs")
