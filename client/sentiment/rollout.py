"""Rolling update of the default version without losing a request, and its rollback.

A rollout registers the new version beside the old one, waits for its workers, warms it, and compares both versions.
Then it makes the new version the default, drains the old version, and removes it. If any step before the switch fails,
the old version stays the default.

If a rollout is killed, the same command finishes it: it adopts the version that is registered from the same archive.
If this version is already the default, it removes the old version.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from math import isclose
from statistics import median, pstdev

from sentiment.errors import ClientError, RefusedError, RolloutError, UnreachableError
from sentiment.inference import MODEL, InferenceClient, Kind, Prediction
from sentiment.management import POLL_S, ManagementClient, Version
from sentiment.sample import TEXTS

MAX_CHANGED = 0.2
MAX_CHANGES_SHOWN = 30
MAX_LABELS_SHOWN = 10
ROUNDING = 1e-3
"""Relative difference up to which two numbers of a regression count as equal."""
QUEUE_TIMEOUT_S = 120.0
"""Timeout of the wait for a version's queue to be empty, before its removal."""
REGISTRATION_S = 5.0
"""How long a version may take to appear after its registration was interrupted."""

_KINDS: Mapping[Kind, str] = {"label": "one label for each text", "labels": "any number of labels", "value": "a number"}

Say = Callable[[str], None]
Ask = Callable[[str], InferenceClient]
"""Function from a version's name to a client of this version."""


@dataclass(frozen=True)
class Change:
    """A text whose prediction changed."""

    text: str
    old: str
    new: str


@dataclass(frozen=True)
class Comparison:
    """The predictions of two versions for the same texts."""

    texts: int
    old_kind: Kind
    new_kind: Kind

    changes: tuple[Change, ...]
    """The texts whose label or labels differ, or whose numbers differ by more than `tolerance`."""

    tolerance: float | None
    """For two regressions, the standard deviation of the old version's numbers; None for labels."""

    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    """Labels that the other version lacks."""

    largest_difference: float | None
    """Maximum difference, over all texts, between the probabilities of a label that both versions have; for two
    regressions, between the numbers. None if the versions share no label."""

    old_median_ms: float
    new_median_ms: float

    def changed(self) -> str:
        """The kind of change, in words, such as `of the labels changed`."""
        if self.old_kind != self.new_kind:
            return "of the predictions are now of another kind"
        if self.tolerance is not None:
            return f"of the numbers changed by more than {self.tolerance:.4g}, the old version's standard deviation"
        return "of the texts get different labels" if self.old_kind == "labels" else "of the labels changed"


@dataclass(frozen=True)
class Outcome:
    """Result of a rollout or rollback: the new default version, and the version that it replaced."""

    new: str
    old: str | None
    """The replaced version; None if it is unknown, because the new version was already the default."""

    old_archive: str | None
    old_kept: bool
    """Whether the replaced version is still registered."""

    comparison: Comparison | None


@dataclass(frozen=True)
class Switch:
    """Rollouts and rollbacks of one model."""

    management: ManagementClient
    ask: Ask
    sample: Sequence[str]
    """Texts to compare the versions on, at least one."""

    drain_s: float | None
    """Time between the last queued request and the removal of the old version, in seconds. Its workers may still
    process requests, which TorchServe does not report. None for the version's response timeout, after which TorchServe
    ends a worker as hung."""

    say: Say

    def rollout(self, archive: str, max_changed: float = MAX_CHANGED, keep_old: bool = False) -> Outcome:
        """Register the version in `archive`, and make it the default.

        If the rollout fails, the old version stays the default, unless another program changed it.

        Args:
            archive: the archive's file name in the server's model store.
            max_changed: maximum share of the sample's labels that may change; if more change, the rollout fails.
            keep_old: leave the old version registered.

        Raises:
            RolloutError: too many labels changed; or another version than the new one answered, or became the default.
            NotReadyError: the new version does not load.
            ClientError: a request failed; see `Transport.send`.
        """
        versions = self.management.versions()
        old = next(version for version in versions if version.default)
        others = [version for version in versions if not version.default]
        if others and [version for version in versions if version.archive == archive] == [old]:
            return self._finish(old, others, keep_old)
        self.say(f"The default is version {old.name} ({old.archive}): {old.workers()}.")
        adopted = reusable_version(versions, archive)
        if adopted is None:
            try:
                with default_restored_on_failure(self.management, old, archive, self.say):
                    new = self._register(archive, old)
                    comparison = self._switch(old, new, max_changed)
            except RefusedError as error:
                adopted = self._conflicting(error, archive, old)
                if adopted.default:
                    others = [version for version in self.management.versions() if version.name != adopted.name]
                    return self._finish(adopted, others, keep_old)
        if adopted is not None:
            new = adopted.name
            with default_restored_on_failure(self.management, old, archive, self.say, adopted=new):
                self.say(f"To roll out a replaced file of this name, run {self._unregister(new)} first.")
                self._adopt(adopted, old)
                comparison = self._switch(old, new, max_changed)
        old_kept = keep_old or not remove(self.management, old, self.drain_s, self.say)
        return Outcome(new, old.name, old.archive, old_kept, comparison)

    def rollback(self, archive: str | None = None) -> Outcome:
        """Make another version the default, and remove the present default.

        Args:
            archive: the archive of the other version, which is registered if necessary; None to get an error that
                names the versions to choose from.

        Raises:
            RolloutError: no archive is given; several versions are registered from it; or another version became the
                default during the rollback.
            ClientError: as for `rollout`.
        """
        versions = self.management.versions()
        present = next(version for version in versions if version.default)
        others = [version for version in versions if not version.default]
        if archive is None:
            raise RolloutError(self._choices(present, others))
        targets = [version for version in others if version.archive == archive]
        if len(targets) > 1:
            names = " and ".join(version.name for version in targets)
            removals = " or ".join(self._unregister(version.name) for version in targets)
            raise RolloutError(f"Versions {names} are registered from {archive}. Remove all but one: {removals}.")
        if not targets and others and present.archive == archive:
            return self._finish(present, others, keep_old=True)
        adopted = targets[0] if targets else None
        if adopted is None:
            try:
                with default_restored_on_failure(self.management, present, archive, self.say):
                    target = self._register(archive, present)
                    self._warm(target)
                    self._set_default(target, instead_of=present.name)
            except RefusedError as error:
                adopted = self._conflicting(error, archive, present)
                if adopted.default:
                    return self._finish(adopted, others, keep_old=True)
        if adopted is not None:
            target = adopted.name
            self._adopt(adopted, present)
            self._warm(target)
            self._set_default(target, instead_of=present.name)
        old_kept = not remove(self.management, present, self.drain_s, self.say)
        return Outcome(target, present.name, present.archive, old_kept, None)

    def compare(self, old: str, new: str) -> Comparison:
        """Compare the predictions of both versions. The requests alternate, so that both have the same load."""
        pairs: list[tuple[Prediction, Prediction]] = []
        times_s: dict[str, list[float]] = {old: [], new: []}
        with self.ask(old) as old_client, self.ask(new) as new_client:
            for text in self.sample:
                first = _timed(old_client, text, times_s[old])
                second = _timed(new_client, text, times_s[new])
                pairs.append((first, second))
        values = [first.value for first, second in pairs if first.value is not None and second.value is not None]
        tolerance = pstdev(values) if len(values) == len(pairs) else None
        differences = [value for first, second in pairs if (value := _difference(first, second)) is not None]
        old_labels = {label: None for first, _ in pairs for label in first.scores}
        new_labels = {label: None for _, second in pairs for label in second.scores}
        return Comparison(
            texts=len(pairs),
            old_kind=pairs[0][0].kind,
            new_kind=pairs[0][1].kind,
            changes=tuple(
                Change(text, first.predicted, second.predicted)
                for text, (first, second) in zip(self.sample, pairs, strict=True)
                if _has_changed(first, second, tolerance)
            ),
            tolerance=tolerance,
            only_old=tuple(label for label in old_labels if label not in new_labels),
            only_new=tuple(label for label in new_labels if label not in old_labels),
            largest_difference=max(differences, default=None),
            old_median_ms=median(times_s[old]) * 1e3,
            new_median_ms=median(times_s[new]) * 1e3,
        )

    def _switch(self, old: Version, new: str, max_changed: float) -> Comparison:
        """Warm a version, compare it with the default version, and make it the default."""
        self._warm(new)
        comparison = self.compare(old.name, new)
        self._report(comparison, old.name, new)
        changed = len(comparison.changes) / comparison.texts
        if changed > max_changed:
            limit = f"the maximum is {max_changed:.0%} (--max-changed)"
            raise RolloutError(f"{changed:.0%} {comparison.changed()}; {limit}.")
        self._set_default(new, instead_of=old.name)
        return comparison

    def _register(self, archive: str, like: Version) -> str:
        """Register an archive with the settings of `like`; returns its version as soon as its workers are ready."""
        new = self.management.register(archive, like.settings)
        self.say(f"Registered {archive} as version {new}; waiting for {like.settings.workers} workers ...")
        self.management.wait_until_ready(new)
        return new

    def _conflicting(self, error: RefusedError, archive: str, old: Version) -> Version:
        """The version that conflicts with a registration, if it was registered from the same archive.

        The same command may have been run before, or another rollout is in progress.

        Raises:
            RefusedError: `error`, if it has another reason, or if the conflicting version is from another archive.
        """
        if error.status != HTTPStatus.CONFLICT:
            raise error
        versions = self.management.versions()
        for version in versions:
            # TorchServe: "Model version 2.0 is already registered for model sentiment"
            if version.archive == archive and f" {version.name} is already registered" in error.message:
                return version
        _say_default(versions, old, self.say)
        raise error

    def _adopt(self, version: Version, like: Version) -> None:
        """Use a version that is already registered, with at least as many workers as `like` has."""
        self.say(f"Version {version.name} is already registered from {version.archive}; waiting for its workers ...")
        self.management.scale(max(like.settings.workers, version.settings.workers), version.name)

    def _finish(self, new: Version, others: Sequence[Version], keep_old: bool) -> Outcome:
        """Finish a rollout that has already switched: remove the version that `new` replaced.

        If there is exactly one other version, and it is older, then it is the replaced version. Otherwise the user must
        decide, and the other versions are only listed.
        """
        self.say(f"Version {new.name} ({new.archive}) is already the default.")
        self.management.wait_until_ready(new.name)
        if len(others) == 1 and others[0].older_than(new):
            [old] = others
            old_kept = keep_old or not remove(self.management, old, self.drain_s, self.say)
            return Outcome(new.name, old.name, old.archive, old_kept, None)
        for other in others:
            self.say(f"Version {other.name} stays registered. To remove it: {self._unregister(other.name)}.")
        return Outcome(new.name, None, None, bool(others), None)

    def _unregister(self, version: str) -> str:
        return _unregister(version, self.management.model)

    def _warm(self, version: str) -> None:
        with self.ask(version) as client:
            predictions = client.predict_many(self.sample)
        answered = {prediction.model_version for prediction in predictions} - {None, version}
        if answered:
            raise RolloutError(f"Requests to version {version} were answered by {', '.join(map(str, answered))}.")
        kind = "tweets to an airline (--sample names other texts)" if self.sample is TEXTS else "texts"
        self.say(f"Warmed version {version} with {len(self.sample)} {kind}.")

    def _report(self, comparison: Comparison, old: str, new: str) -> None:
        medians = f"median {comparison.old_median_ms:.1f} ms before, {comparison.new_median_ms:.1f} ms now."
        if comparison.old_kind != comparison.new_kind:
            before, now = _KINDS[comparison.old_kind], _KINDS[comparison.new_kind]
            self.say(f"Compared: version {old} predicts {before}, version {new} {now}; {medians}")
            return
        for change in comparison.changes[:MAX_CHANGES_SHOWN]:
            self.say(f"  {change.old} -> {change.new}: {change.text}")
        if len(comparison.changes) > MAX_CHANGES_SHOWN:
            self.say(f"  ... and {len(comparison.changes) - MAX_CHANGES_SHOWN:,} more")
        for name, labels in ((old, comparison.only_old), (new, comparison.only_new)):
            if labels:
                self.say(
                    f"Only version {name} has {'these labels' if len(labels) > 1 else 'the label'}: {_few(labels)}."
                )
        largest = ""
        if comparison.largest_difference is not None:
            quantity = "" if comparison.tolerance is not None else " of a score"
            largest = f", the largest difference{quantity} is {comparison.largest_difference:.4f}"
        changed = comparison.changed().removeprefix("of the ")
        self.say(f"Compared: {len(comparison.changes)} of {comparison.texts} {changed}{largest}; {medians}")

    def _choices(self, present: Version, others: Sequence[Version]) -> str:
        """The error for a rollback without an archive.

        The client cannot choose: the server does not report which version was the default before. A version may also
        have been registered for a test, or been rejected by a rollout.
        """
        if not others:
            return (
                f"Version {present.name} ({present.archive}) is the only registered version. Name the archive of the "
                "version to restore, by its file name in the server's model store."
            )
        choices = ", ".join(
            f"`sentiment rollback {shlex.quote(version.archive)}{model_option(self.management.model)}` (version "
            f"{version.name})"
            for version in others
        )
        return (
            f"Version {present.name} is the default. The server does not know the previous default. Choose: {choices}."
        )

    def _set_default(self, version: str, instead_of: str) -> None:
        default = self.management.default().name
        if default == version:
            self.say(f"Version {version} is already the default: another rollout has switched to it.")
            return
        if default != instead_of:
            raise RolloutError(f"Another rollout is in progress: version {default} has become the default.")
        self.management.set_default(version)
        self.say(f"Version {version} is the default.")


