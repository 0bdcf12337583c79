"""Replace the default version without a lost request, and go back.

The new version is registered beside the old one, waited for, warmed and compared; only then it becomes the default. The
old version is removed when no request can wait for it any more. If any step before fails, the old version stays the
default.

A rollout that was killed is finished by the same command. It takes over the version that is registered from the same
archive, or, if that is the default already, removes the old version.
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

MAX_CHANGED = 0.2
MAX_CHANGES_TOLD = 30
MAX_LABELS_TOLD = 10
ROUNDING = 1e-3
"""Numbers of a regression that differ by no larger share of themselves are the same."""
QUEUE_TIMEOUT_S = 120.0
"""How long a removal waits for the version's queue to become empty."""
REGISTRATION_S = 5.0
"""How long after an interrupted registration its version may still appear."""

_KINDS: Mapping[Kind, str] = {"label": "one label for each text", "labels": "any number of labels", "value": "a number"}

Say = Callable[[str], None]
Ask = Callable[[str], InferenceClient]
"""From a version's name to a client that asks this version."""


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
    """The texts whose label differs, whose labels differ, or whose numbers differ by more than `tolerance`."""

    tolerance: float | None
    """Of two regressions: the standard deviation of the old version's numbers. None for labels."""

    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    """Labels that the other version does not have."""

    largest_difference: float | None
    """The largest difference between the two probabilities of a label that both versions have, over all texts; of two
    regressions, between the two numbers. None if there is nothing to compare."""

    old_median_ms: float
    new_median_ms: float

    def changed(self) -> str:
        """What has changed, in words: `of the labels changed`."""
        if self.old_kind != self.new_kind:
            return "of the predictions are of another kind"
        if self.tolerance is not None:
            return f"of the numbers changed by more than {self.tolerance:.4g}, their standard deviation before"
        return "of the texts have other labels" if self.old_kind == "labels" else "of the labels changed"


@dataclass(frozen=True)
class Outcome:
    """The default version now, the one before, and whether that is still registered."""

    new: str
    old: str | None
    """None: the new version was the default already, and which one it replaced is not known."""

    old_archive: str | None
    old_kept: bool
    comparison: Comparison | None


