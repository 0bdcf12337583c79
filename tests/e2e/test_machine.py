"""Tests of unusual machines: the server answers as on any other machine, or reports at once why it cannot."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest
import requests

from handler import exported
from handler.classifier import TextClassifier
from handler.service import MODEL_FOLDER
from server.environment import NOT_PASSED_ON
from server.leftovers import MIN_AGE_S
from server.workspace import PREFIX
from tests.e2e.server_process import ONE_WORKER, READY, Project, Server, run_module, write_changed
from tests.e2e.test_metrics import samples_of
from tests.e2e.traffic import TEXT, wait_until
from tests.paths import MODEL, ROOT
from training.export.archive import archive

NAME = "a b é?#%|:&"
"""The name of a model."""
PATH = f"/predictions/{quote(NAME, safe='')}"
LABELS = ("a,b", "a:b", "a|b", "a_b", 'é "👍"\\', "50%")
SHADOWED = ("handler", "service", "torch", "numpy")
"""Names of modules that a worker imports. Foreign modules of these names are on the user's PYTHONPATH."""


@pytest.fixture(scope="module")
def awkward_mar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with twice its labels, all with awkward characters."""
    folder = tmp_path_factory.mktemp("awkward")
    model = exported.read(MODEL)
    network = model.config.network
    [last] = [name for name, shape in network.tensor_shapes().items() if shape[0] == network.head_sizes[-1]]
    weights = np.resize(model.weights[last], (len(LABELS), network.head_sizes[-2]))
    more = replace(
        model,
        config=replace(
            model.config,
            labels=LABELS,
            network=replace(network, head_sizes=(*network.head_sizes[:-1], len(LABELS))),
        ),
        card={name: value for name, value in model.card.items() if name != exported.REFERENCE_KEY},
        weights=model.weights | {last: weights},
    )
    exported.write(more, folder / "model")
    archive(folder / "model", folder / "awkward.mar", "1.0", "int8")
    return folder / "awkward.mar"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, awkward_mar: Path) -> Iterator[Server]:
    """A server on an unusual machine: unusual paths, locale, environment variables and labels. It must exit with 0."""
    base = tmp_path_factory.mktemp("machine")
    folder, long, foreign = base / "café a,b#%41", base / ("t" * 90), base / "foreign"
    for path in (folder, long, foreign):
        path.mkdir()
    for module in SHADOWED:
        (foreign / f"{module}.py").write_text("raise SystemExit('a foreign module')\n")
    one_worker = {"defaultVersion": True, "marName": "sentiment.mar", "minWorkers": 1, "maxWorkers": 1}
    # `json.dumps` escapes é as a properties file does.
    project = Project(
        folder,
        awkward_mar,
        load_models=f"{json.dumps(NAME)[1:-1]}=sentiment.mar",
        models=json.dumps({NAME: {"1.0": one_worker}}),
    )
    settings = project.config.read_text()
    project.config.write_bytes(
        b"# caf\xe9 in Latin-1\n! another\n" + settings.replace("metrics_config=", "metrics_config : ").encode("ascii")
    )
    environment = dict.fromkeys(NOT_PASSED_ON, "1") | {
        "LC_ALL": "C",
        "LANG": "xx_YY.UTF-8",
        "TMPDIR": str(long),
        "PYTHONPATH": str(foreign),
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
        "_JAVA_OPTIONS": "-Djava.io.tmpdir=/nowhere",
    }
    # -E: the program itself ignores Python's variables; the processes that it starts inherit them.
    command = [sys.executable, "-E", "-m", "server", "--config", str(project.config)]
    server = Server(project, command, None, **environment)
    server.wait_for(READY)
    yield server
    assert server.stop() == 0, server.log
    assert "Some requests were not answered." not in server.log


def temporary_folder(server: Server) -> Path:
    """The server's folder for temporary files, from the environment of a worker."""
    path = Path(server.workers()[0].environ()["TMPDIR"])
    assert path.name.startswith(PREFIX)
    return path


def ready(server: Server) -> bool:
    probe = run_module(
        "server.probe", "ready", "--config", str(server.project.config), env={"http_proxy": "http://x:1"}
    )
    return probe.returncode == 0


