"""The command line: quick help, one line for every mistake, one JSON object for machines."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import numpy as np
import pytest
import typer

from service import cli
from service.cli import VERBS, run
from service.cli.console import console, emit_json, fail, plain, progress
from twin.config import ConfigError
from twin.evidence import Refused

HERE = Path(cli.__file__).parent


def celltwin(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def give(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    """Put a verb `demo` in place that raises."""
    module = ModuleType("service.cli.demo")

    def demo(json_: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Raise."""
        raise raised

    module.demo = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "service.cli.demo", module)


def test_help_names_every_verb_and_imports_none() -> None:
    probe = (
        "import sys\n"
        "from service.cli import run, VERBS\n"
        "code = run(['--help'])\n"
        "heavy = [m for m in ('numpy', 'casadi', 'matplotlib', 'pandas', 'pydantic', 'pymc', 'paho', 'mlflow') if m in sys.modules]\n"
        "heavy += [v for v in VERBS if f'service.cli.{v}' in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


def test_help_answers_within_half_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    celltwin("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert busy < 0.5  # processor time: other tests share the cores


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_one_module_with_one_function_of_its_name(verb: str) -> None:
    tree = ast.parse((HERE / f"{verb}.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert verb in functions
    assert ast.get_docstring(functions[verb]), "the docstring is the help of the verb"
    arguments = {a.arg for a in functions[verb].args.args + functions[verb].args.kwonlyargs}
    assert any(a.startswith(("json", "as_json")) for a in arguments), "every verb speaks --json"


@pytest.mark.parametrize(
    "raised",
    [
        ConfigError("x.yaml: field mu_max: expected a number"),
        Refused("out_of_range", "glucose -1.0 is outside 0..600"),
        FileNotFoundError(2, "No such file or directory", "batch.csv"),
        ConnectionRefusedError(111, "Connection refused"),
        ConfigError("two\nlines"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(
    raised: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, raised)
    assert run(["demo"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("celltwin: ")
    assert "Traceback" not in said.err


def test_file_errors_name_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give(monkeypatch, FileNotFoundError(2, "No such file or directory", "batch.csv"))
    run(["demo"])
    assert capsys.readouterr().err == "celltwin: batch.csv: No such file or directory\n"


def test_an_internal_error_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CELLTWIN_DEBUG", raising=False)
    give(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "CELLTWIN_DEBUG=1" in said
    assert "ZeroDivisionError" in said


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    give(monkeypatch, ModuleNotFoundError("No module named 'pymc'", name="pymc"))
    assert run(["demo"]) == 2
    said = capsys.readouterr().err
    assert "celltwin[donors]" in said
    assert said.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CELLTWIN_DEBUG", "1")
    give(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(["demo"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupting_is_not_an_error_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, KeyboardInterrupt())
    assert run(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("line", [["dmeo"], ["--bogus"], ["demo", "--bogus"], ["demo", "extra"]])
def test_a_mistyped_command_line_is_one_line_and_exit_2(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, RuntimeError("must not run"))
    assert run(line) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--help" in said


def test_fail_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        fail("data.csv: row 3: glucose has no unit;\n  write mM or g/L")
    assert left.value.code == 2
    assert capsys.readouterr().err == "celltwin: data.csv: row 3: glucose has no unit; write mM or g/L\n"


def test_json_is_strict_and_alone_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("service.cli.demo")

    def demo(json_: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Speak to people and to machines."""
        console.print("for people")
        with progress("working", total=2) as advance:
            advance(2)
        if json_:
            emit_json({"a": np.array([1.0, np.nan, np.inf]), "n": np.int64(3), "b": np.bool_(True)})

    module.demo = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "service.cli.demo", module)
    assert run(["demo", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"a": [1.0, None, None], "n": 3, "b": True}
    assert said.out.count("\n") == 1
    assert "for people" in said.err
    assert run(["demo"]) == 0
    assert capsys.readouterr().out == "for people\n"


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_exit_codes_of_verbs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, typer.Exit(1))
    assert run(["demo"]) == 1
    give(monkeypatch, SystemExit(2))
    assert run(["demo"]) == 2


def test_an_engine_that_cannot_run_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    for engine, words in (("ray", "pip install 'celltwin[ray]'; or use local"), ("cloud", "unknown; use local")):
        assert run(["simulate", "--engine", engine]) == 2
        said = capsys.readouterr().err.strip()
        assert words in said
        assert "\n" not in said
