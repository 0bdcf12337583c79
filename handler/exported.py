"""The exported model: a folder of plain data. Its format is stated in `docs/reference/model-format.md`.

Reading it runs no code from it. Everything is checked before it is used, and what is wrong is named.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from handler.drift import Reference
from handler.task import TASKS, Task, TaskName
from handler.tokens import SpacyRules, Tokenizer, TokenizerConfig

FORMAT: Final = "fastai-awd-lstm-classifier"
FORMAT_VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
VOCABULARY_FILE: Final = "vocabulary.json"
WEIGHTS_FILE: Final = "weights.safetensors"
CARD_FILE: Final = "card.json"
FILES: Final = (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, CARD_FILE)
PIECES_FILE: Final = "sentencepiece.model"
"""Of a model whose tokenizer is SentencePiece's."""

REFERENCE_KEY: Final = "reference"


Probabilities = npt.NDArray[np.float32]
"""Of N texts' labels, (N, C); of a regression the values, (N, 1)."""


class ExportedModelError(Exception):
    """The folder is not an exported model of this format. The message names the file and what was expected."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes, under the names of `config.json`."""

    vocabulary_size: int
    embedding_size: int
    """E; the last LSTM's size too."""

    hidden_size: int
    """H, of every LSTM but the last."""

    layers: int
    head_sizes: tuple[int, ...]
    """Inputs of each block of the head, then its outputs: (3 E, ..., C)."""

    chunk_tokens: int = 72
    """fastai reads a text in chunks of this many tokens (`bptt`)."""

    pooled_tokens: int | None = 1440
    """fastai pools over the chunks that begin within this many tokens of the end (`max_len`); None: over all."""

    normalization_epsilon: float = 1e-5

    @property
    def lstm_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each LSTM."""
        return list(pairwise([self.embedding_size, *[self.hidden_size] * (self.layers - 1), self.embedding_size]))

    @property
    def seen_tokens(self) -> float:
        """The most tokens of a text whose beginning is pooled; infinite where pooling takes all of any text."""
        return math.inf if self.pooled_tokens is None else max(self.pooled_tokens, self.chunk_tokens)

    def pooling_start(self, length: int) -> int:
        """The first pooled position of a text of `length` tokens, which is always the beginning of a chunk."""
        if self.pooled_tokens is None:
            return 0
        before = max(length - self.pooled_tokens, 0)
        # Where `pooled_tokens` is under a chunk, fastai pools over a last chunk only if it is short enough; the
        # last chunk is taken here in any case, so that there is always something to pool.
        last_chunk = (length - 1) // self.chunk_tokens
        return min(-(-before // self.chunk_tokens), last_chunk) * self.chunk_tokens

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocabulary_size, self.embedding_size)}
        for index, (inputs, outputs) in enumerate(self.lstm_sizes):
            shapes[f"lstm.{index}.weight_ih_l0"] = (4 * outputs, inputs)
            shapes[f"lstm.{index}.weight_hh_l0"] = (4 * outputs, outputs)
            shapes |= {f"lstm.{index}.{name}": (4 * outputs,) for name in ("bias_ih_l0", "bias_hh_l0")}
        for index, (inputs, outputs) in enumerate(pairwise(self.head_sizes)):
            shapes |= {f"head.{index}.{name}": (inputs,) for name in ("mean", "variance", "scale", "shift")}
            shapes[f"head.{index}.weight"] = (outputs, inputs)
        return shapes


class Network(Protocol):
    """Token ids to probabilities."""

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts given as ids, each at least one."""


@dataclass(frozen=True)
class Member:
    """A network of an ensemble."""

    backwards: bool
    """As `ModelConfig.backwards`."""

    network: NetworkConfig


