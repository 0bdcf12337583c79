"""Rollouts and rollbacks, against an HTTP server that answers as TorchServe does, and fails when told to."""

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
    """Lines that are said, and what is done when one begins so."""

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


def switched(fake: FakeTorchServe, do: Callable[[Switch], Outcome], said: list[str] | None = None) -> Outcome:
    lines = said if said is not None else []
    with serving(fake) as server, ManagementClient(server.url) as management:

        def ask(version: str) -> InferenceClient:
            return InferenceClient(server.url, version=version, retries=0)

        return do(Switch(management, ask, SAMPLE, 0.01, lines.append))


def rollout(fake: FakeTorchServe, said: list[str] | None = None, **settings: float) -> Outcome:
    return switched(fake, lambda switch: switch.rollout("sentiment-2.mar", **settings), said)  # type: ignore[arg-type]


def test_a_rollout_ends_with_the_new_version_alone() -> None:
    fake = FakeTorchServe()
    said: list[str] = []
    outcome = rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert (outcome.new, outcome.old, outcome.old_archive, outcome.old_kept) == ("2.0", "1.0", "sentiment.mar", False)
    assert fake.versions["2.0"].workers == 2
    changes = [line for line in fake.log if not line.startswith(("GET", "POST /predictions"))]
    assert changes == ["POST /models", "PUT /models/sentiment/2.0/set-default", "DELETE /models/sentiment/1.0"]
    assert said[-1] == "Removed version 1.0."


def test_the_new_version_is_ready_and_warm_before_it_is_the_default() -> None:
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


def test_the_old_version_is_left_as_long_as_its_workers_may_hold_a_request() -> None:
    fake = FakeTorchServe()
    fake.versions["1.0"].response_timeout = 1
    said: list[str] = []
    switched(fake, lambda switch: replace(switch, drain_s=None).rollout("sentiment-2.mar"), said)
    assert "Nothing waits for version 1.0; 1 s for what its workers still hold ..." in said


def test_a_queue_that_never_empties_keeps_the_old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_module, "QUEUE_TIMEOUT_S", 0.2)
    fake = FakeTorchServe()
    fake.versions["1.0"].pending = 10_000
    said: list[str] = []
    assert rollout(fake, said).old_kept
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert "still wait for it" in said[-1]


def test_keep_old() -> None:
    fake = FakeTorchServe()
    assert switched(fake, lambda switch: switch.rollout("sentiment-2.mar", keep_old=True)).old_kept
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])


def changed_in(count: int) -> Callable[[str, str], str]:
    return lambda version, text: "positive" if version == "2.0" and text in SAMPLE[:count] else "negative"


def test_labels_that_change_are_counted_and_named() -> None:
    fake = FakeTorchServe(label=changed_in(2))
    said: list[str] = []
    comparison = rollout(fake, said).comparison
    assert comparison is not None
    assert [(change.text, change.old, change.new) for change in comparison.changes] == [
        (text, "negative", "positive") for text in SAMPLE[:2]
    ]
    assert comparison.largest_difference == 0.75
    assert comparison.old_median_ms > 0 < comparison.new_median_ms
    assert "  negative -> positive: flight 0" in said


def failing(line_end: str, reply: Reply) -> Callable[[str], Reply | None]:
    return lambda line: reply if line.endswith(line_end) else None