def test_predictions_come_from_the_archives_code(elsewhere: Server, awkward_mar: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(awkward_mar, tmp_path, "zip")
    [expected] = TextClassifier.load_archived(tmp_path / MODEL_FOLDER, threads=1).predict(["late again"])
    reply = requests.post(elsewhere.project.inference + PATH, data=b"late again", headers=TEXT, timeout=60)
    assert reply.status_code == 200, reply.text
    scores = reply.json()["scores"]
    assert list(scores) == list(LABELS)
    assert list(scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert "a foreign module" not in elsewhere.log
    for name in ("PYTHONPATH", "PYTHONWARNINGS", *NOT_PASSED_ON):
        assert name in elsewhere.log, "the log lists the variables without effect"


def test_every_label_has_its_own_series(elsewhere: Server) -> None:
    samples = samples_of(elsewhere)
    series = [labels for name, labels, _ in samples if name == "classifier_predictions_total"]
    # Prometheus' text format escapes quotes and backslashes.
    predicted = [unquote(labels["label"].replace('\\"', '"').replace("\\\\", "\\")) for labels in series]
    assert sorted(predicted) == sorted(LABELS)
    assert {unquote(labels["model_name"]) for labels in series} == {NAME}


def test_unused_unpacked_archives_are_removed_and_workers_restart(elsewhere: Server) -> None:
    """TorchServe unpacks each archive before it finds that it cannot register the model."""
    models = temporary_folder(elsewhere) / "models"
    store = elsewhere.project.folder / "model_store"
    whole = (store / "sentiment.mar").read_bytes()
    (store / "cut.mar").write_bytes(whole[: len(whole) // 2])
    assert len(list(models.iterdir())) == 1
    for _ in range(5):
        assert register(elsewhere, "sentiment.mar", NAME) == 409
        assert register(elsewhere, "cut.mar", NAME) >= 400
    assert len(list(models.iterdir())) > 1
    assert list(models.parent.glob("models*.download"))
    make_old(models.parent)
    wait_until(lambda: len(list(models.iterdir())) == 1, "one unpacked archive")
    wait_until(lambda: not list(models.parent.glob("models*.download")), "no broken archive")

    [worker] = elsewhere.workers()
    worker.kill()
    wait_until(lambda: elsewhere.workers() not in ([worker], []) and ready(elsewhere), "another worker")
    url = elsewhere.project.inference + PATH
    assert requests.post(url, data=b"still here", headers=TEXT, timeout=60).status_code == 200


def test_a_model_without_a_url_keeps_its_files_and_affects_no_other(elsewhere: Server) -> None:
    """TorchServe registers `a/b`, but its HTTP API cannot describe the model, because the slash splits the name."""
    models = temporary_folder(elsewhere) / "models"
    assert register(elsewhere, "sentiment.mar", "a/b", initial_workers="1", synchronous="true") == 200
    assert ready(elsewhere)
    in_use = set(models.iterdir())
    incomplete = models.parent / "models1.download"
    incomplete.mkdir()
    make_old(models.parent)
    wait_until(lambda: not incomplete.exists(), "the removal of unused folders")
    assert set(models.iterdir()) == in_use


def make_old(folder: Path) -> None:
    """Set the modification time of everything in a folder to a time long ago."""
    long_ago = time.time() - 2 * MIN_AGE_S
    for path in folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))


def register(server: Server, file: str, name: str, **options: str) -> int:
    parameters = {"url": file, "model_name": name} | options
    return requests.post(f"{server.project.management}/models", params=parameters, timeout=120).status_code


# A machine on which no folder for temporary files may hold executables, made by private mounts.

QUOTED_ROOT = shlex.quote(str(ROOT))
NO_EXECUTABLES = f"""
for folder in /tmp /var/tmp /dev/shm; do
  test ! -d $folder || {{ mount --bind $folder $folder && mount -o remount,bind,noexec $folder; }} || exit
done
mount --bind {QUOTED_ROOT} {QUOTED_ROOT} && mount -o remount,bind,exec {QUOTED_ROOT} && cd {QUOTED_ROOT} || exit
unset XDG_RUNTIME_DIR
exec "$@"
"""


def without_executables(project: Project) -> list[str]:
    """The server's command with every folder for temporary files mounted `noexec`."""
    command = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this machine does not allow private mounts")
    server = [sys.executable, "-m", "server", "--config", str(project.config)]
    return [*command, "sh", "-c", NO_EXECUTABLES, "sh", *server]


def test_workers_listen_on_ports_if_sockets_are_impossible(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar, models=ONE_WORKER)
    server = Server(project, without_executables(project))
    check_that_workers_listen_on_ports(server)
    assert "it is mounted noexec" in server.log


def check_that_workers_listen_on_ports(server: Server) -> None:
    """Wait for the server, send a request, connect to a worker's port, and stop the server."""
    server.wait_for(READY)
    assert requests.post(server.project.predictions, data=b"late again", headers=TEXT, timeout=60).status_code == 200
    with socket.create_connection(("127.0.0.1", server.project.worker_port)):
        pass
    assert server.stop() == 0


NO_OTHER_FOLDER = """
import sys
from server import cli, workspace
workspace.OTHERS = ()
sys.exit(cli.main())
"""
"""The server's command on a machine where TMPDIR is the only folder for temporary files."""


def test_workers_listen_on_ports_if_the_path_is_too_long_for_sockets(tmp_path: Path, mar: Path) -> None:
    """The folder may hold executables, so TorchServe would use sockets by default."""
    long = tmp_path / ("t" * 90)
    long.mkdir()
    project = Project(tmp_path, mar, models=ONE_WORKER)
    command = [sys.executable, "-c", NO_OTHER_FOLDER, "--config", str(project.config)]
    only_long = dict.fromkeys(("TEMP", "TMP", "XDG_RUNTIME_DIR"), "")
    server = Server(project, command, None, TMPDIR=str(long), **only_long)
    check_that_workers_listen_on_ports(server)
    assert "its path has" in server.log


def test_a_workers_port_in_use_is_a_clear_error(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar)
    with socket.create_server(("127.0.0.1", project.worker_port)):
        server = Server(project, without_executables(project))
        server.wait_for(f"error: Cannot listen on 127.0.0.1:{project.worker_port} (initial_worker_port in")
        assert server.wait() == 1


def change(project: Project, name: str, value: str) -> None:
    with project.config.open("a", encoding="ascii") as file:
        file.write(f"{name}={value}\n")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("load_models", "", "TorchServe would start without a model"),
        ("load_models", "config.properties", "is not a model archive"),
        ("load_models", "a/b=sentiment.mar", "A model cannot be named a/b"),
        ("models", "{", "models is not JSON"),
        ("models", '{"sentiment": {"1.0": {"maxBatchDelay": 0}}}', "models has maxBatchDelay 0 for sentiment 1.0"),
        ("metrics_config", "none.yaml", "none.yaml; expected the list of metrics, as set by metrics_config"),
    ],
)
def test_an_unusable_configuration_prevents_the_start(
    tmp_path: Path, mar: Path, name: str, value: str, message: str
) -> None:
    project = Project(tmp_path, mar)
    shutil.copy(project.config, project.folder / "model_store")
    change(project, name, value)
    result = run_module("server", "--config", str(project.config))
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_archive_that_torchserve_refuses_is_a_clear_error(tmp_path: Path, mar: Path) -> None:
    manifest = json.dumps({"runtime": "none", "model": {"modelName": "sentiment", "modelVersion": "1.0"}})
    project = Project(tmp_path, mar)
    write_changed(mar, project.folder / "model_store" / "sentiment.mar", "MAR-INF/MANIFEST.json", manifest)
    server = Server(project)
    server.wait_for("error: TorchServe did not register sentiment 1.0")
    assert server.wait() == 1


def test_workers_that_cannot_start_are_a_clear_error(tmp_path: Path, mar: Path) -> None:
    """The workers exit before TorchServe knows their process ids."""
    project = Project(tmp_path, mar, models=ONE_WORKER)
    (project.folder / "metrics.yaml").write_text("- a list\n")
    server = Server(project)
    server.wait_for("error: Workers exit while they load the model")
    assert server.wait() == 1
