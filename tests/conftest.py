"""Fixtures of all tests: the real data where it exists, the model and its archive, a server, a small training run."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import requests
from hypothesis import HealthCheck, settings

from handler.classifier import TextClassifier
from handler.service import MODEL_FOLDER
from tests.e2e.report import LONG, Report
from tests.e2e.server_process import BATCH, Project, Server, free_ports, serving
from tests.paths import MODEL, REAL_TWEETS, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS, WITH_CLIENT
from training.export.archive import archive

# All servers of the tests run on this machine, so a proxy in the developer's environment must not be used.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost,::1"

# A time limit for each example would fail on a busy machine. The benchmarks measure speed.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(scope="session")
def real_csv() -> Path:
    """Kaggle's Tweets.csv. It may not be redistributed, so without it the tests that need it are skipped."""
    if not REAL_TWEETS.is_file():
        reason = f"no real data at {REAL_TWEETS.relative_to(ROOT.parent)} beside the project"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL_TWEETS


@pytest.fixture(scope="session")
def real_tweets(real_csv: Path) -> pd.DataFrame:
    from training.data import read_tweets

    return read_tweets(real_csv)


@pytest.fixture(scope="session")
def classifier() -> TextClassifier:
    """The embedded model in `model_store/sentiment`."""
    return TextClassifier.load(MODEL)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of all training stages on the tests' own tweets, run by the command line.

    It holds `run/` (the stages), `model/` (the exported model) and `model.mar` (the archive).
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # each process of pytest has a folder in it
    with (shared / "toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "toy-run").exists():
            _train_toy(shared / "toy-run.part")
            (shared / "toy-run.part").rename(shared / "toy-run")
    # A copy, because two processes cannot work on one run.
    return Path(shutil.copytree(shared / "toy-run", tmp_path_factory.mktemp("toy"), dirs_exist_ok=True))


def _train_toy(folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "training", "all", "--preset", "tiny"),
        *("--data", str(TOY_TWEETS), "--texts", str(TOY_TEXTS), "--labelled-texts", str(TOY_LABELLED)),
        *("--run", str(folder / "run"), "--to", str(folder / "model")),
    ]
    subprocess.run(command, cwd=ROOT, env=os.environ | WITH_CLIENT, check=True)


@pytest.fixture
def fastai_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for fastai's downloads. fastai caches its location for the life of a process; this clears the cache."""
    from fastai.data.external import fastai_cfg

    fastai_cfg.cache_clear()
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "fastai"))
    yield tmp_path / "fastai"
    fastai_cfg.cache_clear()


@pytest.fixture
def closed_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables that set a proxy for every address, at a port on which no program listens."""
    [port] = free_ports(1)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the embedded model, built as by `make archive`."""
    path = tmp_path_factory.mktemp("archive") / "sentiment.mar"
    archive(MODEL, path, "1.0", "int8")
    return path


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Path:
    """The folder of the model in that archive, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(mar, folder, "zip")
    return folder / MODEL_FOLDER


@pytest.fixture(scope="session")
def served(unpacked: Path) -> TextClassifier:
    """The classifier that a worker loads from that archive."""
    classifier = TextClassifier.load_archived(unpacked, threads=1)
    classifier.warm_up()
    return classifier


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server with two models: `sentiment` as configured, and `batched`.

    For `batched`, TorchServe waits for full batches, so concurrent requests share a batch.
    """
    [line] = [line for line in (ROOT / "config.properties").read_text().splitlines() if line.startswith("models=")]
    models = json.loads(line.partition("=")[2])
    waiting = {"batchSize": BATCH, "maxBatchDelay": 3_000, "minWorkers": 1, "maxWorkers": 1}
    models["batched"] = {"1.0": models["sentiment"]["1.0"] | waiting}
    project = Project(
        tmp_path_factory.mktemp("server"),
        mar,
        load_models="sentiment.mar,batched=sentiment.mar",
        models=json.dumps(models),
    )
    with serving(project, OMP_NUM_THREADS="1", CLASSIFIER_MAX_BATCH_CHARACTERS="30000") as running:
        yield running


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """The table of the fault tests' results."""
    results = Report()
    yield results
    if LONG and not request.session.testsfailed:
        results.write()


@pytest.fixture(scope="session")
def session(server: Server) -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened
