"""The data of `sentiment status`: the state of both addresses, the versions with their workers, the model's card."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from sentiment.errors import ClientError, NotAuthorizedError, RefusedError, UnexpectedAnswerError
from sentiment.fields import field, probability
from sentiment.inference import InferenceClient
from sentiment.management import ManagementClient, Version
from sentiment.terminal import WIDTH, cut, one_line, table

COMMIT_DIGITS = 12


@dataclass(frozen=True)
class Status:
    inference: str
    """`Healthy`, or why the address does not answer."""

    management: str
    """The same."""

    models: tuple[str, ...]
    """The names of all models that are registered."""

    versions: tuple[Version, ...]
    card: Mapping[str, Any]
    """The default version's card; empty if none of its workers is ready."""

    @property
    def reachable(self) -> bool:
        return self.inference == self.management == "Healthy"

    def to_json(self) -> dict[str, Any]:
        return {
            "inference": self.inference,
            "management": self.management,
            "models": list(self.models),
            "versions": [
                {
                    "version": version.name,
                    "default": version.default,
                    "ready": version.ready,
                    "workers": list(version.worker_states),
                    "pending_requests": version.pending_requests,
                    "archive": version.archive,
                }
                for version in self.versions
            ],
            "card": dict(self.card),
        }

    def __str__(self) -> str:
        parts = [f"inference   {one_line(self.inference)}\nmanagement  {one_line(self.management)}"]
        if len(self.models) > 1:
            parts[0] += f"\nmodels      {one_line(', '.join(self.models))}"
        if self.versions:
            rows = [["version", "default", "workers", "queue", "batch", "archive"]]
            for version in self.versions:
                default, queue = "yes" if version.default else "", str(version.pending_requests)
                batch = str(version.settings.batch_size)
                rows.append([version.name, default, version.workers(), queue, batch, version.archive])
            parts.append(table(rows))
        if self.card:
            parts.append("\n".join(cut(f"{name:<12}{what}", WIDTH) for name, what in facts(self.card)))
        return "\n\n".join(parts)


def status(inference: InferenceClient, management: ManagementClient) -> Status:
    """Ask both addresses. An address that does not answer is part of the status, not an error.

    Raises:
        NotAuthorizedError: an address wants a token, or another one.
        RefusedError: with status 404, there is no such model.
    """
    models: list[str] = []
    versions: list[Version] = []
    card: Mapping[str, Any] = {}
    try:
        health = inference.health()
    except NotAuthorizedError:
        raise
    except ClientError as error:
        health = str(error)
    try:
        models = management.models()
        versions = management.versions()
        seen = "Healthy"
        if any(version.default and "READY" in version.worker_states for version in versions):
            card = management.card()
    except NotAuthorizedError:
        raise
    except ClientError as error:
        if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
            raise
        seen = str(error)
    return Status(health, seen, tuple(models), tuple(versions), card)


def facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A card's key facts as pairs of name and text: model, accuracy, export, commit, command, precision."""
    exported = _part(card, "exported")
    found = [("model", str(card.get("notes", "")).partition("\n\n")[0].replace("\n", " "))]
    for split, figures in _part(card, "metrics").items():
        if split != "train":
            found.append(("accuracy", _accuracy(split, figures)))
    found.append(("exported", str(exported.get("at", ""))))
    found.append(("commit", str(exported.get("commit") or "")[:COMMIT_DIGITS]))
    found.append(("command", str(exported.get("command", ""))))
    found.append(("precision", _precision(_part(card, "archive"))))
    return [(name, one_line(what)) for name, what in found if what]


def _part(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = card.get(name)
    return part if isinstance(part, dict) else {}


def _precision(archive: Mapping[str, Any]) -> str:
    """The archive's precision, with its measured difference from float32 where the card has one."""
    precision = str(archive.get("precision", ""))
    difference, texts = _part(_part(archive, "differences"), precision), _part(archive, "texts")
    try:
        largest, count = field(difference, "largest", float), field(difference, "texts", int)
        source = field(texts, "source", str)
    except UnexpectedAnswerError:
        return precision
    kind = "estimated" if texts.get("made_up") is True else "measured"
    return f"{precision} ({kind}: at most {largest:.4f} from float32; {count:,} texts, {source})"


def _accuracy(split: str, figures: object) -> str:
    """A split's figures; empty where the card has others."""
    try:
        accuracy = probability(field(figures, "accuracy", float), "accuracy")
        macro_f1 = probability(field(figures, "macro_f1", float), "macro_f1")
        return f"{accuracy:.3f}, macro-F1 {macro_f1:.3f} ({split}, {field(figures, 'n', int):,} texts)"
    except UnexpectedAnswerError:
        return ""