@dataclass(frozen=True)
class ModelConfig:
    """`config.json`: everything but vocabulary and weights."""

    labels: tuple[str, ...]
    """Output `i` of the network is the probability of label `i`. A regression has none, and one output."""

    backwards: bool
    """Whether the network reads a text from its end (fastai's `backwards=True`)."""

    tokenizer: TokenizerConfig
    network: NetworkConfig

    task: TaskName = "single-label"
    """Absent from the file: single-label."""

    thresholds: tuple[float, ...] = ()
    """See `Task`; absent from the file where the task has none."""

    value_range: tuple[float, float] | None = None
    """See `Task`; absent from the file where there is none."""

    ensemble: tuple[Member, ...] = ()
    """More networks, of which the outputs' mean with the first one's is taken; absent from the file where there are
    none. They share labels, tokenizer and vocabulary."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All networks, the first one too."""
        return (Member(self.backwards, self.network), *self.ensemble)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of all networks."""
        return {
            prefix_of(index) + name: shape
            for index, member in enumerate(self.members)
            for name, shape in member.network.tensor_shapes().items()
        }

    @property
    def predicts(self) -> Task:
        """What the network's outputs mean."""
        return Task(self.labels, self.task, self.thresholds, self.value_range)


def prefix_of(member: int) -> str:
    """What stands before the names of a network's weights: nothing for the first one."""
    return f"ensemble.{member}." if member else ""


@dataclass(frozen=True)
class Description:
    """All of a model but its weights: what an exported model and an archive have alike."""

    config: ModelConfig
    vocabulary: tuple[str | None, ...]
    card: dict[str, Any]
    pieces: bytes | None = field(default=None, kw_only=True)
    """SentencePiece's model, of a tokenizer of that kind."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            ValueError: see `Tokenizer`.
            ImportError: a language that spaCy does not know.
        """
        return Tokenizer(self.config.tokenizer, self.vocabulary, self.pieces)

    @cached_property
    def reference(self) -> Reference | None:
        """The training data's distributions; None where the card has none.

        Raises:
            ValueError: the card has them in another form.
        """
        value = self.card.get(REFERENCE_KEY)
        return None if value is None else Reference.from_json(value, self.config.labels)


@dataclass(frozen=True)
class ExportedModel(Description):
    weights: dict[str, npt.NDArray[Any]]
    """By name, as `ModelConfig.tensor_shapes` has them; float32, or float16 where that loses nothing."""

    @property
    def members(self) -> tuple["ExportedModel", ...]:
        """A model for each network of an ensemble; the model itself, if it is none."""
        return tuple(self._member(index, member) for index, member in enumerate(self.config.members))

    def _member(self, index: int, member: Member) -> "ExportedModel":
        config = replace(self.config, backwards=member.backwards, network=member.network, ensemble=())
        names = {name: prefix_of(index) + name for name in member.network.tensor_shapes()}
        return replace(self, config=config, weights={name: self.weights[full] for name, full in names.items()})


def read(folder: Path) -> ExportedModel:
    """Read an exported model.

    Raises:
        ExportedModelError: a file is missing, damaged, of another version, or does not fit the others.
    """
    # Not at the top: whoever serves reads the weights from the archive's graph, and has no need of it.
    import safetensors.numpy

    description = _read_description(folder)
    try:
        weights = safetensors.numpy.load_file(_existing(folder / WEIGHTS_FILE))
    except (safetensors.SafetensorError, OSError) as error:
        raise ExportedModelError(f"{folder / WEIGHTS_FILE}: expected a safetensors file: {error}") from error
    model = ExportedModel(
        description.config, description.vocabulary, description.card, weights, pieces=description.pieces
    )
    check(model, folder)
    return model


def read_description(folder: Path) -> Description:
    """Read all of a model but its weights, from an exported model's folder or an archive's.

    Raises:
        ExportedModelError: as `read`.
    """
    description = _read_description(folder)
    _check(description, folder)
    return description


