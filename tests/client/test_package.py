"""The package: exported names, quickstart, the wheel in an empty environment, and the command that runs it."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

import sentiment
from sentiment import errors
from tests.client.scripted import model, prediction, scripted
from tests.paths import CLIENT, ROOT

PUBLIC = """
Change ClientError Comparison Explanation InferenceClient InputError Machine ManagementClient NotAuthorizedError
NotReadyError Outcome OverloadedError PodError Prediction RefusedError RolloutError Settings Switch Token
UnexpectedAnswerError UnreachableError Version
"""

REQUEST = """
import json, sys, sentiment
from sentiment import InferenceClient

with InferenceClient(sys.argv[1]) as client:
    label = client.predict("Late again").label
print(json.dumps({"label": label, "exported": sentiment.__all__, "file": sentiment.__file__}))
"""


def test_the_exported_names_are_the_public_ones_and_exist() -> None:
    assert sentiment.__all__ == PUBLIC.split()
    assert all(inspect.isclass(getattr(sentiment, name)) for name in sentiment.__all__)


def test_every_error_is_exported() -> None:
    raised = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert raised <= set(sentiment.__all__)


def test_the_quickstart_in_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert sentiment.__doc__ is not None
    lines = sentiment.__doc__[sentiment.__doc__.index("    from") : sentiment.__doc__.index("| module")]
    with scripted(model) as server:
        exec(textwrap.dedent(lines).replace("http://127.0.0.1:8080", server.url), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == prediction("Thank you for the great flight!")["label"]
    assert [line.split()[0] for line in rest] == [
        prediction(text)["label"] for text in ("Late again", "Which gate is flight 12?")
    ]


def repacked(name: str, folder: Path) -> None:
    """Build the wheel of an installed package from its files, and the wheels of the packages that it requires.

    A test may not depend on the network, and pip keeps no wheel of what it installed.
    """
    package = distribution(name)
    [tag, *_] = re.findall(r"^Tag: (.+)$", package.read_text("WHEEL") or "", flags=re.MULTILINE)
    wheel = folder / f"{name.replace('-', '_')}-{package.version}-{tag}.whl"
    if wheel.exists():
        return
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in package.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
    for required in required_packages(package.requires or []):
        repacked(required, folder)


def required_packages(requirements: list[str]) -> list[str]:
    """Names of the packages that are required here: without extras, and without those of other systems."""
    return [re.split(r"[^\w.-]", line)[0] for line in requirements if ";" not in line]


def test_ci_tests_every_python_version_that_the_package_declares() -> None:
    classifiers = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(classifiers))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text(encoding="utf-8"))["jobs"]
    [main] = {
        step["with"]["python-version"] for step in jobs["test"]["steps"] if "python-version" in step.get("with", {})
    }
    assert {main, *jobs["client"]["strategy"]["matrix"]["python"]} == set(declared)


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the client's wheel and the packages that the wheel declares, and no other package."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(CLIENT, folder / "client", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-index", "--find-links", str(folder)]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        check=True,
    )
    [wheel] = folder.glob("sentiment_client-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        requirements = re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), flags=re.MULTILINE)
    for name in required_packages(requirements):
        repacked(name, folder)
    environment = folder / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    subprocess.run([*pip, "--python", environment / "bin" / "python", "install", *offline, str(wheel)], check=True)
    return environment


def run_in(environment: Path, command: str, *arguments: str, **variables: str) -> str:
    """Run a command of a virtual environment from a folder without source code; returns its standard output."""
    result = subprocess.run(
        [environment / "bin" / command, *arguments],
        cwd=environment,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_needs_only_what_it_declares(empty_environment: Path) -> None:
    with scripted(model) as server:
        answer = json.loads(run_in(empty_environment, "python", "-I", "-c", REQUEST, server.url))
        line = run_in(empty_environment, "sentiment", "predict", "Late again", SENTIMENT_URL=server.url)
    assert (answer["label"], answer["exported"]) == (prediction("Late again")["label"], sentiment.__all__)
    assert Path(answer["file"]).is_relative_to(empty_environment), "another copy of the package was imported"
    assert line.startswith(prediction("Late again")["label"])


def test_the_wheel_has_the_command_with_its_help_and_version(empty_environment: Path) -> None:
    assert run_in(empty_environment, "sentiment", "--help").startswith("usage: sentiment ")
    assert run_in(empty_environment, "sentiment", "--version") == f"sentiment {sentiment.__version__}\n"


def test_the_wheel_has_type_hints_a_licence_and_one_top_level_name(empty_environment: Path) -> None:
    [packages] = empty_environment.glob("lib/python*/site-packages")
    assert (packages / "sentiment" / "py.typed").is_file()
    [top_level] = packages.glob("sentiment_client-*.dist-info/top_level.txt")
    assert top_level.read_text() == "sentiment\n"
    [licence] = packages.glob("sentiment_client-*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()


def test_parquet_without_pyarrow_is_an_error_that_names_the_package(empty_environment: Path) -> None:
    table = empty_environment / "tweets.parquet"
    table.write_bytes(b"PAR1")
    result = subprocess.run(
        [empty_environment / "bin" / "sentiment", "score", str(table), "--model", "sentiment"],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: Reading {table} needs the package pyarrow, which is not installed: ")


def test_the_command_of_make_serve_ignores_pythonpath_and_the_working_directory(
    empty_environment: Path, tmp_path: Path
) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"include {ROOT}/Makefile\n.PHONY: command\ncommand:\n\t$(WRITE_COMMAND)\n")
    commands = empty_environment / "bin"
    subprocess.run(["make", "--file", makefile, f"BIN={commands}", "command"], cwd=ROOT, check=True)
    (tmp_path / "sentiment.py").write_text("raise SystemExit('another module of this name')")
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