@dataclass(frozen=True)
class Switch:
    """Rollouts and rollbacks of one model."""

    management: ManagementClient
    ask: Ask
    sample: Sequence[str]
    drain_s: float | None
    """The time in seconds between the last waiting request and the removal of the old version. Its workers may still
    hold requests then, which TorchServe does not report. None: the version's response timeout, after which TorchServe
    itself takes a worker for hung."""

    say: Say

    def rollout(self, archive: str, max_changed: float = MAX_CHANGED, keep_old: bool = False) -> Outcome:
        """Make the version in `archive`, of the server's model store, the default.

        Args:
            max_changed: more than this share of the sample's labels changed is a failure.
            keep_old: leave the old version registered.

        Raises:
            RolloutError: too many labels changed; another version than the new one answered, or became the default.
            NotReadyError: the new version does not load.
            ClientError: see `Transport.send`. In every case the default is as it was, if nobody else changed it.
        """
        versions = self.management.versions()
        old = next(version for version in versions if version.default)
        others = [version for version in versions if not version.default]
        if others and [version for version in versions if version.archive == archive] == [old]:
            return self._finish(old, others, keep_old)
        self.say(f"The default is version {old.name} ({old.archive}): {old.workers()}.")
        adopted = left_by_a_registration(versions, archive)
        if adopted is None:
            try:
                with old_stays(self.management, old, archive, self.say):
                    new = self._register(archive, old)
                    comparison = self._switch(old, new, max_changed)
            except RefusedError as error:
                adopted = self._conflicting(error, archive, old)
                if adopted.default:
                    others = [version for version in self.management.versions() if version.name != adopted.name]
                    return self._finish(adopted, others, keep_old)
        if adopted is not None:
            new = adopted.name
            with old_stays(self.management, old, archive, self.say, adopted=new):
                self.say(f"To roll out another version from a file of this name, run {self._unregister(new)} first.")
                self._adopt(adopted, old)
                comparison = self._switch(old, new, max_changed)
        old_kept = keep_old or not remove(self.management, old, self.drain_s, self.say)
        return Outcome(new, old.name, old.archive, old_kept, comparison)

    def rollback(self, archive: str | None = None) -> Outcome:
        """Make another version the default, and remove the present one.

        Args:
            archive: of the other version, registered if need be.

        Raises:
            RolloutError: no archive is named; the error names the versions to choose from. Or several versions are
                registered from it; or another became the default meanwhile.
            ClientError: as `rollout`.
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
            raise RolloutError(f"Versions {names} are registered from {archive}. Remove those not meant: {removals}.")
        if not targets and others and present.archive == archive:
            return self._finish(present, others, keep_old=True)
        adopted = targets[0] if targets else None
        if adopted is None:
            try:
                with old_stays(self.management, present, archive, self.say):
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
        """Ask both versions for each text of the sample. They take turns, so that both meet the same load."""
        pairs: list[tuple[Prediction, Prediction]] = []
        times_s: dict[str, list[float]] = {old: [], new: []}
        with self.ask(old) as old_client, self.ask(new) as new_client:
            for text in self.sample:
                first = _timed(old_client, text, times_s[old])
                second = _timed(new_client, text, times_s[new])
                pairs.append((first, second))
        values = [first.value for first, second in pairs if first.value is not None and second.value is not None]
        tolerance = pstdev(values) if len(values) == len(pairs) else None
        differences = [found for first, second in pairs if (found := _difference(first, second)) is not None]
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
        """Warm a version, compare it with the default, and make it the default."""
        self._warm(new)
        comparison = self.compare(old.name, new)
        self._report(comparison, old.name, new)
        changed = len(comparison.changes) / comparison.texts
        if changed > max_changed:
            most = f"at most {max_changed:.0%} may (--max-changed)"
            raise RolloutError(f"{changed:.0%} {comparison.changed()}; {most}.")
        self._set_default(new, instead_of=old.name)
        return comparison

    def _register(self, archive: str, like: Version) -> str:
        """Register an archive with the settings of the version `like`; returns its version when its workers answer."""
        new = self.management.register(archive, like.settings)
        self.say(f"Registered {archive} as version {new}; waiting for {like.settings.workers} workers ...")
        self.management.wait_until_ready(new)
        return new

    def _conflicting(self, error: RefusedError, archive: str, old: Version) -> Version:
        """The version that stands in the way of a registration and came from the same archive.

        The same command may have been run before, a moment ago too, or another rollout goes on.

        Raises:
            RefusedError: `error`, which has another reason, or names a version from another archive.
        """
        if error.status != HTTPStatus.CONFLICT:
            raise error
        versions = self.management.versions()
        for version in versions:
            # TorchServe: "Model version 2.0 is already registered for model sentiment"
            if version.archive == archive and f" {version.name} is already registered" in error.message:
                return version
        _tell_default(versions, old, self.say)
        raise error

    def _adopt(self, version: Version, like: Version) -> None:
        """Take over a version that is registered already. It gets at least as many workers as `like` has."""
        self.say(f"Version {version.name} is registered from {version.archive} already; waiting for its workers ...")
        self.management.scale(max(like.settings.workers, version.settings.workers), version.name)

    def _finish(self, new: Version, others: Sequence[Version], keep_old: bool) -> Outcome:
        """End a rollout that had switched already: remove the version that `new` replaced.

        That is the only other version, if it was started before. Any other version may be wanted: it is only named.
        """
        self.say(f"Version {new.name} ({new.archive}) is the default already.")
        self.management.wait_until_ready(new.name)
        if len(others) == 1 and others[0].older_than(new):
            [old] = others
            old_kept = keep_old or not remove(self.management, old, self.drain_s, self.say)
            return Outcome(new.name, old.name, old.archive, old_kept, None)
        for other in others:
            self.say(f"Version {other.name} stays registered; {self._unregister(other.name)} removes it.")
        return Outcome(new.name, None, None, bool(others), None)

    def _unregister(self, version: str) -> str:
        return _unregister(version, self.management.model)

    def _warm(self, version: str) -> None:
        with self.ask(version) as client:
            predictions = client.predict_many(self.sample)
        answered = {prediction.model_version for prediction in predictions} - {None, version}
        if answered:
            raise RolloutError(f"Version {version} was asked, and {', '.join(map(str, answered))} answered.")
        self.say(f"Warmed it with {len(self.sample)} texts.")

    def _report(self, comparison: Comparison, old: str, new: str) -> None:
        medians = f"median {comparison.old_median_ms:.1f} ms before, {comparison.new_median_ms:.1f} ms now."
        if comparison.old_kind != comparison.new_kind:
            before, now = _KINDS[comparison.old_kind], _KINDS[comparison.new_kind]
            self.say(f"Compared: version {old} predicts {before}, version {new} {now}; {medians}")
            return
        for change in comparison.changes[:MAX_CHANGES_TOLD]:
            self.say(f"  {change.old} -> {change.new}: {change.text}")
        if len(comparison.changes) > MAX_CHANGES_TOLD:
            self.say(f"  ... and {len(comparison.changes) - MAX_CHANGES_TOLD:,} more")
        for name, labels in ((old, comparison.only_old), (new, comparison.only_new)):
            if labels:
                self.say(
                    f"Only version {name} has {'these labels' if len(labels) > 1 else 'the label'}: {_few(labels)}."
                )
        largest = ""
        if comparison.largest_difference is not None:
            of_a_score = "" if comparison.tolerance is not None else " of a score"
            largest = f", the largest difference{of_a_score} is {comparison.largest_difference:.4f}"
        changed = comparison.changed().removeprefix("of the ")
        self.say(f"Compared: {len(comparison.changes)} of {comparison.texts} {changed}{largest}; {medians}")

    def _choices(self, present: Version, others: Sequence[Version]) -> str:
        """Why no version is gone back to where none is named. A version may have been the default, or registered to be
        looked at, or refused by a rollout: the server does not tell these apart."""
        if not others:
            return (
                f"No version is registered beside {present.name} ({present.archive}). Name the archive to go back to, "
                "as it is named in the server's model store."
            )
        choices = ", ".join(
            f"`sentiment rollback {shlex.quote(version.archive)}{of_model(self.management.model)}` (version "
            f"{version.name})"
            for version in others
        )
        return (
            f"Version {present.name} is the default. The server does not know which one was before. Choose: {choices}."
        )

    def _set_default(self, version: str, instead_of: str) -> None:
        default = self.management.default().name
        if default == version:
            self.say(f"Version {version} is the default: another rollout of it has switched.")
            return
        if default != instead_of:
            raise RolloutError(f"Version {default} has become the default meanwhile: another rollout is going on.")
        self.management.set_default(version)
        self.say(f"Version {version} is the default.")


def left_by_a_registration(versions: Sequence[Version], archive: str) -> Version | None:
    """The version that an earlier registration of `archive` left, so that it need not be asked for again.

    That version is newer than the default, and the only one from a file of this name. In every other case the file may
    have been replaced, and the server has to say which version is in it now: None.
    """
    default = next(version for version in versions if version.default)
    named = [version for version in versions if version.archive == archive]
    if len(named) != 1 or named == [default] or named[0].older_than(default):
        return None
    return named[0]


def remove(management: ManagementClient, old: Version, drain_s: float | None, say: Say) -> bool:
    """Drain and remove a version.

    Returns:
        Whether it is removed. If not, `say` was called with the reason.

    Args:
        drain_s: see `Switch`.
    """
    version = old.name
    drain_s = old.settings.response_timeout_s if drain_s is None else drain_s
    stays = f"Version {version} stays registered"
    try:
        deadline = time.monotonic() + QUEUE_TIMEOUT_S
        while pending := management.version(version).pending_requests:
            if time.monotonic() > deadline:
                say(f"{stays}: {pending} requests still wait for it after {QUEUE_TIMEOUT_S:g} s.")
                return False
            time.sleep(POLL_S)
        say(f"Nothing waits for version {version}; {drain_s:g} s for what its workers still hold ...")
        time.sleep(drain_s)
        management.unregister(version)
    except KeyboardInterrupt:
        say(f"{stays}: interrupted. {_unregister(version, management.model)} removes it.")
        raise
    except RefusedError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            say(f"Version {version} has been removed meanwhile.")
            return True
        say(f"{stays}: {error}")
        return False
    except ClientError as error:
        say(f"{stays}: {error}")
        return False
    say(f"Removed version {version}.")
    return True


@contextmanager
def old_stays(
    management: ManagementClient, old: Version, archive: str, say: Say, adopted: str | None = None
) -> Iterator[None]:
    """If anything fails, have the old version as the default, and remove the version that came from `archive`.

    A registration that is refused because its version is registered already (409) has changed nothing, and may be gone
    on from: nothing is undone or said.

    Args:
        adopted: the version from `archive` that was registered before. It stays registered.
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
                    say(f"Version {new} stays registered; {_unregister(new, management.model)} removes it.")
            _tell_default(management.versions(), old, say)
        except ClientError as error:
            say(f"Could not put everything back: {error}. `sentiment status` shows what is there.")
        raise


