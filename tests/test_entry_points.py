"""The command lines in an environment without their packages."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

COMMANDS = {
    "bulk": ("apache_beam", "`make bulk-setup` installs"),
    "benchmarks": ("pandas", "`make bench` installs"),
    "docs": ("yaml", "`make test` installs"),
    "sentiment": ("tqdm", "`make serve` installs"),
    "server": ("psutil", "`make serve` installs"),
    "training": ("numpy", "`make train-setup` installs"),
}
"""For each command: a package that it needs, and what its message says about the installation."""

ARGUMENTS = {
    "bulk": ["--input", "a.csv", "--output", "scored", "--archive", "a.mar"],
    "training": ["evaluate", "--data", "Tweets.csv", "--split", "validation"],
}
"""Arguments of the commands that print their usage without any."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_package_is_named_with_the_command_that_installs_it(command: str) -> None:
    package, installation = COMMANDS[command]
    program = (
        f"import runpy, sys; sys.path.append('client'); sys.modules[{package!r}] = None; "
        f"runpy.run_module({command!r}, run_name='__main__')"
    )
    options = ARGUMENTS.get(command, [])
    result = subprocess.run(
        [sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: the Python package {package!r} is not installed for {sys.executable}. ")
    assert installation in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["docs.generate", "sentiment.cli", "training.cli"])
def test_ctrl_c_during_the_imports_is_one_line(module: str) -> None:
    program = f"""
import runpy, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.path.append("client")
sys.meta_path.insert(0, Interrupted())
runpy.run_module({module.partition(".")[0]!r}, run_name="__main__")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "Interrupted.")
