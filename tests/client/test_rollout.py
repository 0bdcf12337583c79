"""Rollouts and rollbacks, against a simulation of TorchServe with failures on demand."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sentiment import rollout as rollout_module
from sentiment.errors import ClientError, NotReadyError, RefusedError, RolloutError, UnreachableError
from sentiment.inference import InferenceClient
from sentiment.management import ManagementClient
from sentiment.rollout import Outcome, Switch
from sentiment.sample import TEXTS
from tests.client.fake_torchserve import FakeTorchServe, Registered, serving
from tests.client.scripted import Reply, error
from tests.e2e.server_process import run_client
from tests.paths import CLIENT

SAMPLE = [f"flight {number}" for number in range(10)]


class Acting(list[str]):
    """A list of messages that calls `act` when a message begins with `beginning`."""

    def __init__(self, beginning: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._beginning = beginning
        self._act = act

    def append(self, line: str) -> None:
        super().append(line)
        if line.startswith(self._beginning):
            self._act()


def ctrl_c() -> None:
    raise KeyboardInterrupt


def switched(fake: FakeTorchServe, do: Callable[[Switch], Outcome], messages: list[str] | None = None) -> Outcome:
    lines = messages if messages is not None else []
    with serving(fake) as server, ManagementClient(server.url) as management:

        def ask(version: str) -> InferenceClient:
            return InferenceClient(server.url, version=version, retries=0)

        return do(Switch(management, ask, SAMPLE, 0.01, lines.append))


def rollout(fake: FakeTorchServe, messages: list[str] | None = None, **settings: float) -> Outcome:
    return switched(fake, lambda switch: switch.rollout("sentiment-2.mar", **settings), messages)  # type: ignore[arg-type]


def test_a_rollout_leaves_only_the_new_version() -> None:
    fake = FakeTorchServe()
    messages: list[str] = []
    outcome = rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert (outcome.new, outcome.old, outcome.old_archive, outcome.old_kept) == ("2.0", "1.0", "sentiment.mar", False)
    assert fake.versions["2.0"].workers == 2
    changes = [line for line in fake.log if not line.startswith(("GET", "POST /predictions"))]
    assert changes == ["POST /models", "PUT /models/sentiment/2.0/set-default", "DELETE /models/sentiment/1.0"]
    assert messages[-1] == "Removed version 1.0."


def test_the_new_version_is_ready_and_warmed_before_it_becomes_the_default() -> None:
    fake = FakeTorchServe(polls_until_ready=4)
    seen: list[tuple[int, int]] = []

    def before(line: str) -> None:
        if line.endswith("set-default"):
            warm = fake.log.count("POST /predictions/sentiment/2.0")
            seen.append((fake.versions["2.0"].polls_until_ready, warm))

    fake.before = before
    rollout(fake)
    [(polls_left, warm)] = seen
    assert polls_left == 0
    assert warm >= 1 + len(SAMPLE)


def test_the_old_version_stays_until_its_queue_is_empty() -> None:
    fake = FakeTorchServe()
    pending: list[int] = []

    def before(line: str) -> None:
        if line.endswith("set-default"):
            fake.versions["1.0"].pending = 5
        if line.startswith("DELETE"):
            pending.append(fake.versions["1.0"].pending)

    fake.before = before
    rollout(fake)
    assert pending == [0]
    assert fake.log[fake.log.index("PUT /models/sentiment/2.0/set-default") :].count("GET /models/sentiment/all") >= 5


def test_the_old_version_stays_while_its_workers_may_process_a_request() -> None:
    fake = FakeTorchServe()
    fake.versions["1.0"].response_timeout = 1
    messages: list[str] = []
    switched(fake, lambda switch: replace(switch, drain_s=None).rollout("sentiment-2.mar"), messages)
    assert "The queue of version 1.0 is empty; waiting 1 s for the requests in its workers ..." in messages


def test_a_queue_that_is_never_empty_keeps_the_old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_module, "QUEUE_TIMEOUT_S", 0.2)
    fake = FakeTorchServe()
    fake.versions["1.0"].pending = 10_000
    messages: list[str] = []
    assert rollout(fake, messages).old_kept
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert "are still in its queue" in messages[-1]


def test_keep_old_leaves_the_old_version_registered() -> None:
    fake = FakeTorchServe()
    assert switched(fake, lambda switch: switch.rollout("sentiment-2.mar", keep_old=True)).old_kept
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])


def changed_in(count: int) -> Callable[[str, str], str]:
    return lambda version, text: "positive" if version == "2.0" and text in SAMPLE[:count] else "negative"


def test_changed_labels_are_counted_and_listed() -> None:
    fake = FakeTorchServe(label=changed_in(2))
    messages: list[str] = []
    comparison = rollout(fake, messages).comparison
    assert comparison is not None
    assert [(change.text, change.old, change.new) for change in comparison.changes] == [
        (text, "negative", "positive") for text in SAMPLE[:2]
    ]
    assert comparison.largest_difference == 0.75
    assert comparison.old_median_ms > 0 < comparison.new_median_ms
    assert "  negative -> positive: flight 0" in messages


def failing(line_end: str, reply: Reply) -> Callable[[str], Reply | None]:
    return lambda line: reply if line.endswith(line_end) else None


@pytest.mark.parametrize(
    ("fake", "kind", "message"),
    [
        (FakeTorchServe(label=changed_in(3)), RolloutError, "30% of the labels changed"),
        (FakeTorchServe(polls_until_ready=-1), NotReadyError, "does not load"),
        (FakeTorchServe(before=failing("POST /models", error(409, "Conflict"))), RefusedError, "Conflict"),
        (FakeTorchServe(before=failing("sentiment/2.0", error(500, "InternalError"))), RefusedError, "InternalError"),
        (FakeTorchServe(before=failing("predictions/sentiment/1.0", Reply(drop=True))), UnreachableError, "answer"),
        (FakeTorchServe(before=failing("set-default", error(404, "NotFound"))), RefusedError, "NotFound"),
    ],
    ids=["labels changed", "does not load", "refused", "fails when warmed", "old one gone", "not made the default"],
)
def test_a_failed_rollout_leaves_the_old_version_unchanged(
    fake: FakeTorchServe, kind: type[ClientError], message: str
) -> None:
    messages: list[str] = []
    before = fake.before
    # Let the removal of the new version pass: it has the same path as the failing request.
    fake.before = lambda line: None if line.startswith("DELETE") else before(line)
    with pytest.raises(kind, match=message):
        rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert messages[-1] == "Version 1.0 is still the default."


def test_a_maximum_share_of_1_accepts_all_changes() -> None:
    fake = FakeTorchServe(label=changed_in(10))
    rollout(fake, max_changed=1.0)
    assert fake.default == "2.0"


def test_an_answer_of_another_version_fails_the_rollout() -> None:
    fake = FakeTorchServe()

    def before(line: str) -> Reply | None:
        body = b'[{"label": "a", "score": 1, "scores": {}}' + b', {"label": "a", "score": 1, "scores": {}}' * 9 + b"]"
        return Reply(200, body, {"X-Model-Version": "1.0"}) if line == "POST /predictions/sentiment/2.0" else None

    fake.before = before
    with pytest.raises(RolloutError, match=r"Requests to version 2\.0 were answered by 1\.0"):
        rollout(fake)
    assert list(fake.versions) == ["1.0"]


def test_the_later_of_two_concurrent_rollouts_stops() -> None:
    """The other rollout makes its version the default and removes the old one, while this one compares."""
    fake = FakeTorchServe()

    def overtake() -> None:
        fake.versions["3.0"] = Registered("sentiment-3.mar", 2)
        fake.default = "3.0"
        del fake.versions["1.0"]

    messages = Acting("Compared", overtake)
    with pytest.raises(RolloutError, match=r"Another rollout is in progress: version 3\.0 has become"):
        rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("3.0", ["3.0"])
    assert messages[-1] == "Version 3.0 is the default."


def test_two_rollouts_of_one_archive_share_one_version() -> None:
    """The second requests the registration while the first registers the version, and gets status 409."""
    fake = FakeTorchServe()

    def overtake(line: str) -> None:
        if line == "POST /models":
            fake.versions["2.0"] = Registered("sentiment-2.mar", 1, started=1)

    fake.before = overtake
    messages: list[str] = []
    rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert fake.versions["2.0"].workers == 2
    assert any("Version 2.0 is already registered from sentiment-2.mar" in line for line in messages)
    assert not any("still the default" in line for line in messages), "nothing has failed"


def test_the_second_rollout_of_an_archive_succeeds_after_the_first_has_finished() -> None:
    fake = FakeTorchServe(versions=both("1.0").versions)

    def overtake() -> None:
        fake.default = "2.0"
        del fake.versions["1.0"]

    outcome = rollout(fake, Acting("Compared", overtake))
    assert (outcome.new, outcome.old, outcome.old_kept) == ("2.0", "1.0", False)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_a_conflict_with_a_version_of_another_archive_is_an_error() -> None:
    fake = FakeTorchServe(versions={"1.0": Registered("sentiment.mar", 1), "2.0": Registered("other.mar", 1)})
    with pytest.raises(RefusedError, match=r"2\.0 is already registered"):
        rollout(fake)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", "2.0"])


@pytest.mark.parametrize("lines", range(1, 7))
def test_a_rollout_killed_after_any_line_is_finished_by_the_same_command(lines: int) -> None:
    fake = FakeTorchServe()
    with serving(fake) as server:
        assert len(killed_after(lines, server.url, "rollout", "sentiment-2.mar", "--drain", "0.2")) == lines
        asked = fake.log.count("POST /models")
        finished = finish(server.url, "rollout", "sentiment-2.mar", "--drain", "0")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"]), finished.stdout
        assert fake.versions["2.0"].workers == 2
        if lines > 1:  # the version was registered
            assert (asked, fake.log.count("POST /models")) == (1, 1)


@pytest.mark.parametrize("lines", [1, 3])
def test_a_killed_rollback_is_finished_by_the_same_command_or_explains_how(lines: int) -> None:
    """The same command must never return to the version that it rolled back from."""
    fake = both()
    with serving(fake) as server:
        killed_after(lines, server.url, "rollback", "sentiment.mar", "--drain", "0.5")
        switched_before = fake.default == "1.0"
        finished = finish(server.url, "rollback", "sentiment.mar", "--drain", "0")
        assert fake.default == "1.0", finished.stdout
        if "2.0" in fake.versions:
            assert switched_before
            assert "`sentiment unregister 2.0`" in finished.stdout + finished.stderr
            assert finish(server.url, "unregister", "2.0", "--drain", "0").returncode == 0
        assert list(fake.versions) == ["1.0"]


def killed_after(lines: int, url: str, *arguments: str) -> list[str]:
    """Kill the command line after `lines` lines of output; returns the lines."""
    command = [sys.executable, "-m", "sentiment", *arguments]
    with subprocess.Popen(command, cwd=CLIENT, env=addresses(url), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        messages = [line for _, line in zip(range(lines), process.stdout, strict=False)]
        process.kill()
    return messages


def finish(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_client(*arguments, env=addresses(url))


def addresses(url: str) -> dict[str, str]:
    return {"SENTIMENT_URL": url, "SENTIMENT_MANAGEMENT_URL": url}


def test_a_finished_rollout_leaves_other_versions_registered() -> None:
    """Version 3.0 was registered after version 2.0 became the default, for a test."""
    fake = both()
    fake.versions["3.0"] = Registered("sentiment-3.mar", 1, started=5)
    messages: list[str] = []
    assert rollout(fake, messages).old is None
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0", "3.0"])
    assert "Version 3.0 stays registered. To remove it: `sentiment unregister 3.0`." in messages
    del fake.versions["1.0"]
    assert rollout(fake).old is None
    assert list(fake.versions) == ["2.0", "3.0"]


def test_a_rollout_of_the_default_version_changes_nothing() -> None:
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0")
    messages: list[str] = []
    outcome = rollout(fake, messages)
    assert (outcome.new, outcome.old) == ("2.0", None)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert messages[-1] == "Version 2.0 (sentiment-2.mar) is already the default."


def test_a_file_that_was_replaced_by_another_version_is_registered() -> None:
    """Version 1.0 was registered from a file of the same name, and was kept."""
    versions = {"1.0": Registered("sentiment-2.mar", 1), "1.1": Registered("sentiment-2.mar", 1, started=1)}
    fake = FakeTorchServe(versions=versions, default="1.1")
    rollout(fake, keep_old=True)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "1.1", "2.0"])


def test_an_older_version_is_not_mistaken_for_one_of_a_killed_rollout() -> None:
    """The old version was kept, and its file was replaced by one of version 2.0."""
    versions = {"1.0": Registered("sentiment-2.mar", 1), "1.1": Registered("other.mar", 1, started=1)}
    fake = FakeTorchServe(versions=versions, default="1.1")
    rollout(fake, keep_old=True)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "1.1", "2.0"])


def test_a_rollout_to_a_kept_version_makes_it_the_default() -> None:
    fake = both()
    switched(fake, lambda switch: switch.rollout("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])


def test_a_version_that_was_registered_before_a_failed_rollout_stays() -> None:
    fake = FakeTorchServe(versions=both("1.0").versions, label=changed_in(3))
    messages: list[str] = []
    with pytest.raises(RolloutError):
        rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", "2.0"])
    assert "Version 2.0 stays registered. To remove it: `sentiment unregister 2.0`." in messages
    assert "POST /models" not in fake.log


@pytest.mark.parametrize(
    "change", ["POST /models", "PUT /models/sentiment/2.0/set-default", "DELETE /models/sentiment/1.0"]
)
@pytest.mark.parametrize("failure", [Reply(drop=True), error(500, "InternalServerException")], ids=["dropped", "500"])
def test_a_rollout_continues_after_a_change_whose_reply_was_lost(change: str, failure: Reply) -> None:
    """A port-forward ends, or TorchServe answers 500, although the server has made the change."""
    fake = FakeTorchServe()
    done = False

    def before(line: str) -> Reply | None:
        nonlocal done
        if line != change or done:
            return None
        done = True
        if line.startswith("POST"):
            fake.versions["2.0"] = Registered("sentiment-2.mar", 2, started=1)
        elif line.startswith("PUT"):
            fake.default = "2.0"
        else:
            del fake.versions["1.0"]
        return failure

    fake.before = before
    rollout(fake)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert fake.log.count(change) == 1


@pytest.mark.parametrize("step", ["Registered", "Warmed", "Compared"])
def test_ctrl_c_before_the_switch_leaves_the_old_version_unchanged(step: str) -> None:
    fake = FakeTorchServe()
    messages = Acting(step, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert "Removed version 2.0." in messages


def test_ctrl_c_during_the_registration_removes_the_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server continues to unpack the archive; the version appears later."""
    fake = FakeTorchServe()
    polls = 0

    def before(line: str) -> None:
        nonlocal polls
        polls += line == "GET /models/sentiment/all"
        if line == "GET /models/sentiment/all" and polls == 6:
            fake.versions["2.0"] = Registered("sentiment-2.mar", 2)

    fake.before = before
    monkeypatch.setattr(ManagementClient, "register", lambda *_: ctrl_c())
    with pytest.raises(KeyboardInterrupt):
        rollout(fake)
    assert polls > 6
    assert list(fake.versions) == ["1.0"]