def _tell_default(versions: Sequence[Version], old: Version, say: Say) -> None:
    default = next(version.name for version in versions if version.default)
    say(f"Version {default} is the default{', as before' if default == old.name else ''}.")


def _added(management: ManagementClient, archive: str, before: Set[str], problem: BaseException) -> str | None:
    """The version that a failed rollout registered; None if it registered none."""
    added = management.added(archive, before)
    # An interrupted registration may still go on.
    answered = isinstance(problem, ClientError) and not isinstance(problem, UnreachableError)
    deadline = time.monotonic() + REGISTRATION_S
    while added is None and not answered and time.monotonic() < deadline:
        time.sleep(POLL_S)
        added = management.added(archive, before)
    return added


def _unregister(version: str, model: str) -> str:
    """The command that removes a version. The version's name is the server's: quoted, it can be pasted into a shell."""
    return f"`sentiment unregister {shlex.quote(version)}{of_model(model)}`"


def of_model(model: str) -> str:
    """The option that names a model, for commands that can be pasted into a shell; empty for the default."""
    return "" if model == MODEL else f" --model {shlex.quote(model)}"


def _has_changed(old: Prediction, new: Prediction, tolerance: float | None) -> bool:
    if tolerance is not None and old.value is not None and new.value is not None:
        # Where all numbers are alike, their deviation is 0, and rounding is no change.
        return abs(new.value - old.value) > tolerance and not isclose(new.value, old.value, rel_tol=ROUNDING)
    return (old.kind, old.label, set(old.labels or ())) != (new.kind, new.label, set(new.labels or ()))


def _difference(old: Prediction, new: Prediction) -> float | None:
    """None if there is nothing that both have."""
    if old.value is not None and new.value is not None:
        return abs(new.value - old.value)
    return max(
        (abs(old.scores[label] - new.scores[label]) for label in old.scores if label in new.scores), default=None
    )


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - MAX_LABELS_TOLD
    return ", ".join(labels[:MAX_LABELS_TOLD]) + (f" and {more} more" if more > 0 else "")


def _timed(client: InferenceClient, text: str, times_s: list[float]) -> Prediction:
    started = time.perf_counter()
    prediction = client.predict(text)
    times_s.append(time.perf_counter() - started)
    return prediction
