"""State of a server, for `sentiment status`: both addresses, the versions with their workers, the model's card."""

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
    """State of a server, and of one of its models."""

    inference: str
    """State of the inference address: `Healthy`, or the error."""

    management: str
    """State of the management address: `Healthy`, or the error."""

    models: tuple[str, ...]
    """Names of all registered models."""

    versions: tuple[Version, ...]
    card: Mapping[str, Any]
    """The default version's card; empty if none of its workers is ready."""

    @property
    def reachable(self) -> bool:
        """Whether both addresses are healthy."""
        return self.inference == self.management == "Healthy"

    def to_json(self) -> dict[str, Any]:
        """The state as the JSON object that `sentiment status --json` prints."""
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
            parts.append("\n".join(cut(f"{name:<12}{value}", WIDTH) for name, value in facts(self.card)))
        return "\n\n".join(parts)


def status(inference: InferenceClient, management: ManagementClient) -> Status:
    """Query both addresses. An address that does not answer is reported in the status, not raised.

    Raises:
        NotAuthorizedError: an address requires a token, or rejects the given one.
        RefusedError: status 404: the model is not registered.
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
        management_state = "Healthy"
        if any(version.default and "READY" in version.worker_states for version in versions):
            card = management.card()
    except NotAuthorizedError:
        raise
    except ClientError as error:
        if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
            raise
        management_state = str(error)
    return Status(health, management_state, tuple(models), tuple(versions), card)


def facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key facts of a card, as pairs of name and text: model, accuracy, export, commit, command, precision."""
    exported = _part(card, "exported")
    pairs = [("model", str(card.get("notes", "")).partition("\n\n")[0].replace("\n", " "))]
    for split, figures in _part(card, "metrics").items():
        if split != "train":
            pairs.append(("accuracy", _accuracy(split, figures)))
    pairs.append(("exported", str(exported.get("at", ""))))
    pairs.append(("commit", str(exported.get("commit") or "")[:COMMIT_DIGITS]))
    pairs.append(("command", str(exported.get("command", ""))))
    pairs.append(("precision", _precision(_part(card, "archive"))))
    return [(name, one_line(value)) for name, value in pairs if value]


def _part(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = card.get(name)
    return part if isinstance(part, dict) else {}


def _precision(archive: Mapping[str, Any]) -> str:
    """Precision of the archive, with its difference from float32 if the card contains one."""
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
    """Accuracy and macro-F1 of a split; empty if the card lacks these figures."""
    try:
        accuracy = probability(field(figures, "accuracy", float), "accuracy")
        macro_f1 = probability(field(figures, "macro_f1", float), "macro_f1")
        return f"{accuracy:.3f}, macro-F1 {macro_f1:.3f} ({split}, {field(figures, 'n', int):,} texts)"
    except UnexpectedAnswerError:
        return ""