def _read_description(folder: Path) -> Description:
    """Each part of the form it should have; whether they fit one another is for `_check`."""
    config = _config_from_json(_read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    vocabulary = _read_json(folder / VOCABULARY_FILE)
    if not isinstance(vocabulary, list) or not all(token is None or isinstance(token, str) for token in vocabulary):
        raise ExportedModelError(f"{folder / VOCABULARY_FILE}: expected a list of strings and nulls.")
    card = _read_json(folder / CARD_FILE)
    if not isinstance(card, dict):
        raise ExportedModelError(f"{folder / CARD_FILE}: expected a JSON object.")
    has_pieces = config.tokenizer.kind == "sentencepiece"
    pieces = _existing(folder / PIECES_FILE).read_bytes() if has_pieces else None
    return Description(config, tuple(vocabulary), card, pieces=pieces)


def write(model: ExportedModel, folder: Path) -> None:
    """Write an exported model into a folder, which is made if it is not there."""
    import safetensors.numpy

    _check_weights(model, folder)
    write_description(model, folder)
    # `save_file` makes a file that its owner alone can read, whatever the umask.
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(model.weights))


def write_description(model: Description, folder: Path) -> None:
    """Write all of a model but its weights."""
    _check(model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION}
    config = asdict(model.config)
    # What most models do not have is left out, so that readers of before read these models.
    for part, defaults in ((config["tokenizer"], TokenizerConfig), (config, ModelConfig)):
        for optional in fields(defaults):
            if optional.default is not MISSING and optional.default == part[optional.name]:
                del part[optional.name]
    _write_json(header | config, folder / CONFIG_FILE)
    _write_json(model.vocabulary, folder / VOCABULARY_FILE)
    _write_json(model.card, folder / CARD_FILE)
    if model.pieces is not None:
        (folder / PIECES_FILE).write_bytes(model.pieces)


def check(model: ExportedModel, folder: Path = Path()) -> None:
    """Whether the parts of a model fit one another.

    Args:
        folder: named in the errors; empty for a model that is in none.

    Raises:
        ExportedModelError: they do not, or a weight is no number.
    """
    _check(model, folder)
    _check_weights(model, folder)