def reusable_version(versions: Sequence[Version], archive: str) -> Version | None:
    """The version from an earlier registration of `archive` that can be used without registering it again.

    This version is newer than the default, and the only one from a file of this name. In all other cases the file may
    have been replaced by another version, and only a registration shows which version it contains: None.
    """
    default = next(version for version in versions if version.default)
    named = [version for version in versions if version.archive == archive]
    if len(named) != 1 or named == [default] or named[0].older_than(default):
        return None
    return named[0]


def remove(management: ManagementClient, old: Version, drain_s: float | None, say: Say) -> bool:
    """Drain and remove a version.

    Args:
        management: the client of the server.
        old: the version.
        drain_s: time between the last queued request and the removal; see `Switch`.
        say: shows a message to the user.

    Returns:
        Whether the version is removed. If it is not, `say` was called with the reason.
    """
    version = old.name
    drain_s = old.settings.response_timeout_s if drain_s is None else drain_s
    stays = f"Version {version} stays registered"
    try:
        deadline = time.monotonic() + QUEUE_TIMEOUT_S
        while pending := management.version(version).pending_requests:
            if time.monotonic() > deadline:
                say(f"{stays}: {pending} requests are still in its queue after {QUEUE_TIMEOUT_S:g} s.")
                return False
            time.sleep(POLL_S)
        say(f"The queue of version {version} is empty; waiting {drain_s:g} s for the requests in its workers ...")
        time.sleep(drain_s)
        management.unregister(version)
    except KeyboardInterrupt:
        say(f"{stays}: interrupted. To remove it: {_unregister(version, management.model)}.")
        raise
    except RefusedError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            say(f"Version {version} was removed by another program.")
            return True
        say(f"{stays}: {error}")
        return False
    except ClientError as error:
        say(f"{stays}: {error}")
        return False
    say(f"Removed version {version}.")
    return True


@contextmanager
def default_restored_on_failure(
    management: ManagementClient, old: Version, archive: str, say: Say, adopted: str | None = None
) -> Iterator[None]:
    """If the body of the `with` fails, restore the old version as the default, and remove the version from `archive`.

    A registration that fails because its version is already registered (status 409) has changed nothing, and the caller
    may continue with this version: then nothing is undone.

    Args:
        management: the client of the server.
        old: the default version before.
        archive: the archive that is being registered.
        say: shows a message to the user.
        adopted: the version from `archive` that was registered before, and stays registered; None if there is none.
    """
    before = {version.name for version in management.versions()}
    try:
        yield
    except BaseException as problem:
        if adopted is None and isinstance(problem, RefusedError) and problem.status == HTTPStatus.CONFLICT:
            raise
        try:
            new = adopted or _added(management, archive, before, problem)
            if new is not None:
                if management.version(new).default:
                    management.set_default(old.name)
                if adopted is None:
                    management.unregister(new)
                    say(f"Removed version {new}.")
                else:
                    say(f"Version {new} stays registered. To remove it: {_unregister(new, management.model)}.")
            _say_default(management.versions(), old, say)
        except ClientError as error:
            say(f"Cleanup failed: {error}. `sentiment status` shows the present state.")
        raise


