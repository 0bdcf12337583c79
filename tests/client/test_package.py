"""What the package exports, the quickstart in its documentation, and the command that runs it."""

import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import client
from client import errors
from tests.client.scripted import model, prediction, scripted
from tests.paths import ROOT


def test_what_is_exported_is_there_and_every_error_is_exported() -> None:
    assert client.__all__ == sorted(client.__all__)
    assert all(inspect.isclass(getattr(client, name)) for name in client.__all__)
    raised = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert raised <= set(client.__all__)


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.__doc__ is not None
    _, start, _ = client.__doc__.split("\n\n", 2)
    lines = client.__doc__[client.__doc__.index("    from") : client.__doc__.index("| module")]
    assert lines.startswith(start)
    with scripted(model) as server:
        exec(textwrap.dedent(lines).replace("http://127.0.0.1:8080", server.url), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == prediction("Thank you for the great flight!")["label"]
    assert [line.split()[0] for line in rest] == [
        prediction(text)["label"] for text in ("Late again", "Which gate is flight 12?")
    ]


def test_the_command_runs_this_package_whatever_is_on_pythonpath_and_in_the_folder(tmp_path: Path) -> None:
    commands = tmp_path / "a folder" / "bin"
    commands.mkdir(parents=True)
    python = commands / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"include {ROOT}/Makefile\n.PHONY: command\ncommand:\n\t$(WRITE_COMMAND)\n")
    subprocess.run(["make", "--file", makefile, f"BIN={commands}", "command"], cwd=ROOT, check=True)

    (tmp_path / "client.py").write_text("raise SystemExit('a stranger')")
    result = subprocess.run(
        [commands / "sentiment", "predict", "--url", "two words", "late again"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("usage: sentiment predict"), result.stderr
    assert "two words" in result.stderr
