"""Run a management command on every pod of a deployment, one pod after the other.

The management API listens only on each pod's loopback interface, which `kubectl port-forward` reaches. Kubectl chooses
free local ports, and this module reads them from its output, so that they never belong to another program.
"""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentiment.errors import ClientError, PodError
from sentiment.terminal import one_line

NAMESPACE = "sentiment"
SELECTOR = "app.kubernetes.io/name=sentiment"
INFERENCE_PORT, MANAGEMENT_PORT = 8080, 8081
"""Ports of every pod, from `config.properties`."""

LIST_TIMEOUT_S = 60.0
FORWARD_TIMEOUT_S = 30.0
"""Timeouts for kubectl to list the pods, and to start a port-forward."""
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05

_FORWARDED = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)$", re.MULTILINE)
_LOG_PREFIX = re.compile(r"^[IWEF]\d{4} \S+ +\d+ \S+\] ")
"""Prefix of a line of kubectl's log: level, date, time, thread and source line."""

Command = Callable[[str, str], int]
"""A command that takes the URLs of a pod's inference and management APIs, and returns its exit code (0: success)."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Deployment:
    """A deployment, as kubectl selects its pods."""

    namespace: str = NAMESPACE
    selector: str = SELECTOR
    context: str | None = None
    """Context of kubectl's configuration; None for the current one."""

    def kubectl(self, *arguments: str) -> list[str]:
        """The command line of kubectl with these arguments.

        Raises:
            PodError: kubectl is not installed.
        """
        program = shutil.which("kubectl")
        if program is None:
            raise PodError("kubectl is not on the PATH. Install it: https://kubernetes.io/docs/tasks/tools/")
        context = [] if self.context is None else ["--context", self.context]
        return [program, *context, "--namespace", self.namespace, *arguments]


@dataclass(frozen=True)
class Pod:
    """State of a pod."""

    name: str
    ending: bool
    """Whether the pod is being deleted, or its containers have ended without a restart."""

    ready: bool


def on_every_pod(deployment: Deployment, command: Command, say: Say, *, as_json: bool) -> bool:
    """Run a command on every pod that is ready, and print each pod's name before the command's output.

    Pods that are ending are skipped. Pods that are not ready are skipped too, but count as failed.

    Args:
        deployment: the deployment.
        command: the command to run.
        say: shows a message to the user.
        as_json: print one JSON object per pod: its name, whether the command succeeded, the JSON that the command
            printed, and the error.

    Returns:
        Whether the command succeeded on every pod that is not ending.

    Raises:
        PodError: kubectl is missing or cannot list the pods, or no pod is left after the skipped ones.
    """
    pods = [pod for pod in _pods(deployment) if not _skipped(pod, say)]
    if not pods:
        raise PodError(f"All pods with the label {deployment.selector} are ending.")
    outcomes: dict[str, bool] = {}
    try:
        for pod in pods:
            if pod.ready:
                show = _as_json if as_json else _as_text
                outcomes[pod.name] = show(deployment, pod.name, command, say)
            else:
                say(f"Skipped {pod.name}: it is not ready.")
    finally:
        done = [name for name, succeeded in outcomes.items() if succeeded]
        missed = [pod.name for pod in pods if pod.name not in done]
        if missed:
            say(f"error: failed or not run on {', '.join(missed)}; succeeded on {', '.join(done) or 'no pod'}.")
    return not missed


def _skipped(pod: Pod, say: Say) -> bool:
    if pod.ending:
        say(f"Skipped {pod.name}: it is ending.")
    return pod.ending


def _as_text(deployment: Deployment, pod: str, command: Command, say: Say) -> bool:
    print(f"{pod}:", flush=True)
    try:
        return _run(deployment, pod, command) == 0
    except ClientError as error:
        say(f"error: {error}")
        return False
    finally:
        print(flush=True)


def _as_json(deployment: Deployment, pod: str, command: Command, say: Say) -> bool:
    output = io.StringIO()
    succeeded = False
    error = None
    try:
        with contextlib.redirect_stdout(output):
            succeeded = _run(deployment, pod, command) == 0
    except ClientError as problem:
        error = str(problem)
    result = json.loads(output.getvalue()) if output.getvalue() else None
    print(json.dumps({"pod": pod, "done": succeeded, "result": result, "error": error}), flush=True)
    return succeeded


def _run(deployment: Deployment, pod: str, command: Command) -> int:
    with _interrupted_by_hangup(), _forward(deployment, pod) as (inference_url, management_url):
        return command(inference_url, management_url)