@pytest.mark.parametrize(
    ("fake", "kind", "told"),
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
def test_a_failure_leaves_the_old_version_as_it_was(fake: FakeTorchServe, kind: type[ClientError], told: str) -> None:
    said: list[str] = []
    before = fake.before
    # The removal of the new version has the same path as what fails, so let it pass.
    fake.before = lambda line: None if line.startswith("DELETE") else before(line)
    with pytest.raises(kind, match=told):
        rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert said[-1] == "Version 1.0 is the default, as before."


def test_a_share_of_one_lets_everything_pass() -> None:
    fake = FakeTorchServe(label=changed_in(10))
    rollout(fake, max_changed=1.0)
    assert fake.default == "2.0"


def test_another_version_that_answers_is_a_failure() -> None:
    fake = FakeTorchServe()

    def before(line: str) -> Reply | None:
        body = b'[{"label": "a", "score": 1, "scores": {}}' + b', {"label": "a", "score": 1, "scores": {}}' * 9 + b"]"
        return Reply(200, body, {"X-Model-Version": "1.0"}) if line == "POST /predictions/sentiment/2.0" else None

    fake.before = before
    with pytest.raises(RolloutError, match=r"Version 2.0 was asked, and 1.0 answered"):
        rollout(fake)
    assert list(fake.versions) == ["1.0"]


def test_of_two_rollouts_at_once_one_gives_way() -> None:
    """Another makes its version the default and removes the old one while this one still compares."""
    fake = FakeTorchServe()

    def overtake() -> None:
        fake.versions["3.0"] = Registered("sentiment-3.mar", 2)
        fake.default = "3.0"
        del fake.versions["1.0"]

    said = Acting("Compared", overtake)
    with pytest.raises(RolloutError, match=r"Version 3\.0 has become the default meanwhile"):
        rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("3.0", ["3.0"])
    assert said[-1] == "Version 3.0 is the default."


def test_two_rollouts_of_one_archive_go_on_with_one_version() -> None:
    """The second asks for it while the first registers it, and is answered 409."""
    fake = FakeTorchServe()

    def overtake(line: str) -> None:
        if line == "POST /models":
            fake.versions["2.0"] = Registered("sentiment-2.mar", 1, started=1)

    fake.before = overtake
    said: list[str] = []
    rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert fake.versions["2.0"].workers == 2
    assert any("Version 2.0 is registered from sentiment-2.mar already" in line for line in said)
    assert not any("as before" in line for line in said), "nothing has failed"


def test_the_second_of_two_rollouts_of_one_archive_finds_it_switched_and_the_old_one_gone() -> None:
    fake = FakeTorchServe(versions=both("1.0").versions)

    def overtake() -> None:
        fake.default = "2.0"
        del fake.versions["1.0"]

    outcome = rollout(fake, Acting("Compared", overtake))
    assert (outcome.new, outcome.old, outcome.old_kept) == ("2.0", "1.0", False)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_a_version_of_another_archive_in_the_way_is_told() -> None:
    fake = FakeTorchServe(versions={"1.0": Registered("sentiment.mar", 1), "2.0": Registered("other.mar", 1)})
    with pytest.raises(RefusedError, match=r"2\.0 is already registered"):
        rollout(fake)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", "2.0"])


@pytest.mark.parametrize("lines", range(1, 7))
def test_a_rollout_that_is_killed_after_any_of_its_lines_is_finished_by_the_same_command(lines: int) -> None:
    fake = FakeTorchServe()
    with serving(fake) as server:
        assert len(killed_after(lines, server.url, "rollout", "sentiment-2.mar", "--drain", "0.2")) == lines
        asked = fake.log.count("POST /models")
        finished = finish(server.url, "rollout", "sentiment-2.mar", "--drain", "0")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"]), finished.stdout
        assert fake.versions["2.0"].workers == 2
        if lines > 1:  # then it is registered
            assert (asked, fake.log.count("POST /models")) == (1, 1)


@pytest.mark.parametrize("lines", [1, 3])
def test_a_rollback_that_is_killed_is_finished_or_says_how(lines: int) -> None:
    """The same command never goes forward again to the version that it went back from."""
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
    """The command line, killed when it has said so many lines; returns them."""
    command = [sys.executable, "-m", "sentiment", *arguments]
    with subprocess.Popen(command, cwd=CLIENT, env=addresses(url), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [line for _, line in zip(range(lines), process.stdout, strict=False)]
        process.kill()
    return said


def finish(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_client(*arguments, env=addresses(url))


def addresses(url: str) -> dict[str, str]:
    return {"SENTIMENT_URL": url, "SENTIMENT_MANAGEMENT_URL": url}


def test_a_finished_rollout_leaves_versions_that_may_be_wanted() -> None:
    """Version 3.0 was registered after version 2.0 became the default, to be looked at."""
    fake = both()
    fake.versions["3.0"] = Registered("sentiment-3.mar", 1, started=5)
    said: list[str] = []
    assert rollout(fake, said).old is None
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0", "3.0"])
    assert "Version 3.0 stays registered; `sentiment unregister 3.0` removes it." in said
    del fake.versions["1.0"]
    assert rollout(fake).old is None
    assert list(fake.versions) == ["2.0", "3.0"]


def test_a_rollout_of_what_is_served_already_changes_nothing() -> None:
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0")
    said: list[str] = []
    outcome = rollout(fake, said)
    assert (outcome.new, outcome.old) == ("2.0", None)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])
    assert said[-1] == "Version 2.0 (sentiment-2.mar) is the default already."


def test_a_file_that_was_replaced_by_another_version_is_registered() -> None:
    """Version 1.0 came from a file of this name, too, and has been kept."""
    versions = {"1.0": Registered("sentiment-2.mar", 1), "1.1": Registered("sentiment-2.mar", 1, started=1)}
    fake = FakeTorchServe(versions=versions, default="1.1")
    rollout(fake, keep_old=True)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "1.1", "2.0"])