def test_ctrl_c_after_the_switch_keeps_both_versions_and_the_same_command_finishes() -> None:
    fake = FakeTorchServe()
    messages = Acting("The queue of version", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        rollout(fake, messages)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert messages[-1].startswith("Version 1.0 stays registered: interrupted.")
    rollout(fake)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_a_failed_cleanup_is_reported() -> None:
    fake = FakeTorchServe(label=changed_in(10))
    fake.before = failing("DELETE /models/sentiment/2.0", error(408, "RequestTimeoutException"))
    messages: list[str] = []
    with pytest.raises(RolloutError):
        rollout(fake, messages)
    assert "Cleanup failed: RequestTimeoutException" in messages[-1]
    assert fake.default == "1.0"


def test_a_rollback_without_an_archive_lists_the_versions_to_choose_from() -> None:
    """A version may have been rejected by a rollout, or registered at the server's start, as 2.0 here."""
    versions = {"1.0": Registered("sentiment.mar", 1), "2.0": Registered("sentiment-2.mar", 1)}
    fake = FakeTorchServe(versions=versions, label=changed_in(10))
    with pytest.raises(RolloutError, match="labels changed"):
        rollout(fake)

    def back() -> str:
        before = fake.default, list(fake.versions)
        with pytest.raises(RolloutError) as caught:
            switched(fake, Switch.rollback)
        assert (fake.default, list(fake.versions)) == before
        return str(caught.value)

    assert back() == (
        "Version 1.0 is the default. The server does not know the previous default. Choose: "
        "`sentiment rollback sentiment-2.mar` (version 2.0)."
    )
    fake.label = lambda version, text: "negative"
    switched(fake, lambda switch: switch.rollout("sentiment-3.mar"))
    assert (fake.default, list(fake.versions)) == ("3.0", ["2.0", "3.0"]), "2.0 was not what came before"
    fake.versions["1.1"] = Registered("new one.mar", 1, started=9)
    assert "`sentiment rollback 'new one.mar'` (version 1.1), `sentiment rollback sentiment-2.mar`" in back()
    fake.versions = {"3.0": fake.versions["3.0"]}
    assert "Version 3.0 (sentiment-3.mar) is the only registered version. Name the archive" in back()


def test_a_rollback_to_an_archive_of_two_versions_is_an_error() -> None:
    fake = both()
    fake.versions["1.1"] = Registered("sentiment.mar", 1, started=2)
    with pytest.raises(
        RolloutError, match=r"Versions 1\.0 and 1\.1 are registered from sentiment\.mar.*unregister 1\.0"
    ):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, len(fake.versions)) == ("2.0", 3)