@contextlib.contextmanager
def _interrupted_by_hangup() -> Iterator[None]:
    """Handle SIGHUP (a closed terminal) as Ctrl-C, so that the port-forward ends; but not under `nohup`."""
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _pods(deployment: Deployment) -> list[Pod]:
    command = deployment.kubectl("get", "pods", "--selector", deployment.selector, "--output", "json")
    try:
        listed = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise PodError(f"kubectl get pods did not end within {LIST_TIMEOUT_S:g} s.") from None
    if listed.returncode != 0:
        raise PodError(f"kubectl get pods failed: {_reason(listed.stderr)}")
    try:
        pods = [_pod(item) for item in json.loads(listed.stdout)["items"]]
    except (ValueError, LookupError, TypeError):
        raise PodError(f"kubectl get pods did not print a list of pods: {listed.stdout[:100]!r}") from None
    if not pods:
        raise PodError(f"No pod has the label {deployment.selector} in the namespace {deployment.namespace}.")
    return pods


def _pod(item: dict[str, Any]) -> Pod:
    metadata, status = item["metadata"], item["status"]
    conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
    return Pod(
        name=metadata["name"],
        ending="deletionTimestamp" in metadata or status["phase"] in ("Succeeded", "Failed"),
        ready=status["phase"] == "Running" and conditions.get("Ready") == "True",
    )


@contextlib.contextmanager
def _forward(deployment: Deployment, pod: str) -> Iterator[tuple[str, str]]:
    """Forward to a pod; the context's value is the URLs of its inference and management APIs.

    Raises:
        PodError: kubectl cannot forward, or stopped while the command ran.
    """
    ports = (INFERENCE_PORT, MANAGEMENT_PORT)
    command = deployment.kubectl(
        "port-forward", "--address", "127.0.0.1", f"pod/{pod}", *(f":{port}" for port in ports)
    )
    with tempfile.TemporaryDirectory() as folder:
        # Files, not pipes, which would block when they are full: kubectl prints a line for each connection.
        output, errors = Path(folder, "output"), Path(folder, "errors")
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            # In a session of its own, without Ctrl-C: an interrupted command still needs the pod, to clean up.
            forward = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
        try:
            local = _local_ports(forward, output, errors)
            try:
                yield f"http://127.0.0.1:{local[INFERENCE_PORT]}", f"http://127.0.0.1:{local[MANAGEMENT_PORT]}"
            except ClientError as error:
                raise PodError(f"{error}{_stopped(forward, errors)}") from error
            if stopped := _stopped(forward, errors):
                raise PodError(stopped.strip())
        finally:
            _end(forward)


def _local_ports(forward: subprocess.Popen[bytes], output: Path, errors: Path) -> dict[int, int]:
    """Local port by pod port, as soon as kubectl has printed both."""
    deadline = time.monotonic() + FORWARD_TIMEOUT_S
    while time.monotonic() < deadline:
        if forward.poll() is not None:
            raise PodError(f"kubectl port-forward failed: {_reason(errors.read_text())}")
        local = {int(remote): int(port) for port, remote in _FORWARDED.findall(output.read_text())}
        if {INFERENCE_PORT, MANAGEMENT_PORT} <= local.keys():
            return local
        time.sleep(POLL_S)
    raise PodError(f"kubectl port-forward was not ready within {FORWARD_TIMEOUT_S:g} s: {_reason(errors.read_text())}")


def _stopped(forward: subprocess.Popen[bytes], errors: Path) -> str:
    """Why kubectl stopped; empty if it still forwards. Its local port may belong to another program after the stop."""
    try:
        forward.wait(POLL_S)  # kubectl closes its ports a moment before it ends
    except subprocess.TimeoutExpired:
        return ""
    return f" kubectl port-forward stopped: {_reason(errors.read_text())}"


def _end(forward: subprocess.Popen[bytes]) -> None:
    forward.terminate()
    try:
        forward.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        forward.kill()
        forward.wait()


def _reason(errors: str) -> str:
    """The last message that kubectl wrote to standard error, and the last line of its log in brackets."""
    lines = [one_line(line).strip() for line in errors.splitlines()]
    messages = [line for line in lines if line and not _LOG_PREFIX.match(line)]
    logged = [f"({_LOG_PREFIX.sub('', line)})" for line in lines if _LOG_PREFIX.match(line)]
    return " ".join(messages[-1:] + logged[-1:]) or "it gave no reason."