def identity(folder: Path) -> str:
    """SHA-256 over the files that decide the answers: config, vocabulary, weights, and the tokenizer's model if there
    is one."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, PIECES_FILE):
        if name != PIECES_FILE or (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check(model: Description, folder: Path) -> None:
    config, network = model.config, model.config.network
    if len(model.vocabulary) != network.vocabulary_size:
        raise ExportedModelError(
            f"{folder / VOCABULARY_FILE}: the vocabulary has {len(model.vocabulary)} entries, "
            f"the network {network.vocabulary_size} embeddings."
        )
    _check_task(config, folder / CONFIG_FILE)
    sizes = {(member.network.vocabulary_size, member.network.head_sizes[-1]) for member in config.members}
    if len(sizes) > 1:
        raise ExportedModelError(
            f"{folder / CONFIG_FILE}: the networks of the ensemble differ in the size of their vocabulary or in the "
            f"number of their outputs."
        )
    for name, texts in ((CONFIG_FILE, config.labels), (VOCABULARY_FILE, filter(None, model.vocabulary))):
        for text in texts:
            if not is_unicode(text):
                raise ExportedModelError(f"{folder / name}: {text!a} has half of a surrogate pair.")
    try:
        _ = model.tokenizer
    except (ValueError, ImportError) as error:
        raise ExportedModelError(f"{folder / CONFIG_FILE}: {error}") from error
    try:
        if model.reference is not None and config.task != "single-label":
            raise ValueError("only a single-label model has one")
    except ValueError as error:
        raise ExportedModelError(f"{folder / CARD_FILE}: `{REFERENCE_KEY}`: {error}.") from error


def _check_task(config: ModelConfig, path: Path) -> None:
    """Whether outputs, labels, thresholds and range go with the task."""
    outputs = config.network.head_sizes[-1]
    if config.task not in TASKS:
        raise ExportedModelError(f"{path}: `task` is {config.task!r}; expected one of {', '.join(TASKS)}.")
    if config.task == "regression":
        if config.labels or outputs != 1:
            raise ExportedModelError(f"{path}: a regression has no labels and one output; found {outputs} outputs.")
    elif len(config.labels) != outputs or len(set(config.labels)) != len(config.labels):
        raise ExportedModelError(f"{path}: expected {outputs} labels, all different; found {', '.join(config.labels)}.")
    expected = len(config.labels) if config.task == "multi-label" else 0
    if len(config.thresholds) != expected or not all(map(_is_number, config.thresholds)):
        raise ExportedModelError(f"{path}: expected {expected} numbers as `thresholds`; found {config.thresholds!r}.")
    if config.value_range is not None:
        low, high = config.value_range if len(config.value_range) == 2 else (None, None)
        if config.task != "regression" or not _is_number(low) or not _is_number(high) or not low < high:
            raise ExportedModelError(
                f"{path}: `value_range` is {config.value_range!r}; expected the least and the greatest value of a "
                f"regression."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_weights(model: ExportedModel, folder: Path) -> None:
    expected = model.config.tensor_shapes()
    found = {name: value.shape for name, value in model.weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ExportedModelError(
                f"{folder / WEIGHTS_FILE}: tensor {name} has the shape {found.get(name)}, "
                f"expected {expected.get(name)} from {CONFIG_FILE}."
            )
        if model.weights[name].dtype not in (np.float16, np.float32):
            raise ExportedModelError(
                f"{folder / WEIGHTS_FILE}: tensor {name} is {model.weights[name].dtype}; expected float16 or float32."
            )
        if not np.isfinite(model.weights[name]).all():
            raise ExportedModelError(f"{folder / WEIGHTS_FILE}: tensor {name} has values that are no numbers.")


def _config_from_json(value: object, path: Path) -> ModelConfig:
    if not isinstance(value, dict):
        raise ExportedModelError(f"{path}: expected a JSON object.")
    if (value.get("format"), value.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ExportedModelError(
            f"{path}: expected format {FORMAT}, version {FORMAT_VERSION}; "
            f"found {value.get('format')}, {value.get('format_version')}."
        )
    try:
        parts = {
            part.name: value[part.name] for part in fields(ModelConfig) if part.default is MISSING or part.name in value
        }
        parts["labels"] = tuple(map(str, parts["labels"]))
        for name in ("thresholds", "value_range"):
            if name in parts:
                parts[name] = tuple(parts[name])
        parts["tokenizer"] = _tokenizer_from_json(parts["tokenizer"])
        parts["network"] = NetworkConfig(**_tuples(parts["network"]))
        if "ensemble" in parts:
            parts["ensemble"] = tuple(map(_member_from_json, parts["ensemble"]))
    except KeyError as error:
        raise ExportedModelError(f"{path}: {error} is missing.") from error
    except TypeError as error:
        raise ExportedModelError(f"{path}: {error}.") from error
    config = ModelConfig(**parts)
    for member in config.members:
        _check_sizes(member.network, path)
    return config


def _member_from_json(value: object) -> Member:
    parts = _tuples(value)
    return Member(**parts | {"network": NetworkConfig(**_tuples(parts.get("network")))})


def _tokenizer_from_json(value: object) -> TokenizerConfig:
    parts = _tuples(value)
    if parts.get("spacy_rules") is not None:
        rules = _tuples(parts["spacy_rules"])
        rules["special_cases"] = _tuples(rules.get("special_cases"))
        parts["spacy_rules"] = SpacyRules(**rules)
    return TokenizerConfig(**parts)


def _check_sizes(network: NetworkConfig, path: Path) -> None:
    head, epsilon = network.head_sizes, network.normalization_epsilon
    if not isinstance(head, tuple) or len(head) < 2:
        raise ExportedModelError(f"{path}: `head_sizes` is {head}; expected at least two sizes.")
    names = ("vocabulary_size", "embedding_size", "hidden_size", "layers", "chunk_tokens", "pooled_tokens")
    sizes = [(name, getattr(network, name)) for name in names] + [("head_sizes", size) for size in head]
    for name, size in sizes:
        if (name, size) == ("pooled_tokens", None):
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ExportedModelError(f"{path}: `{name}` has {size!r}; expected a whole number from 1 on.")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ExportedModelError(f"{path}: `normalization_epsilon` is {epsilon!r}; expected a number above 0.")


def _tuples(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {value!r:.40}")
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ExportedModelError(f"{path} is missing. An exported model has the files {', '.join(FILES)}.")
    return path


def _read_json(path: Path) -> object:
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportedModelError(f"{path}: expected JSON in UTF-8: {error}") from error


def _write_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