def two_versions(old: Callable[[int], Any], new: Callable[[int], Any]) -> FakeTorchServe:
    """A server with two versions, each with a function from the index of a sample's text to its prediction."""

    def answer(version: str, texts: list[str]) -> Any:
        return [(new if version == "2.0" else old)(SAMPLE.index(text)) for text in texts]

    return FakeTorchServe(answer=answer)


def single(label: str, *others: str) -> dict[str, Any]:
    scores = {label: 0.75} | dict.fromkeys(others, 0.25)
    return {"label": label, "score": 0.75, "scores": scores}


def several(*labels: str) -> dict[str, Any]:
    return {"labels": list(labels), "scores": {name: 0.75 if name in labels else 0.25 for name in ("late", "rude")}}


MORE_LABELS = (lambda n: single("good", "bad"), lambda n: single("mixed" if n < 2 else "good", "bad"))
OTHER_LABELS = (lambda n: single("bad", "good"), lambda n: single("0", "1"))


@pytest.mark.parametrize(
    ("old", "new", "messages", "refused"),
    [
        (*MORE_LABELS, ["Only version 2.0 has the label: mixed.", "Compared: 2 of 10 labels changed, the lar"], None),
        (
            *OTHER_LABELS,
            [
                "Only version 1.0 has these labels: bad, good.",
                "Only version 2.0 has these labels: 0, 1.",
                "Compared: 10",
            ],
            "100% of the labels changed; the maximum is 20% (--max-changed).",
        ),
        (
            lambda n: several("late", "rude"),
            lambda n: several("rude", "late") if n < 9 else several(),
            [
                "  late, rude -> no label: flight 9",
                "Compared: 1 of 10 texts get different labels, the largest difference of a",
            ],
            None,
        ),
        (
            lambda n: several("late"),
            lambda n: several("late", "rude"),
            ["Compared: 10 of 10 texts get different labels, the largest difference of a score is 0.5000; median "],
            "100% of the texts get different labels; the maximum is 20% (--max-changed).",
        ),
        (
            lambda n: {"value": n % 2},
            lambda n: {"value": n % 2 + 0.4},
            ["Compared: 0 of 10 numbers changed by more than 0.5, the old version's standard deviation, the larg"],
            None,
        ),
        (
            lambda n: {"value": n % 2},
            lambda n: {"value": 3},
            ["  1 -> 3: flight 1", "Compared: 10 of 10 numbers changed by more than 0.5"],
            "100% of the numbers changed by more than 0.5, the old version's standard deviation; the maximum is 20%",
        ),
        (
            lambda n: {"value": 5},
            lambda n: {"value": 5.0001},
            ["Compared: 0 of 10 numbers changed by more than 0,"],
            None,
        ),
        (
            lambda n: single("good"),
            lambda n: {"value": 3},
            ["Compared: version 1.0 predicts one label for each text, version 2.0 a number; median"],
            "100% of the predictions are now of another kind; the maximum is 20% (--max-changed).",
        ),
    ],
    ids=["more labels", "other labels", "order", "multi-label", "regression", "shifted", "all alike", "another kind"],
)
def test_the_comparison_is_reported_by_the_kind_of_the_model(
    old: Callable[[int], Any], new: Callable[[int], Any], messages: list[str], refused: str | None
) -> None:
    fake, lines = two_versions(old, new), list[str]()
    if refused is None:
        rollout(fake, lines)
    else:
        with pytest.raises(RolloutError) as caught:
            rollout(fake, lines)
        assert str(caught.value).startswith(refused)
    for start in messages:
        assert [line for line in lines if line.startswith(start)], (start, lines)
    assert fake.default == ("2.0" if refused is None else "1.0")


