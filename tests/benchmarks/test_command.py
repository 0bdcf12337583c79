"""The benchmarks' command line in an environment without their packages."""

import subprocess
import sys

from tests.paths import ROOT


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    program = "import runpy, sys; sys.modules['pandas'] = None; runpy.run_module('benchmarks', run_name='__main__')"
    command = [sys.executable, "-c", program, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the Python package 'pandas' is not installed for ")
    assert "`make bench` installs" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_help_is_shown() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "--rounds" in result.stdout
