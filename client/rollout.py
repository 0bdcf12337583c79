"""A new version in the old one's place without a lost request, and back.

The new version is registered beside the old one, waited for, warmed and compared; only then it becomes the default. The
old one goes when nothing can wait for it any more. Whatever fails before leaves the old one as it was.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from statistics import median

from client.errors import ClientError, RefusedError, RolloutError, UnreachableError
from client.inference import InferenceClient, Prediction
from client.management import POLL_S, ManagementClient, Version

MAX_CHANGED = 0.2
QUEUE_TIMEOUT_S = 120.0
REGISTRATION_S = 5.0
"""How long after an interrupted registration the version may still appear."""

Say = Callable[[str], None]
Ask = Callable[[str], InferenceClient]
"""A version to a client that asks it."""


@dataclass(frozen=True)
class Change:
    text: str
    old: str
    new: str


@dataclass(frozen=True)
class Comparison:
    """Two versions, asked the same texts in turn."""

    texts: int
    changes: tuple[Change, ...]
    """The texts that have another label."""

    largest_difference: float
    """Of the probabilities that the two give to a label, for any text."""

    old_median_ms: float
    new_median_ms: float


@dataclass(frozen=True)
class Outcome:
    """What is now the default, what was, and whether that is still registered."""

    new: str
    old: str
    old_archive: str
    old_kept: bool
    comparison: Comparison | None


@dataclass(frozen=True)
class Switch:
    """What a rollout and a rollback need."""

    management: ManagementClient
    ask: Ask
    sample: Sequence[str]
    drain_s: float | None
    """How long the old version is left for what its workers still hold, which TorchServe does not tell. None: its
    response timeout; after that TorchServe itself takes a worker for hung."""

    say: Say

    def rollout(self, archive: str, max_changed: float = MAX_CHANGED, keep_old: bool = False) -> Outcome:
        """Register `archive`, of the server's model store, and make it the default.

        Args:
            max_changed: more than this share of the sample's labels changed is a failure.
            keep_old: leave the old version registered.

        Raises:
            RolloutError: too many labels changed; another version than the new one answered, or became the default.
            NotReadyError: the new version does not load.
            ClientError: see `Transport.send`. In every case the default is as it was, if nobody else changed it.
        """
        old = self.management.default()
        with old_stays(self.management, old, archive, self.say):
            new = self._register(archive, old)
            self._warm(new)
            comparison = self.compare(old.name, new)
            self._report(comparison)
            changed = len(comparison.changes) / comparison.texts
            if changed > max_changed:
                raise RolloutError(
                    f"{changed:.0%} of the labels changed; at most {max_changed:.0%} may (--max-changed)."
                )
            self._set_default(new, instead_of=old.name)
        old_kept = keep_old or not remove(self.management, old, self.drain_s, self.say)
        return Outcome(new, old.name, old.archive, old_kept, comparison)

    def rollback(self, archive: str | None = None) -> Outcome:
        """Make another version the default, and remove the present one.

        Args:
            archive: of the other version, registered if need be. None: the one other version that is registered.

        Raises:
            RolloutError: there is no other version, or more than one; another became the default meanwhile.
            ClientError: as `rollout`.
        """
        versions = self.management.versions()
        present = next(version for version in versions if version.default)
        others = [version for version in versions if not version.default and archive in (None, version.archive)]
        if archive is None and len(others) != 1:
            names = ", ".join(version.name for version in others) or "no other"
            raise RolloutError(f"Beside {present.name}, {names} is registered. Name the archive to go back to.")
        if others:
            target = others[0].name
            self.say(f"Version {target} ({others[0].archive}) is registered; waiting for its workers ...")
            self.management.scale(max(present.settings.workers, others[0].settings.workers), target)
            self._warm(target)
            self._set_default(target, instead_of=present.name)
        else:
            assert archive is not None
            with old_stays(self.management, present, archive, self.say):
                target = self._register(archive, present)
                self._warm(target)
                self._set_default(target, instead_of=present.name)
        old_kept = not remove(self.management, present, self.drain_s, self.say)
        return Outcome(target, present.name, present.archive, old_kept, None)

    def compare(self, old: str, new: str) -> Comparison:
        """Ask both versions for each text of the sample, in turn, so that both meet the same load."""
        changes: list[Change] = []
        differences = [0.0]
        times_s: dict[str, list[float]] = {old: [], new: []}
        with self.ask(old) as old_client, self.ask(new) as new_client:
            for text in self.sample:
                first = _timed(old_client, text, times_s[old])
                second = _timed(new_client, text, times_s[new])
                if first.label != second.label:
                    changes.append(Change(text, first.label, second.label))
                both = first.scores.keys() | second.scores.keys()
                differences += [abs(first.scores.get(label, 0) - second.scores.get(label, 0)) for label in both]
        medians_ms = [median(times_s[version]) * 1e3 for version in (old, new)]
        return Comparison(len(self.sample), tuple(changes), max(differences), *medians_ms)

    def _register(self, archive: str, like: Version) -> str:
        """Register an archive, with another version's settings; returns its version when its workers answer."""
        self.say(f"The default is version {like.name} ({like.archive}): {like.workers()}.")
        new = self.management.register(archive, like.settings)
        self.say(f"Registered {archive} as version {new}; waiting for {like.settings.workers} workers ...")
        self.management.wait_until_ready(new)
        return new

    def _warm(self, version: str) -> None:
        with self.ask(version) as client:
            predictions = client.predict_many(self.sample)
        answered = {prediction.model_version for prediction in predictions} - {None, version}
        if answered:
            raise RolloutError(f"Version {version} was asked, and {', '.join(map(str, answered))} answered.")
        self.say(f"Warmed it with {len(self.sample)} texts.")

    def _report(self, comparison: Comparison) -> None:
        for change in comparison.changes:
            self.say(f"  {change.old} -> {change.new}: {change.text}")
        self.say(
            f"Compared: {len(comparison.changes)} of {comparison.texts} labels changed, the largest difference of a "
            f"score is {comparison.largest_difference:.4f}; median {comparison.old_median_ms:.1f} ms before, "
            f"{comparison.new_median_ms:.1f} ms now."
        )

    def _set_default(self, version: str, instead_of: str) -> None:
        default = self.management.default().name
        if default != instead_of:
            raise RolloutError(f"Version {default} has become the default meanwhile: another rollout is going on.")
        self.management.set_default(version)
        self.say(f"Version {version} is the default.")


def remove(management: ManagementClient, old: Version, drain_s: float | None, say: Say) -> bool:
    """Wait until nothing can wait for a version, and remove it. Returns False, having said why, if it stays.

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
        say(f"{stays}: interrupted.")
        return False
    except ClientError as error:
        say(f"{stays}: {error}")
        return False
    say(f"Removed version {version}.")
    return True


@contextmanager
def old_stays(management: ManagementClient, old: Version, archive: str, say: Say) -> Iterator[None]:
    """Whatever goes wrong, have the old version as the default, and what came from `archive` removed."""
    before = {version.name for version in management.versions()}
    try:
        yield
    except BaseException as problem:
        try:
            # Refused as registered already, it is another's: somebody else's rollout was first.
            anothers = isinstance(problem, RefusedError) and problem.status == HTTPStatus.CONFLICT
            added = None if anothers else management.added(archive, before)
            # An interrupted registration may still go on.
            answered = isinstance(problem, ClientError) and not isinstance(problem, UnreachableError)
            deadline = time.monotonic() + REGISTRATION_S
            while added is None and not answered and time.monotonic() < deadline:
                time.sleep(POLL_S)
                added = management.added(archive, before)
            if added is not None:
                if management.version(added).default:
                    management.set_default(old.name)
                management.unregister(added)
                say(f"Removed version {added}.")
            default = management.default().name
            say(f"Version {default} is the default{', as before' if default == old.name else ''}.")
        except ClientError as error:
            say(f"Could not put everything back: {error}. `sentiment status` shows what is there.")
        raise


def _timed(client: InferenceClient, text: str, times_s: list[float]) -> Prediction:
    started = time.perf_counter()
    prediction = client.predict(text)
    times_s.append(time.perf_counter() - started)
    return prediction
