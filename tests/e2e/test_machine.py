"""What a machine can be like: a server answers there as it does elsewhere, or says at once why it cannot."""

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
from server.leftovers import OLD_S
from server.workspace import PREFIX
from tests.e2e.server_process import READY, Project, Server, run_module
from tests.e2e.test_metrics import samples_of
from tests.e2e.traffic import TEXT, wait_until
from tests.paths import MODEL, ROOT
from training.export.archive import archive

NAME = "a b é?#%|:&"
"""Of a model."""
PATH = f"/predictions/{quote(NAME, safe='')}"
LABELS = ("a,b", "a:b", "a|b", "a_b", 'é "👍"\\', "50%")
STRANGERS = ("handler", "service", "torch", "numpy")
"""Modules by whose names a worker imports its own."""


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
    """A server where much is otherwise than where it was written. It must stop as it should, and in time."""
    base = tmp_path_factory.mktemp("machine")
    folder, long, strangers = base / "café a,b#%41", base / ("t" * 90), base / "strangers"
    for each in (folder, long, strangers):
        each.mkdir()
    for module in STRANGERS:
        (strangers / f"{module}.py").write_text("raise SystemExit('a stranger')\n")
    one_worker = {"defaultVersion": True, "marName": "sentiment.mar", "minWorkers": 1, "maxWorkers": 1}
    # `json.dumps` has escapes for é that a properties file has as well.
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
        "PYTHONPATH": str(strangers),
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
        "_JAVA_OPTIONS": "-Djava.io.tmpdir=/nowhere",
    }
    # This project's own program is found before the strangers' modules; the variables are for what it starts.
    command = [sys.executable, "-E", "-m", "server", "--config", str(project.config)]
    server = Server(project, command, None, **environment)
    server.wait_for(READY)
    yield server
    assert server.stop() == 0, server.log
    assert "Some requests were not answered." not in server.log


def temporary_folder(server: Server) -> Path:
    """The server's own, as its workers have it."""
    path = Path(server.workers()[0].environ()["TMPDIR"])
    assert path.name.startswith(PREFIX)
    return path


def ready(server: Server) -> bool:
    probe = run_module(
        "server.probe", "ready", "--config", str(server.project.config), env={"http_proxy": "http://x:1"}
    )
    return probe.returncode == 0


def test_it_answers_with_the_archives_code(elsewhere: Server, awkward_mar: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(awkward_mar, tmp_path, "zip")
    [expected] = TextClassifier.load_archived(tmp_path / MODEL_FOLDER, threads=1).predict(["late again"])
    reply = requests.post(elsewhere.project.inference + PATH, data=b"late again", headers=TEXT, timeout=60)
    assert reply.status_code == 200, reply.text
    scores = reply.json()["scores"]
    assert list(scores) == list(LABELS)
    assert list(scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert "a stranger" not in elsewhere.log
    for name in ("PYTHONPATH", "PYTHONWARNINGS", *NOT_PASSED_ON):
        assert name in elsewhere.log, "it is said that the variable has no effect"


def test_every_label_is_a_series_of_its_own(elsewhere: Server) -> None:
    samples = samples_of(elsewhere)
    series = [labels for name, labels, _ in samples if name == "classifier_predictions_total"]
    # Prometheus' text form has escapes of its own.
    found = [unquote(each["label"].replace('\\"', '"').replace("\\\\", "\\")) for each in series]
    assert sorted(found) == sorted(LABELS)
    assert {unquote(each["model_name"]) for each in series} == {NAME}


def test_what_is_unpacked_for_nothing_goes_and_workers_come_back(elsewhere: Server) -> None:
    """Each archive that cannot be registered has been unpacked before TorchServe knows."""
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
    wait_until(lambda: not list(models.parent.glob("models*.download")), "no broken one")

    [worker] = elsewhere.workers()
    worker.kill()
    wait_until(lambda: elsewhere.workers() not in ([worker], []) and ready(elsewhere), "another worker")
    url = elsewhere.project.inference + PATH
    assert requests.post(url, data=b"still here", headers=TEXT, timeout=60).status_code == 200


def test_a_model_without_an_address_hides_no_other_and_keeps_its_files(elsewhere: Server) -> None:
    """`a/b` can be registered, and nobody can ask TorchServe about it over HTTP: it takes the name for two."""
    models = temporary_folder(elsewhere) / "models"
    assert register(elsewhere, "sentiment.mar", "a/b", initial_workers="1", synchronous="true") == 200
    assert ready(elsewhere)
    in_use = set(models.iterdir())
    given_up = models.parent / "models1.download"
    given_up.mkdir()
    make_old(models.parent)
    wait_until(lambda: not given_up.exists(), "a look for leftovers")
    assert set(models.iterdir()) == in_use


def make_old(folder: Path) -> None:
    """As if nothing of a folder had been written to lately."""
    long_ago = time.time() - 2 * OLD_S
    for path in folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))