def _say_default(versions: Sequence[Version], old: Version, say: Say) -> None:
    default = next(version.name for version in versions if version.default)
    say(f"Version {default} is {'still ' if default == old.name else ''}the default.")


def _added(management: ManagementClient, archive: str, before: Set[str], problem: BaseException) -> str | None:
    """The version that a failed rollout registered; None if there is none."""
    added = management.added(archive, before)
    # The server may still be processing an interrupted registration.
    answered = isinstance(problem, ClientError) and not isinstance(problem, UnreachableError)
    deadline = time.monotonic() + REGISTRATION_S
    while added is None and not answered and time.monotonic() < deadline:
        time.sleep(POLL_S)
        added = management.added(archive, before)
    return added


def _unregister(version: str, model: str) -> str:
    """The command that removes a version, quoted for a shell: the version's name comes from the server."""
    return f"`sentiment unregister {shlex.quote(version)}{model_option(model)}`"


def model_option(model: str) -> str:
    """The option `--model` for commands that are shown to the user, quoted for a shell; empty for the default model."""
    return "" if model == MODEL else f" --model {shlex.quote(model)}"


def _has_changed(old: Prediction, new: Prediction, tolerance: float | None) -> bool:
    if tolerance is not None and old.value is not None and new.value is not None:
        # If all numbers are equal, the standard deviation is 0, and a rounding difference must not count.
        return abs(new.value - old.value) > tolerance and not isclose(new.value, old.value, rel_tol=ROUNDING)
    return (old.kind, old.label, set(old.labels or ())) != (new.kind, new.label, set(new.labels or ()))


def _difference(old: Prediction, new: Prediction) -> float | None:
    """The difference between two predictions of a text; None if they share no label."""
    if old.value is not None and new.value is not None:
        return abs(new.value - old.value)
    return max(
        (abs(old.scores[label] - new.scores[label]) for label in old.scores if label in new.scores), default=None
    )


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - MAX_LABELS_SHOWN
    return ", ".join(labels[:MAX_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _timed(client: InferenceClient, text: str, times_s: list[float]) -> Prediction:
    started = time.perf_counter()
    prediction = client.predict(text)
    times_s.append(time.perf_counter() - started)
    return prediction