def test_a_version_that_is_older_than_the_default_is_not_taken_for_what_a_killed_rollout_left() -> None:
    """It was kept, and the file has been replaced since by one of version 2.0."""
    versions = {"1.0": Registered("sentiment-2.mar", 1), "1.1": Registered("other.mar", 1, started=1)}
    fake = FakeTorchServe(versions=versions, default="1.1")
    rollout(fake, keep_old=True)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "1.1", "2.0"])


def test_a_rollout_to_a_version_that_was_kept_goes_back_to_it() -> None:
    fake = both()
    switched(fake, lambda switch: switch.rollout("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])


def test_a_version_that_was_registered_before_stays_if_its_rollout_fails() -> None:
    fake = FakeTorchServe(versions=both("1.0").versions, label=changed_in(3))
    said: list[str] = []
    with pytest.raises(RolloutError):
        rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", "2.0"])
    assert "Version 2.0 stays registered; `sentiment unregister 2.0` removes it." in said
    assert "POST /models" not in fake.log


@pytest.mark.parametrize(
    "change", ["POST /models", "PUT /models/sentiment/2.0/set-default", "DELETE /models/sentiment/1.0"]
)
@pytest.mark.parametrize("failure", [Reply(drop=True), error(500, "InternalServerException")], ids=["dropped", "500"])
def test_a_change_that_takes_effect_without_an_answer_is_gone_on_from(change: str, failure: Reply) -> None:
    """A port-forward ends, or TorchServe answers 500, and the server has done what it was asked for."""
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
def test_ctrl_c_before_the_switch_leaves_the_old_version_as_it_was(step: str) -> None:
    fake = FakeTorchServe()
    said = Acting(step, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert "Removed version 2.0." in said


def test_ctrl_c_while_the_registration_is_answered_finds_what_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on unpacking the archive; the version appears a little later."""
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


def test_ctrl_c_after_the_switch_keeps_both_and_the_same_command_finishes() -> None:
    fake = FakeTorchServe()
    said = Acting("Nothing waits", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        rollout(fake, said)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert said[-1].startswith("Version 1.0 stays registered: interrupted.")
    rollout(fake)
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_a_failed_clean_up_is_told() -> None:
    fake = FakeTorchServe(label=changed_in(10))
    fake.before = failing("DELETE /models/sentiment/2.0", error(408, "RequestTimeoutException"))
    said: list[str] = []
    with pytest.raises(RolloutError):
        rollout(fake, said)
    assert "Could not put everything back: RequestTimeoutException" in said[-1]
    assert fake.default == "1.0"


def test_a_rollback_without_a_name_names_the_versions_to_choose_from() -> None:
    """One of them may have been refused by a rollout, and may have been registered at the start: 2.0 is here."""
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
        "Version 1.0 is the default. The server does not know which one was before. Choose: "
        "`sentiment rollback sentiment-2.mar` (version 2.0)."
    )
    fake.label = lambda version, text: "negative"
    switched(fake, lambda switch: switch.rollout("sentiment-3.mar"))
    assert (fake.default, list(fake.versions)) == ("3.0", ["2.0", "3.0"]), "2.0 was not what came before"
    fake.versions["1.1"] = Registered("new one.mar", 1, started=9)
    assert "`sentiment rollback 'new one.mar'` (version 1.1), `sentiment rollback sentiment-2.mar`" in back()
    fake.versions = {"3.0": fake.versions["3.0"]}
    assert "No version is registered beside 3.0 (sentiment-3.mar). Name the archive to go back to" in back()


def test_a_rollback_to_a_file_that_two_versions_came_from_is_told() -> None:
    fake = both()
    fake.versions["1.1"] = Registered("sentiment.mar", 1, started=2)
    with pytest.raises(
        RolloutError, match=r"Versions 1\.0 and 1\.1 are registered from sentiment\.mar.*unregister 1\.0"
    ):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, len(fake.versions)) == ("2.0", 3)


def of_kinds(old: Callable[[int], Any], new: Callable[[int], Any]) -> FakeTorchServe:
    """Both versions, each with its prediction for the sample's text of a number."""

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
    ("old", "new", "said", "refused"),
    [
        (*MORE_LABELS, ["Only version 2.0 has the label: mixed.", "Compared: 2 of 10 labels changed, the lar"], None),
        (
            *OTHER_LABELS,
            [
                "Only version 1.0 has these labels: bad, good.",
                "Only version 2.0 has these labels: 0, 1.",
                "Compared: 10",
            ],
            "100% of the labels changed; at most 20% may (--max-changed).",
        ),
        (
            lambda n: several("late", "rude"),
            lambda n: several("rude", "late") if n < 9 else several(),
            [
                "  late, rude -> no label: flight 9",
                "Compared: 1 of 10 texts have other labels, the largest difference of a",
            ],
            None,
        ),
        (
            lambda n: several("late"),
            lambda n: several("late", "rude"),
            ["Compared: 10 of 10 texts have other labels, the largest difference of a score is 0.5000; median "],
            "100% of the texts have other labels; at most 20% may (--max-changed).",
        ),
        (
            lambda n: {"value": n % 2},
            lambda n: {"value": n % 2 + 0.4},
            ["Compared: 0 of 10 numbers changed by more than 0.5, their standard deviation before, the largest diff"],
            None,
        ),
        (
            lambda n: {"value": n % 2},
            lambda n: {"value": 3},
            ["  1 -> 3: flight 1", "Compared: 10 of 10 numbers changed by more than 0.5"],
            "100% of the numbers changed by more than 0.5, their standard deviation before; at most 20% may (--max-ch",
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
            "100% of the predictions are of another kind; at most 20% may (--max-changed).",
        ),
    ],
    ids=["more labels", "other labels", "order", "multi-label", "regression", "shifted", "all alike", "another kind"],
)
def test_what_changed_is_told_as_the_kind_of_the_model_has_it(
    old: Callable[[int], Any], new: Callable[[int], Any], said: list[str], refused: str | None
) -> None:
    fake, lines = of_kinds(old, new), list[str]()
    if refused is None:
        rollout(fake, lines)
    else:
        with pytest.raises(RolloutError) as caught:
            rollout(fake, lines)
        assert str(caught.value).startswith(refused)
    for start in said:
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
def test_a_rollback_that_has_succeeded_succeeds_again(others: dict[str, Registered]) -> None:
    """It may have been killed after its last step."""
    fake = both()
    said: list[str] = []
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    fake.versions |= others
    outcome = switched(fake, lambda switch: switch.rollback("sentiment.mar"), said)
    assert (outcome.new, outcome.old, outcome.old_kept) == ("1.0", None, bool(others))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0", *others])
    assert said[0] == "Version 1.0 (sentiment.mar) is the default already."


def test_a_rollback_to_a_file_that_was_replaced_by_another_version_registers_it() -> None:
    """The default came from a file of this name, too."""
    fake = FakeTorchServe(versions={"1.1": Registered("sentiment.mar", 1)}, default="1.1")
    switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])


