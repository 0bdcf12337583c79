"""`sentiment --every-pod`, with the real kubectl, a simulated Kubernetes API server, and servers in place of pods."""

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from sentiment import pods
from sentiment.cli import main
from tests.client.fake_torchserve import FakeTorchServe, serving
from tests.interruptible import heed_sigint
from tests.k8s.api_server import ApiServer, Forward, StandInPod, cluster
from tests.paths import CLIENT

Out = pytest.CaptureFixture[str]
Add = Callable[..., FakeTorchServe]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    for name in ("SENTIMENT_URL", "SENTIMENT_MANAGEMENT_URL", "SENTIMENT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(random, "uniform", lambda *_: 0)  # no pauses before retries
    with cluster(tmp_path, monkeypatch) as server:
        yield server
    assert _forwards() == [], "a port-forward outlived its command"


@pytest.fixture
def add(api: ApiServer) -> Iterator[Add]:
    """Add a pod with a server of its own."""
    started = []

    def add(name: str, **changes: object) -> FakeTorchServe:
        fake = FakeTorchServe()
        context = serving(fake)
        port = urlsplit(context.__enter__().url).port
        started.append(context)
        assert port is not None
        api.pods.append(StandInPod(name, {8080: port, 8081: port}, **changes))  # type: ignore[arg-type]
        return fake

    yield add
    for context in started:
        context.__exit__(None, None, None)


def _forwards(pid: int | None = None) -> list[psutil.Process]:
    """The kubectl processes that a process has started and not reaped; by default, those of this process."""
    return [child for child in psutil.Process(pid).children() if _is_kubectl(child)]


def _is_kubectl(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ends between the list and the question
        return "kubectl" in process.name()
    return False


def _ended(process: psutil.Process) -> bool:
    """Whether a process is a zombie: all its threads have ended, and its parent has not reaped it."""
    with contextlib.suppress(psutil.ZombieProcess):
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 1
    return True


def _forwarding(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
        return "port-forward" in process.cmdline()
    return False


def test_a_command_runs_on_every_pod(add: Add, capsys: Out) -> None:
    first, second = add("sentiment-a"), add("sentiment-b")
    assert main(["--every-pod", "scale", "3"]) == 0
    line = "Version 1.0 of sentiment (sentiment.mar) has 3 READY."
    output = capsys.readouterr()
    assert output.out == f"sentiment-a:\n{line}\n\nsentiment-b:\n{line}\n\n"
    assert output.err == ""
    assert [fake.versions["1.0"].workers for fake in (first, second)] == [3, 3]


def test_json_output_has_an_object_for_each_pod(add: Add, capsys: Out) -> None:
    add("sentiment-a")
    add("sentiment-b", forward=Forward.REFUSED)
    assert main(["--every-pod", "status", "--json"]) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good["pod"], good["done"], good["error"]) == ("sentiment-a", True, None)
    assert good["result"]["versions"][0]["version"] == "1.0"
    assert (bad["pod"], bad["done"], bad["result"]) == ("sentiment-b", False, None)
    assert "cannot create portforward" in bad["error"]


def test_pods_that_are_ending_are_skipped(add: Add, capsys: Out) -> None:
    add("sentiment-a")
    ending = [add("sentiment-b", ending=True), add("sentiment-c", phase="Failed", ready=False)]
    assert main(["--every-pod", "scale", "3"]) == 0
    output = capsys.readouterr()
    assert output.err == "Skipped sentiment-b: it is ending.\nSkipped sentiment-c: it is ending.\n"
    assert "sentiment-a:\n" in output.out
    assert [fake.versions["1.0"].workers for fake in ending] == [2, 2]


@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_a_pod_that_is_not_ready_counts_as_failed(add: Add, capsys: Out, phase: str) -> None:
    starting = add("sentiment-a", phase=phase, ready=False)
    add("sentiment-b")
    assert main(["--every-pod", "scale", "3"]) == 1
    assert capsys.readouterr().err == (
        "Skipped sentiment-a: it is not ready.\nerror: failed or not run on sentiment-a; succeeded on sentiment-b.\n"
    )
    assert starting.versions["1.0"].workers == 2


def test_a_failed_forward_does_not_stop_the_other_pods(add: Add, capsys: Out) -> None:
    refused, other = add("sentiment-a", forward=Forward.REFUSED), add("sentiment-b")
    assert main(["--every-pod", "scale", "3"]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("sentiment-a:\n\nsentiment-b:\nVersion 1.0 ")
    assert "error: kubectl port-forward failed: " in output.err
    assert 'User "somebody" cannot create portforward' in output.err
    assert output.err.endswith("error: failed or not run on sentiment-a; succeeded on sentiment-b.\n")
    assert (refused.versions["1.0"].workers, other.versions["1.0"].workers) == (2, 3)


def test_no_other_program_is_asked_if_a_forward_fails(add: Add, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has another server at the default addresses."""
    add("sentiment-a", forward=Forward.REFUSED)
    own = FakeTorchServe()
    with serving(own) as server:
        monkeypatch.setenv("SENTIMENT_URL", server.url)
        monkeypatch.setenv("SENTIMENT_MANAGEMENT_URL", server.url)
        assert main(["--every-pod", "scale", "3"]) == 1
        assert server.requests == []


def test_a_forward_that_stops_is_reported(add: Add, capsys: Out) -> None:
    add("sentiment-a", forward=Forward.BREAKS)
    add("sentiment-b")
    assert main(["--every-pod", "scale", "3"]) == 1
    output = capsys.readouterr()
    assert "does not answer" in output.err
    assert "kubectl port-forward stopped: " in output.err
    assert "lost connection to pod" in output.err
    assert output.err.endswith("error: failed or not run on sentiment-a; succeeded on sentiment-b.\n")


def test_a_command_whose_forward_stops_counts_as_failed(api: ApiServer, add: Add, capsys: Out) -> None:
    """Another program may have taken the local port and answered."""
    add("sentiment-a")

    def answered_by_another_program(*_: str) -> int:
        api.lose_forwards()
        while not all(map(_ended, _forwards())):
            time.sleep(0.01)
        return 0

    messages: list[str] = []
    assert not pods.on_every_pod(pods.Deployment(), answered_by_another_program, messages.append, as_json=False)
    stopped, summary = messages
    assert stopped.startswith("error: kubectl port-forward stopped: error: lost connection to pod")
    assert summary == "error: failed or not run on sentiment-a; succeeded on no pod."


def test_a_forward_that_does_not_start_times_out(add: Add, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "FORWARD_TIMEOUT_S", 1.0)
    add("sentiment-a", forward=Forward.SILENT)
    assert main(["--every-pod", "status"]) == 1
    assert "error: kubectl port-forward was not ready within 1 s: it gave no reason." in capsys.readouterr().err


def test_a_pod_without_a_server_counts_as_failed(api: ApiServer, add: Add, capsys: Out) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        api.pods.append(StandInPod("sentiment-a", {8080: port, 8081: port}))
        assert main(["--every-pod", "scale", "3"]) == 1
    output = capsys.readouterr()
    assert "Connection refused" in output.err, output.err


def test_an_interrupted_command_lists_the_pods_that_are_done(
    add: Add, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sentiment-a", "sentiment-b", "sentiment-c"):
        add(name)
    run: list[str] = []

    def second_is_interrupted(inference_url: str, _: str) -> int:
        run.append(inference_url)
        if len(run) == 2:
            raise KeyboardInterrupt
        return 0

    messages: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        pods.on_every_pod(pods.Deployment(), second_is_interrupted, messages.append, as_json=False)
    assert messages == ["error: failed or not run on sentiment-b, sentiment-c; succeeded on sentiment-a."]


@pytest.mark.parametrize(
    ("number", "message", "code"),
    [
        (signal.SIGINT, "Interrupted.", 130),
        (signal.SIGHUP, "Interrupted.", 130),
        (signal.SIGTERM, "Terminated.", 143),
    ],
)
def test_no_forward_survives_a_signal(api: ApiServer, add: Add, number: int, message: str, code: int) -> None:
    add("sentiment-a", forward=Forward.SILENT)
    command = [sys.executable, "-m", "sentiment", "--every-pod", "status"]
    with subprocess.Popen(
        command,
        cwd=CLIENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,  # noqa: PLW1509
    ) as running:
        while running.poll() is None and not (forwards := list(filter(_forwarding, _forwards(running.pid)))):
            time.sleep(0.05)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert errors == f"error: failed or not run on sentiment-a; succeeded on no pod.\n{message}\n"
    assert not any(forward.is_running() for forward in forwards)


def test_nohup_protects_from_a_closed_terminal(api: ApiServer, add: Add) -> None:
    add("sentiment-a")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def terminal_is_closed(*_: str) -> int:
            signal.raise_signal(signal.SIGHUP)
            return 0

        assert pods.on_every_pod(pods.Deployment(), terminal_is_closed, print, as_json=False)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_selector_without_pods_is_an_error(api: ApiServer, add: Add, capsys: Out) -> None:
    assert main(["--every-pod", "status"]) == 1
    message = "No pod has the label app.kubernetes.io/name=sentiment in the namespace sentiment."
    assert capsys.readouterr().err == f"error: {message}\n"
    add("sentiment-a")
    assert main(["--every-pod", "--namespace", "other", "--selector", "app=other", "status"]) == 1
    assert capsys.readouterr().err == "error: No pod has the label app=other in the namespace other.\n"
    api.pods[0].ending = True
    assert main(["--every-pod", "status"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: All pods with the label app.kubernetes.io/name=sentiment are ending.\n"
    )


def test_a_denied_permission_is_an_error(api: ApiServer, capsys: Out) -> None:
    api.may_list = False
    assert main(["--every-pod", "status"]) == 1
    assert capsys.readouterr().err == (
        'error: kubectl get pods failed: Error from server (Forbidden): pods is forbidden: User "somebody" cannot list '
        'resource "pods"\n'
    )


def test_a_missing_context_is_an_error(api: ApiServer, capsys: Out) -> None:
    assert main(["--every-pod", "--context", "other", "status"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: kubectl get pods failed: ")
    assert "other" in error


def test_a_missing_kubectl_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Out) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--every-pod", "status"]) == 1
    assert capsys.readouterr().err.startswith("error: kubectl is not on the PATH. Install it: ")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--every-pod", "predict", "late"], "--every-pod applies to status, scale, "),
        (["--every-pod", "score", "tweets.csv"], "--every-pod applies to status, scale, "),
        (["--namespace", "other", "scale", "2"], "require --every-pod"),
        (["--selector", "a=b", "status"], "require --every-pod"),
        (["--context", "other", "status"], "require --every-pod"),
    ],
)
def test_options_for_pods_are_checked(arguments: list[str], problem: str, capsys: Out) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert problem in capsys.readouterr().err
