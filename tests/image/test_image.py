"""Tests of the container image. `make image-test` builds it and sets `IMAGE` and `CONTAINER_ENGINE` for these tests.

The containers run as in Kubernetes: not as root, with a read-only root file system, a writable `/tmp`, and no
capability.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from sentiment.transport import VERSION_HEADER
from tests.paths import MODEL, ROOT
from training.export.archive import archive

IMAGE = os.environ.get("IMAGE", "")
ENGINE = os.environ.get("CONTAINER_ENGINE", "")
VERSION = os.environ.get("VERSION", "1.0")
"""The version that `make image` gave to the model."""
TEXT = {"Content-Type": "text/plain"}
START_TIMEOUT_S = 60
TWEET = b"Thank you for the great flight!"
KEYS = ["first-key-" * 4, "second-key-" * 4]
BODY_BYTES = 2_400_000
LONG_TEXT = "never again with this airline " * 300

pytestmark = pytest.mark.skipif(not IMAGE, reason="no image: `make image-test` builds and tests it")


def engine(*arguments: str) -> str:
    result = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


AS_IN_A_POD = ("--read-only", "--tmpfs", "/tmp:size=128m", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@contextlib.contextmanager
def running(*options: str) -> Iterator[str]:
    """The id of a ready container."""
    name = engine("run", "--detach", "--publish", "127.0.0.1::8080", *options, IMAGE)
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


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """A container started as in the documentation, by `run --publish` without further options."""
    with running() as name:
        yield name


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    with running(*AS_IN_A_POD) as name:
        yield name


def sentiment(container: str, *arguments: str) -> str:
    """Run the command `sentiment` in the container's network, which is what a port-forward to a pod gives access to.

    The management API listens on the container's loopback interface. The image has no client, but its Python and the
    packages that the client needs.
    """
    return engine(
        *("run", "--rm", "--read-only", "--network", f"container:{container}", "--entrypoint", "python"),
        *("--volume", f"{ROOT}/client/sentiment:/app/sentiment:ro", IMAGE, "-m", "sentiment", *arguments),
    )


def address(container: str) -> str:
    """The host and port of this machine that are mapped to the container's port 8080."""
    return engine("port", container, "8080").splitlines()[0]


def url(container: str, path: str = "/predictions/sentiment") -> str:
    return f"http://{address(container)}{path}"


def predicted(container: str, **headers: str) -> requests.Response:
    return requests.post(url(container), data=TWEET, headers=TEXT | headers, timeout=60)


def workers(container: str) -> list[str]:
    """The process ids of the workers, inside the container."""
    code = "import psutil; print(*(p.pid for p in psutil.process_iter() if 'model_service_worker' in str(p.cmdline())))"
    return engine("exec", container, "python", "-c", code).split()


def test_the_image_serves_predictions(plain: str) -> None:
    reply = predicted(plain)
    assert reply.headers[VERSION_HEADER] == VERSION
    [answer] = re.findall(r"^\{.*\}$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    expected = json.loads(answer)
    assert reply.json()["label"] == expected["label"]
    assert reply.json()["scores"] == pytest.approx(expected["scores"], abs=0.001)


def test_the_image_serves_the_open_inference_protocol(plain: str) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TWEET.decode()]}]}
    reply = requests.post(url(plain, "/v2/models/sentiment/infer"), json=body, timeout=60)
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    assert outputs["label"] == ["positive"]
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/sentiment", "/v2/models/sentiment/ready"):
        assert requests.get(url(plain, path), timeout=60).status_code == 200, path


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_image_serves_the_pages(plain: str, path: str) -> None:
    """Every file that a page loads is served too."""
    page = requests.get(url(plain, path), timeout=60)
    assert (page.status_code, page.headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    files = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=[\"']([^\"'#]+)", page.text)
    for file in files:
        if not file.startswith("data:"):
            assert requests.get(urljoin(page.url, file), timeout=60).status_code == 200, file
    assert files or path == "/"


def test_the_health_check_succeeds(plain: str) -> None:
    [described] = json.loads(engine("image", "inspect", IMAGE))
    check = described.get("Healthcheck") or described["Config"]["Healthcheck"]  # podman's key, docker's key
    kind, *command = check["Test"]
    assert kind == "CMD"
    engine("exec", plain, *command)
    assert requests.get(url(plain, "/ready"), timeout=60).status_code == 200


def test_only_the_door_listens_on_the_network(plain: str) -> None:
    """The door listens for predictions and metrics. Management and gRPC are on loopback, TorchServe on sockets."""
    code = (
        "import psutil; print(*{':'.join(map(str, c.laddr)) for c in psutil.net_connections() if c.status == 'LISTEN'})"
    )
    listening = set(engine("exec", plain, "python", "-c", code).split())
    loopback = ("127.0.0.1:", "::1:", "::ffff:127.0.0.1:")
    public = {address for address in listening if not address.startswith(loopback)}
    assert public == {"0.0.0.0:8080", "0.0.0.0:8082"}
    assert "127.0.0.1:8081" in listening


def test_any_user_can_run_the_image() -> None:
    """OpenShift runs the containers of each namespace with an own user id, in the group root."""
    with running(*AS_IN_A_POD, "--user", "1000670000:0") as container:
        assert predicted(container).json()["label"] == "positive"


def test_the_server_is_not_root_and_writes_to_tmp_only(container: str) -> None:
    assert engine("exec", container, "id", "-u") == "65532"
    status = engine("exec", container, "cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    made = subprocess.run([ENGINE, "exec", container, "touch", "/app/here"], capture_output=True, check=False)
    assert made.returncode != 0


def test_the_image_has_no_installer_and_no_compiler(container: str) -> None:
    for program in ("pip", "gcc", "cc"):
        lookup = subprocess.run(
            [ENGINE, "exec", container, "sh", "-c", f"command -v {program}"], capture_output=True, check=False
        )
        assert lookup.returncode != 0, program
    assert engine("exec", container, "ls", "/var/lib/apt/lists") == ""


def test_a_killed_worker_in_the_image_loses_no_request(container: str) -> None:
    """The door retries the worker's requests with another worker."""
    stop = threading.Event()

    def ask() -> list[int]:
        statuses = []
        with requests.Session() as session:
            while not stop.is_set():
                statuses.append(session.post(url_of_container, data=TWEET, headers=TEXT, timeout=60).status_code)
        return statuses

    url_of_container = url(container)
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask) for _ in range(8)]
        for _ in range(3):
            time.sleep(1)
            engine("exec", container, "sh", "-c", f"kill -9 {workers(container)[0]}")
        time.sleep(3)
        stop.set()
        statuses = [status for client in clients for status in client.result()]
    assert set(statuses) == {200}


