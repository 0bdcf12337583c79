"""Typical use of the product, from the start of a server to its end: `python -m tests.privacy.walk FOLDER ARCHIVE`.

It runs inside `tests.privacy.trap`, which records DNS lookups and connections to other machines.
"""

import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.e2e.server_process import ONE_WORKER, Project, Server, run_module, sentiment, serving
from tests.paths import TOY_TWEETS
from tests.training.test_export import make_learner

SERVED_S = 15
"""The least time for which the server runs: ONNX Runtime's telemetry looks up its server 10 s after a start."""

TEXT = {"Content-Type": "text/plain"}


def main(folder: Path, archive: Path) -> None:
    started = time.monotonic()
    with serving(Project(folder, archive, models=ONE_WORKER)) as server:
        ask(server)
        operate(server, folder)
        train(folder)
        time.sleep(max(0.0, started + SERVED_S - time.monotonic()))


def ask(server: Server) -> None:
    """Send requests to the server's three addresses, answered by TorchServe or by HAProxy."""
    for action in ("predictions", "explanations"):
        requests.post(
            f"{server.project.inference}/{action}/sentiment", data="Late again", headers=TEXT, timeout=60
        ).raise_for_status()
    for path in ("/", "/docs", "/openapi.yaml", "/ready", "/ping", "/v2", "/v2/models/sentiment", "/v2/health/live"):
        requests.get(server.project.inference + path, timeout=60).raise_for_status()
    for path in ("/metrics", "/metrics/door"):
        requests.get(server.project.metrics + path, timeout=60).raise_for_status()
    refused = requests.get(f"{server.project.management}/models", headers={"Host": "a.example"}, timeout=60)
    assert refused.status_code == 403, "the server does not look up a name in a request"
    for question in ("ready", "live"):
        done(run_module("server.probe", question, "--config", str(server.project.config)))


def operate(server: Server, folder: Path) -> None:
    """Run every command of `sentiment`."""
    second = folder / "model_store" / "sentiment-2.mar"
    done(run_module("training", "archive", "--version", "2.0", "--to", str(second)))
    table = folder / "tweets.csv"
    table.write_bytes(TOY_TWEETS.read_bytes())
    for command in (
        "predict Late",
        f"score {table}",
        "status",
        "scale 2",
        "scale 1",
        "register sentiment-2.mar",
        "unregister 2.0",
        "rollout sentiment-2.mar --drain 0",
        "rollback sentiment.mar --drain 0",
    ):
        done(sentiment(server, *command.split()))


def train(folder: Path) -> None:
    """Export a fastai learner, and evaluate the exported model."""
    learner, model = folder / "learner.pkl", folder / "model"
    make_learner().export(learner)
    done(run_module("training", "export", "--learner", str(learner), "--to", str(model)))
    evaluation = ("--data", str(TOY_TWEETS), "--split", "validation", "--model", str(model))
    done(run_module("training", "evaluate", *evaluation))


def done(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
