"""The built image, really run: `make image-test` builds it and starts this with `IMAGE` and `CONTAINER_ENGINE` set.

It runs as Kubernetes would run it: not as root, on a read-only root with a writable `/tmp`, without any capability.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from client.transport import VERSION_HEADER
from tests.paths import MODEL, ROOT
from training.archive import archive

IMAGE = os.environ.get("IMAGE", "")
ENGINE = os.environ.get("CONTAINER_ENGINE", "")
TEXT = {"Content-Type": "text/plain"}
START_TIMEOUT_S = 60
LONG_TEXT = "never again with this airline " * 300

pytestmark = pytest.mark.skipif(not IMAGE, reason="no image: `make image-test` builds and tests it")


def engine(*arguments: str) -> str:
    result = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


@contextmanager
def running(*options: str) -> Iterator[str]:
    """A container that is ready, by its id."""
    name = engine(
        *("run", "--detach", "--read-only", "--tmpfs", "/tmp:size=256m", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges", "--publish", "127.0.0.1::8080", *options, IMAGE),
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(
            [ENGINE, "exec", name, "python", "-m", "server.probe", "ready"], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, engine("logs", name)
            time.sleep(0.2)
        yield name
    finally:
        engine("rm", "--force", name)


@pytest.fixture
def container() -> Iterator[str]:
    with running() as name:
        yield name


def sentiment(container: str, *arguments: str) -> str:
    """The command line in the container's network, as a port-forward to a pod gives it: management is on its loopback
    interface alone. The image has no client, but the Python and the packages that it needs."""
    return engine(
        *("run", "--rm", "--read-only", "--network", f"container:{container}", "--entrypoint", "python"),
        *("--volume", f"{ROOT}/client:/app/client:ro", IMAGE, "-m", "client", *arguments),
    )


def url(container: str) -> str:
    return f"http://{engine('port', container, '8080').splitlines()[0]}/predictions/sentiment"


def test_it_answers_as_the_readme_says(container: str) -> None:
    reply = requests.post(url(container), data=b"Thank you for the great flight!", headers=TEXT, timeout=60)
    assert reply.json()["label"] == "positive"
    assert reply.json()["score"] == pytest.approx(0.977, abs=0.005)


def test_it_is_not_root_and_writes_nothing_but_tmp(container: str) -> None:
    assert engine("exec", container, "id", "-u") == "65532"
    status = engine("exec", container, "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    made = subprocess.run([ENGINE, "exec", container, "touch", "/app/here"], capture_output=True, check=False)
    assert made.returncode != 0


def test_java_has_a_quarter_of_the_memory(container: str) -> None:
    code = "import pathlib; print([each.read_text() for each in pathlib.Path('/proc').glob('[0-9]*/cmdline')])"
    command = engine("exec", container, "python", "-c", code)
    assert "org.pytorch.serve.ModelServer" in command
    assert "-XX:MaxRAMPercentage=25" in command


def test_nothing_can_be_installed_or_compiled_in_it(container: str) -> None:
    for program in ("pip", "gcc", "cc"):
        found = subprocess.run(
            [ENGINE, "exec", container, "sh", "-c", f"command -v {program}"], capture_output=True, check=False
        )
        assert found.returncode != 0, program
    assert engine("exec", container, "ls", "/var/lib/apt/lists") == ""


def test_sigterm_under_load_answers_what_is_in_flight(container: str) -> None:
    address = url(container)
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(requests.post, address, data=LONG_TEXT, headers=TEXT, timeout=120) for _ in range(16)]
        time.sleep(0.5)
        engine("kill", "--signal", "TERM", container)
        assert [reply.result().status_code for reply in sent] == [200] * 16
    assert engine("wait", container) == "0"


def test_versions_and_workers_come_and_go(tmp_path: Path) -> None:
    """TorchServe executes programs for it, and the image has few."""
    second = tmp_path / "sentiment-2.mar"
    archive(MODEL, second, "2.0", "int8")
    with running("--volume", f"{second}:/app/model_store/{second.name}:ro") as container:
        for arguments in ("scale 2", "scale 1", "register sentiment-2.mar", "unregister 2.0"):
            sentiment(container, *arguments.split())
        for command, version in (("rollout sentiment-2.mar", "2.0"), ("rollback sentiment.mar", "1.0")):
            sentiment(container, *command.split(), "--drain", "0")
            reply = requests.post(url(container), data=b"Late again", headers=TEXT, timeout=60)
            assert (reply.status_code, reply.headers[VERSION_HEADER]) == (200, version)
        status = json.loads(sentiment(container, "status", "--json"))
        assert [version["version"] for version in status["versions"]] == ["1.0"]


def test_labels_say_what_it_is() -> None:
    [described] = json.loads(engine("image", "inspect", IMAGE))
    labels = described["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "fastai-sentiment-server"
    assert labels["org.opencontainers.image.revision"] != "unknown"