def test_half_sent_bodies_do_not_affect_other_clients_of_the_image() -> None:
    """The bodies together exceed the memory limit of a pod. The last byte of each body is never sent."""
    head = f"POST /predictions/sentiment HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY_BYTES}\r\n\r\n".encode()
    with running(*AS_IN_A_POD, "--memory", "2g", "--cpus", "2") as container, contextlib.ExitStack() as stack:
        host, port = address(container).split(":")

        def send() -> None:
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with contextlib.suppress(OSError):  # the door may refuse the request meanwhile
                connection.sendall(head + bytes(BODY_BYTES - 1))

        with ThreadPoolExecutor(32) as pool:
            sent = [pool.submit(send) for _ in range(1_000)]
            while not all(future.done() for future in sent):
                assert predicted(container).status_code == 200
        assert predicted(container).status_code == 200
        [state] = json.loads(engine("inspect", container))
        assert (state["State"]["Running"], state["State"]["OOMKilled"]) == (True, False)


def test_sigterm_under_load_answers_requests_in_flight() -> None:
    with running(*AS_IN_A_POD) as container:
        predictions = url(container)
        with ThreadPoolExecutor(16) as pool:
            sent = [
                pool.submit(requests.post, predictions, data=LONG_TEXT, headers=TEXT, timeout=120) for _ in range(16)
            ]
            time.sleep(0.5)
            engine("kill", "--signal", "TERM", container)
            assert [reply.result().status_code for reply in sent] == [200] * 16
        assert engine("wait", container) == "0"


def test_sigterm_resets_no_persistent_connection() -> None:
    """The last response on each connection announces that it closes; later connections are refused."""
    with running(*AS_IN_A_POD) as container:
        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(ask_until_refused, address(container)) for _ in range(8)]
            time.sleep(2)
            engine("kill", "--signal", "TERM", container)
            statuses = [status for client in clients for status in client.result()]
        assert len(statuses) > 100
        assert set(statuses) <= {200, 503}, statuses
        assert engine("wait", container) == "0"


def ask_until_refused(container: str) -> list[int]:
    """Send one request after the other until a new connection is refused; returns the statuses.

    A connection is kept until the server closes it.
    """
    statuses = []
    while True:
        connection = http.client.HTTPConnection(container, timeout=60)
        new = True
        try:
            while new or connection.sock is not None:
                connection.request("POST", "/predictions/sentiment", TWEET, TEXT)
                reply = connection.getresponse()
                reply.read()
                statuses.append(reply.status)
                new = False
        except (OSError, http.client.HTTPException):
            # The engine's proxy may accept a connection for a container that no longer listens.
            if not new:
                raise
            return statuses
        finally:
            connection.close()


def test_keys_are_read_from_a_mounted_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{key}\n" for key in KEYS))
    keys.chmod(0o444)
    mounted = ("--volume", f"{keys}:/keys/keys:ro", "--env", "SENTIMENT_KEY_FILE=/keys/keys")
    with running(*AS_IN_A_POD, *mounted) as container:
        refused = predicted(container)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        for key in KEYS:
            assert predicted(container, Authorization=f"Bearer {key}").json()["label"] == "positive"
        for path in ("/", "/docs", "/ready", "/ping"):
            assert requests.get(url(container, path), timeout=60).status_code == 200, path


def test_versions_and_workers_can_be_added_and_removed(tmp_path: Path) -> None:
    """TorchServe executes programs for these actions, and the image has few programs."""
    second = tmp_path / "sentiment-2.mar"
    archive(MODEL, second, "next", "int8")
    with running(*AS_IN_A_POD, "--volume", f"{second}:/app/model_store/{second.name}:ro") as container:
        for arguments in ("scale 2", "scale 1", "register sentiment-2.mar", "unregister next"):
            sentiment(container, *arguments.split())
        for command, version in (("rollout sentiment-2.mar", "next"), ("rollback sentiment.mar", VERSION)):
            sentiment(container, *command.split(), "--drain", "0")
            reply = requests.post(url(container), data=b"Late again", headers=TEXT, timeout=60)
            assert (reply.status_code, reply.headers[VERSION_HEADER]) == (200, version)
        status = json.loads(sentiment(container, "status", "--json"))
        assert [version["version"] for version in status["versions"]] == [VERSION]


def test_the_images_labels_describe_it() -> None:
    [described] = json.loads(engine("image", "inspect", IMAGE))
    labels = described["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "sentiment"
    assert labels["org.opencontainers.image.revision"] != "unknown"