def register(server: Server, file: str, name: str, **options: str) -> int:
    parameters = {"url": file, "model_name": name} | options
    return requests.post(f"{server.project.management}/models", params=parameters, timeout=120).status_code


# Where no folder for temporary files can have executables, but the project's own can: mounts of the test's own.

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
    """The server's command, where every folder for temporary files is mounted `noexec`."""
    command = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this machine allows no mounts of one's own")
    server = [sys.executable, "-m", "server", "--config", str(project.config)]
    return [*command, "sh", "-c", NO_EXECUTABLES, "sh", *server]


def test_workers_listen_on_ports_where_they_can_have_no_sockets(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar)
    server = Server(project, without_executables(project))
    check_that_workers_listen_on_ports(server)
    assert "it is mounted noexec" in server.log


def check_that_workers_listen_on_ports(server: Server) -> None:
    """Wait for the server, have it answer, and stop it."""
    server.wait_for(READY)
    assert requests.post(server.project.predictions, data=b"late again", headers=TEXT, timeout=60).status_code == 200
    with socket.create_connection(("127.0.0.1", server.project.worker_port)):
        pass
    assert server.stop() == 0


NO_OTHER_FOLDER = """
import sys
from server import __main__, workspace
workspace.OTHERS = ()
sys.exit(__main__.main())
"""
"""The server's command, where TMPDIR alone has room for temporary files."""


def test_workers_listen_on_ports_where_the_path_is_too_long_for_sockets(tmp_path: Path, mar: Path) -> None:
    """Executables may be there, so without being told otherwise TorchServe would take sockets."""
    long = tmp_path / ("t" * 90)
    long.mkdir()
    project = Project(tmp_path, mar)
    command = [sys.executable, "-c", NO_OTHER_FOLDER, "--config", str(project.config)]
    only_long = dict.fromkeys(("TEMP", "TMP", "XDG_RUNTIME_DIR"), "")
    server = Server(project, command, None, TMPDIR=str(long), **only_long)
    check_that_workers_listen_on_ports(server)
    assert "its path has" in server.log


def test_a_taken_port_of_workers_is_a_clear_error(tmp_path: Path, mar: Path) -> None:
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
        ("load_models", "", "TorchServe would start and have no model"),
        ("load_models", "config.properties", "is no model archive"),
        ("load_models", "a/b=sentiment.mar", "A model cannot be named a/b"),
        ("models", "{", "models is not JSON"),
        ("metrics_config", "none.yaml", "none.yaml; expected the list of metrics that metrics_config"),
    ],
)
def test_a_configuration_that_cannot_work_is_told_before_the_start(
    tmp_path: Path, mar: Path, name: str, value: str, message: str
) -> None:
    project = Project(tmp_path, mar)
    shutil.copy(project.config, project.folder / "model_store")
    change(project, name, value)
    result = run_module("server", "--config", str(project.config))
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_archive_that_cannot_be_unpacked_is_told(tmp_path: Path, mar: Path) -> None:
    """Its table of contents is whole, so that only unpacking it shows."""
    project = Project(tmp_path, mar)
    path = project.folder / "model_store" / "sentiment.mar"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1_000] = bytes(1_000)
    path.write_bytes(content)
    server = Server(project)
    server.wait_for("error: TorchServe did not register sentiment 1.0")
    assert server.wait() == 1


def test_workers_that_cannot_begin_are_told(tmp_path: Path, mar: Path) -> None:
    """They end before TorchServe knows their process."""
    project = Project(tmp_path, mar)
    (project.folder / "metrics.yaml").write_text("- a list\n")
    server = Server(project)
    server.wait_for("error: Workers end while they load the model")
    assert server.wait() == 1