def both(default: str = "2.0") -> FakeTorchServe:
    versions = {"1.0": Registered("sentiment.mar", 1), "2.0": Registered("sentiment-2.mar", 2, started=1)}
    return FakeTorchServe(versions=versions, default=default)


def test_a_rollback_registers_the_archive_again() -> None:
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0", label=changed_in(10))
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])


@pytest.mark.parametrize(
    "others", [{}, {"3.0": Registered("sentiment-3.mar", 1, started=5)}], ids=["alone", "beside 3.0"]
)
def test_a_repeated_rollback_succeeds(others: dict[str, Registered]) -> None:
    """The first rollback may have been killed after its last step."""
    fake = both()
    messages: list[str] = []
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    fake.versions |= others
    outcome = switched(fake, lambda switch: switch.rollback("sentiment.mar"), messages)
    assert (outcome.new, outcome.old, outcome.old_kept) == ("1.0", None, bool(others))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", *others])
    assert messages[0] == "Version 1.0 (sentiment.mar) is already the default."


def test_a_rollback_to_a_file_that_was_replaced_by_another_version_registers_it() -> None:
    """The default was registered from a file of the same name, too."""
    fake = FakeTorchServe(versions={"1.1": Registered("sentiment.mar", 1)}, default="1.1")
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])