def test_two_rollbacks_to_one_archive_go_on_with_one_version() -> None:
    """The second asks for it while the first registers it, and is answered 409."""
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
    said: list[str] = []
    with pytest.raises(RefusedError, match=r"1\.0 is already registered"):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"), said)
    assert (fake.default, list(fake.versions)) == ("2.0", ["1.0", "2.0"])
    assert said == ["Version 2.0 is the default, as before."]


def test_ctrl_c_after_the_switch_of_a_rollback_names_the_command_that_finishes_it() -> None:
    fake = both()
    said = Acting("Nothing waits", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"), said)
    assert said[-1] == "Version 2.0 stays registered: interrupted. `sentiment unregister 2.0` removes it."


def test_a_rollback_to_an_archive_that_is_registered_takes_that() -> None:
    fake = both()
    outcome = switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert "POST /models" not in fake.log
    assert (outcome.new, outcome.old, outcome.old_archive) == ("1.0", "2.0", "sentiment-2.mar")
    assert (fake.default, list(fake.versions)) == ("1.0", ["1.0"])
    assert fake.versions["1.0"].workers == 2, "as many as the version before had"
    warmed = fake.log.index("POST /predictions/sentiment/1.0")
    assert warmed < fake.log.index("PUT /models/sentiment/1.0/set-default")


def test_a_rollback_to_what_does_not_load_leaves_the_present_version() -> None:
    fake = FakeTorchServe(versions={"2.0": Registered("sentiment-2.mar", 2)}, default="2.0", polls_until_ready=-1)
    with pytest.raises(NotReadyError):
        switched(fake, lambda switch: switch.rollback("sentiment.mar"))
    assert (fake.default, list(fake.versions)) == ("2.0", ["2.0"])


def test_the_built_in_sample_is_about_30_short_texts() -> None:
    assert 25 <= len(set(TEXTS)) == len(TEXTS) <= 35
    assert all(0 < len(text.strip()) <= 280 for text in TEXTS)
