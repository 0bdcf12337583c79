"""Tests of privacy: the product makes no DNS lookup and no connection to another machine.

It also leaves no vendor's files in the user's home folder.
"""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

TELEMETRY_FOLDER = "DeveloperTools/.onnxruntime"

# Root needs no user namespace; other users need one, which a machine may forbid.
NEW_NETWORK = ["unshare", "--net", "--uts", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@cache
def why_no_trap() -> str | None:
    """The reason why this machine cannot make a network namespace; None if it can."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "needs `unshare` (util-linux) and `ip` (iproute2)"
    tried = subprocess.run([*NEW_NETWORK, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return f"cannot make a network namespace: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def python(*arguments: str, home: Path) -> list[str]:
    """The command for this Python with an empty home folder and a minimal environment.

    ONNX Runtime sends no telemetry if variables such as `CI` or `GITHUB_ACTIONS` are set, so they must not be set.
    """
    variables = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    return ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), sys.executable, *arguments]


def trapped(command: list[str], log: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command in a network namespace from which no packet leaves.

    Returns:
        The command's result, and the names that it looked up and the addresses to which it sent packets.
    """
    if reason := why_no_trap():
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    trap = [*NEW_NETWORK, sys.executable, "-m", "tests.privacy.trap", str(log)]
    result = subprocess.run([*trap, *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    return result, set(log.read_text(encoding="utf-8").splitlines())


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_typical_use_makes_no_dns_lookup_and_no_connection(tmp_path: Path, home: Path, mar: Path) -> None:
    """`tests.privacy.walk` lists the actions."""
    walk = python("-m", "tests.privacy.walk", str(tmp_path), str(mar), home=home)
    result, seen = trapped(walk, tmp_path / "packets")
    assert result.returncode == 0, result.stdout + result.stderr
    assert seen == set()
    # matplotlib, imported to create the learner, caches a list of fonts; the product itself leaves no file.
    assert [path for path in files(home) if not path.startswith(".cache/matplotlib/")] == []


ASKS = """
import socket
for ask in (
    lambda: socket.getaddrinfo("telemetry.example.org", 443),
    lambda: socket.create_connection(("192.0.2.7", 443), 5),
    lambda: socket.create_connection(("2001:db8::7", 443), 5),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("198.51.100.7", 123)),
    lambda: socket.create_connection(("127.0.0.1", 9), 5),
):
    try:
        ask()
    except OSError:
        pass
"""


def test_the_trap_detects_lookups_and_connections(tmp_path: Path, home: Path) -> None:
    result, seen = trapped(python("-c", ASKS, home=home), tmp_path / "packets")
    assert result.returncode == 0, result.stderr
    expected = {"name telemetry.example.org", "tcp 192.0.2.7:443", "tcp 2001:db8::7:443", "udp 198.51.100.7:123"}
    assert seen == expected


@pytest.mark.parametrize(
    ("code", "leaves"),
    [
        ("import onnxruntime", True),
        ("import handler.engine", False),
        ("import handler.engine, onnxruntime", False),
        ("import benchmarks.measure", False),
    ],
)
def test_onnx_runtimes_telemetry_is_off(code: str, leaves: bool, tmp_path: Path, home: Path) -> None:
    """The first case proves that the test can fail. If the case fails, a new ONNX Runtime has no telemetry any more."""
    result, _ = trapped(python("-c", code, home=home), tmp_path / "packets")
    assert result.returncode == 0, result.stderr
    assert any(TELEMETRY_FOLDER in path for path in files(home)) == leaves


def test_an_engine_imported_after_onnx_runtime_warns_of_telemetry(tmp_path: Path, home: Path) -> None:
    result, _ = trapped(python("-c", "import onnxruntime, handler.engine", home=home), tmp_path / "packets")
    assert "set ORT_DISABLE_TELEMETRY=1 before Python starts" in result.stderr
    command = ["env", "ORT_DISABLE_TELEMETRY=1", sys.executable, "-c", "import onnxruntime, handler.engine"]
    result, _ = trapped(command, tmp_path / "packets")
    assert (result.returncode, result.stderr) == (0, "")


def test_only_the_engine_imports_onnx_runtime() -> None:
    """The engine turns telemetry off before it imports ONNX Runtime."""
    importers = set()
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in tracked.stdout.splitlines():
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                importers.add(path)
    assert importers == {"handler/engine.py"}