def test_two_rollbacks_to_one_archive_share_one_version() -> None:
    """The second requests the registration while the first registers the version, and gets status 409."""
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0")

    def overtake(line: str) -> None:
        if line == "POST /models":
            fake.versions["1.0"] = Registered("sentiment.mar", 1, started=1)

    fake.before = overtake
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert fake.versions["1.0"].workers == 2


def test_a_rollback_to_a_version_of_another_archive_is_refused() -> None:
    fake = FakeTorchServe(versions={"1.0": Registered("other.mar", 1), "2.0": Registered("sentiment-2.mar", 1)})
    fake.default = "2.0"
    messages: list[str] = []
    with pytest.raises(RefusedError, match=r"1\.0 is already registered"):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"), messages)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert messages == ["Version 2.0 is still the default."]


def test_ctrl_c_after_the_switch_of_a_rollback_shows_the_command_to_finish() -> None:
    fake = both()
    messages = Acting("The queue of version", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"), messages)
    assert messages[-1] == "Version 2.0 stays registered: interrupted. To remove it: `sentiment unregister 2.0`."


def test_a_rollback_uses_a_version_that_is_already_registered() -> None:
    fake = both()
    outcome = switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert "POST /models" not in fake.log
    assert (outcome.new, outcome.old, outcome.old_archive) == ("1.0", "2.0", "sentiment-2.mar")
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert fake.versions["1.0"].workers == 2, "as many as the version before had"
    warmed = fake.log.index("POST /predictions/sentiment/1.0")
    assert warmed < fake.log.index("PUT /models/sentiment/1.0/set-default")


def test_a_failed_rollback_leaves_the_present_version_unchanged() -> None:
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0", polls_until_ready=-1)
    with pytest.raises(NotReadyError):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_the_built_in_sample_is_about_30_short_texts() -> None:
    assert 25 <= len(set(TEXTS)) == len(TEXTS) <= 35
    assert all(0 < len(text.strip()) <= 280 for text in TEXTS)
