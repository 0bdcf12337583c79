"""Versions and workers, against an HTTP server that answers like TorchServe."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from sentiment.errors import ClientError, NotReadyError, RefusedError, UnexpectedAnswerError
from sentiment.management import ManagementClient, Settings
from sentiment.status import facts
from tests.client.fake_torchserve import FakeTorchServe, Registered, serving
from tests.client.scripted import Reply, error, scripted
from tests.paths import ROOT

SETTINGS = Settings(workers=2, batch_size=16, max_batch_delay_ms=1, response_timeout_s=120)


@pytest.fixture
def fake() -> FakeTorchServe:
    return FakeTorchServe()


@pytest.fixture
def client(fake: FakeTorchServe) -> Iterator[ManagementClient]:
    with serving(fake) as server, ManagementClient(server.url) as opened:
        yield opened


def test_versions_are_sorted_and_one_is_the_default(fake: FakeTorchServe, client: ManagementClient) -> None:
    """The sort order is numeric, also for names that contain other characters."""
    names = ("rc-10", "10.0", "9.5", "rc-9", "1.0", "9.5.1")
    fake.versions = {name: Registered(f"{name}.mar", 1) for name in names}
    fake.default = "9.5"
    assert [version.name for version in client.versions()] == ["1.0", "9.5", "9.5.1", "10.0", "rc-9", "rc-10"]
    assert client.default().name == "9.5"
    assert client.default().settings == Settings(1, 16, 1, 120)


def test_register_applies_the_settings_and_returns_the_version(fake: FakeTorchServe, client: ManagementClient) -> None:
    assert client.register("sentiment-2.mar", SETTINGS) == "2.0"
    registered = fake.versions["2.0"]
    assert (registered.workers, registered.batch_size) == (2, 16)
    assert (registered.max_batch_delay, registered.response_timeout) == (1, 120)
    assert not client.version("2.0").ready
    client.wait_until_ready("2.0")
    assert client.version("2.0").ready


@pytest.mark.parametrize(
    ("status", "hint"),
    [(405, "enable_model_api=true"), (409, "--version"), (404, "model store"), (500, "may be broken")],
)
def test_a_refused_registration_explains_what_to_do(
    fake: FakeTorchServe, client: ManagementClient, status: int, hint: str
) -> None:
    fake.before = lambda line: error(status, "SomeError", "No.") if line == "POST /models" else None
    with pytest.raises(RefusedError, match=hint) as caught:
        client.register("sentiment-2.mar", SETTINGS)
    assert caught.value.status == status
    assert str(caught.value).startswith("SomeError: No.")
    assert fake.log.count("POST /models") == 1


def test_workers_that_end_while_they_load_are_reported_before_the_timeout(
    fake: FakeTorchServe, client: ManagementClient
) -> None:
    fake.polls_until_ready = -1
    client.register("sentiment-2.mar", SETTINGS)
    with pytest.raises(NotReadyError, match="does not load"):
        client.wait_until_ready("2.0", timeout_s=60)


def test_workers_that_never_become_ready_are_reported_at_the_timeout(
    fake: FakeTorchServe, client: ManagementClient
) -> None:
    fake.polls_until_ready = 1_000
    client.register("sentiment-2.mar", SETTINGS)
    with pytest.raises(NotReadyError, match=r"not ready after 0.3 s: 2 UNLOADING"):
        client.wait_until_ready("2.0", timeout_s=0.3)


def test_scaling_waits_for_the_workers(fake: FakeTorchServe, client: ManagementClient) -> None:
    fake.versions["1.0"].polls_until_ready = 3
    client.scale(4, "1.0")
    assert client.version("1.0").worker_states == ("READY",) * 4


def test_requests_that_change_something_are_not_retried(
    fake: FakeTorchServe, client: ManagementClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentiment.management.CHANGE_TIMEOUT_S", 0.1)
    fake.versions["2.0"] = Registered("other.mar", 1)
    fake.before = lambda line: None if line.startswith("GET") else Reply(drop=True)
    for change in (
        lambda: client.register("sentiment-2.mar", SETTINGS),
        lambda: client.set_default("2.0"),
        lambda: client.unregister("1.0"),
        lambda: client.scale(1, "1.0"),
    ):
        before = len([line for line in fake.log if not line.startswith("GET")])
        with pytest.raises(ClientError):
            change()
        assert len([line for line in fake.log if not line.startswith("GET")]) == before + 1


def test_the_card_is_read(client: ManagementClient) -> None:
    assert client.card()["exported"] == {"commit": "c" * 40}


def test_a_change_that_takes_effect_later_succeeds(fake: FakeTorchServe, client: ManagementClient) -> None:
    """The connection breaks while the server is still working."""
    fake.versions["2.0"] = Registered("other.mar", 1)
    polls = 0

    def before(line: str) -> Reply | None:
        nonlocal polls
        if line.startswith("DELETE"):
            return Reply(drop=True)
        polls += line == "GET /models/sentiment/all"
        if polls == 4:
            fake.versions.pop("2.0", None)
        return None

    fake.before = before
    client.unregister("2.0")
    assert polls == 4


def test_a_missing_version_is_an_error(client: ManagementClient) -> None:
    with pytest.raises(RefusedError, match=r"No version 7.0 of sentiment"):
        client.version("7.0")


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"[1]", b'[{"modelVersion": "1.0"}]', b'[{"modelVersion": ["1.0"]}]', b'"1.0"', b"{", b"[[]]"],
)
def test_a_description_of_another_shape_is_an_error(body: bytes) -> None:
    with (
        scripted(lambda _: Reply(body=body)) as server,
        ManagementClient(server.url) as client,
        pytest.raises(UnexpectedAnswerError),
    ):
        client.versions()


def test_the_first_model_gets_the_settings_of_the_configuration() -> None:
    text = (ROOT / "config.properties").read_text()
    settings = Settings()
    for name, value in [
        ("batchSize", settings.batch_size),
        ("maxBatchDelay", settings.max_batch_delay_ms),
        ("responseTimeout", settings.response_timeout_s),
    ]:
        assert re.search(rf'"{name}": (\d+)', text).group(1) == str(value)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("archive", "text"),
    [
        ({"precision": "float32"}, "float32"),
        (
            {
                "precision": "int8",
                "texts": {"source": "reviews.csv", "made_up": False},
                "differences": {"int8": {"largest": 0.0173, "texts": 2000}},
            },
            "int8 (measured: at most 0.0173 from float32; 2,000 texts, reviews.csv)",
        ),
        ({"precision": "int8", "texts": [], "differences": {"int8": {"largest": "?"}}}, "int8"),
    ],
)
def test_the_precision_is_shown_with_its_measured_difference(archive: dict[str, Any], text: str) -> None:
    assert ("precision", text) in facts({"archive": archive})
