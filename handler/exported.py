"""Reads and writes exported models: folders of plain data in the format that `docs/reference/model-format.md` defines.

Reading a model runs no code from its files. Every file is checked before use; an error names the file and the fault.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from handler.drift import Reference
from handler.task import Task, TaskName
from handler.tokens import Tokenizer, TokenizerConfig
from handler.typed_json import from_json

FORMAT: Final = "fastai-awd-lstm-classifier"
FORMAT_VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
VOCABULARY_FILE: Final = "vocabulary.json"
WEIGHTS_FILE: Final = "weights.safetensors"
CARD_FILE: Final = "card.json"
FILES: Final = (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, CARD_FILE)
PIECES_FILE: Final = "sentencepiece.model"
"""SentencePiece's model. Only a model with a tokenizer of this kind has this file."""

REFERENCE_KEY: Final = "reference"

MAX_SIZE: Final = 10_000_000
"""Maximum of each size of a network except its layers. No real network comes close."""
MAX_LAYERS: Final = 100
"""Maximum number of a network's LSTMs. The names of all weights are made before they are compared with the file's."""

Probabilities = npt.NDArray[np.float32]
"""Probabilities of C labels for N texts, (N, C); for a regression the values, (N, 1)."""


class ExportedModelError(Exception):
    """The folder is not an exported model of this format. The message names the file and the expected content."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network, under their names in `config.json`."""

    vocabulary_size: int
    embedding_size: int
    """E, the size of the embeddings and of the last LSTM's outputs."""

    hidden_size: int
    """H, the size of the outputs of every LSTM except the last."""

    layers: int
    head_sizes: tuple[int, ...]
    """Number of inputs of each block of the head, then the number of outputs of the last block: (3 E, ..., C)."""

    chunk_tokens: int = 72
    """Number of tokens of a chunk, in which fastai reads a text (`bptt`)."""

    pooled_tokens: int | None = 1440
    """fastai pools over the chunks that begin within this number of tokens from the end (`max_len`); None for all."""

    normalization_epsilon: float = 1e-5

    @property
    def lstm_sizes(self) -> list[tuple[int, int]]:
        """Number of inputs and outputs of each LSTM."""
        return list(pairwise([self.embedding_size, *[self.hidden_size] * (self.layers - 1), self.embedding_size]))

    @property
    def lstm_weights(self) -> int:
        """Number of weights in the matrices of all LSTMs, on which the time of a token depends."""
        return sum(4 * outputs * (inputs + outputs) for inputs, outputs in self.lstm_sizes)

    @property
    def seen_tokens(self) -> float:
        """Maximum number of tokens of a text that is pooled from its beginning; infinite if every text is."""
        return math.inf if self.pooled_tokens is None else max(self.pooled_tokens, self.chunk_tokens)

    def pooling_start(self, length: int) -> int:
        """Return the first pooled position of a text of `length` tokens, which is always the beginning of a chunk."""
        if self.pooled_tokens is None:
            return 0
        before = max(length - self.pooled_tokens, 0)
        # If `pooled_tokens` is less than a chunk, fastai pools over the last chunk only if the chunk is short enough.
        # This method always includes the last chunk, so that pooling has at least one position.
        last_chunk = (length - 1) // self.chunk_tokens
        return min(-(-before // self.chunk_tokens), last_chunk) * self.chunk_tokens

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the weights."""
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
    """Computes probabilities from token ids."""

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C), for the token ids of N texts, each with at least one id."""


@dataclass(frozen=True)
class Member:
    """A network of an ensemble."""

    backwards: bool
    """Whether the network reads a text from its end, see `ModelConfig.backwards`."""

    network: NetworkConfig


@dataclass(frozen=True)
class ModelConfig:
    """The content of `config.json`: all of a model except its vocabulary, weights and card."""

    labels: tuple[str, ...]
    """Output `i` of the network is the probability of label `i`. A regression has no labels and one output."""

    backwards: bool
    """Whether the network reads a text from its end (fastai's `backwards=True`)."""

    tokenizer: TokenizerConfig
    network: NetworkConfig

    task: TaskName = "single-label"
    """The model's task. If the file has no task, it is single-label."""

    thresholds: tuple[float, ...] = ()
    """See `Task`. The file has thresholds only if the task has them."""

    value_range: tuple[float, float] | None = None
    """See `Task`. The file has a range only if the task has one."""

    ensemble: tuple[Member, ...] = ()
    """Further networks of an ensemble, which share labels, tokenizer and vocabulary with the first network.

    The model's outputs are the mean of all networks' outputs. The file of a model with one network has no ensemble.
    """

    @property
    def members(self) -> tuple[Member, ...]:
        """All networks, including the first."""
        return (Member(self.backwards, self.network), *self.ensemble)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the weights of all networks."""
        return {
            prefix_of(index) + name: shape
            for index, member in enumerate(self.members)
            for name, shape in member.network.tensor_shapes().items()
        }

    @property
    def predicts(self) -> Task:
        """The model's task, which defines the meaning of its outputs."""
        return Task(self.labels, self.task, self.thresholds, self.value_range)


def prefix_of(member: int) -> str:
    """Return the prefix of the names of a network's weights; empty for the first network."""
    return f"ensemble.{member}." if member else ""


@dataclass(frozen=True)
class Description:
    """All of a model except its weights: the part that an exported model and an archive share."""

    config: ModelConfig
    vocabulary: tuple[str | None, ...]
    card: dict[str, Any]
    pieces: bytes | None = field(default=None, kw_only=True)
    """SentencePiece's model, for a tokenizer of that kind."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ValueError: see `Tokenizer`.
            ImportError: spaCy does not know the language.
        """
        return Tokenizer(self.config.tokenizer, self.vocabulary, self.pieces)

    @cached_property
    def reference(self) -> Reference | None:
        """The training data's distributions; None if the card has none.

        Raises:
            ValueError: the distributions do not have the form that `docs/reference/model-format.md` defines.
        """
        value = self.card.get(REFERENCE_KEY)
        return None if value is None else Reference.from_json(value, self.config.labels)


@dataclass(frozen=True)
class ExportedModel(Description):
    """A model with its weights."""

    weights: dict[str, npt.NDArray[Any]]
    """The weights by name, see `ModelConfig.tensor_shapes`. They are float32, or float16 if that is exact."""

    @property
    def members(self) -> tuple["ExportedModel", ...]:
        """A model for each network. A model with one network has itself as its only member."""
        return tuple(self._member(index, member) for index, member in enumerate(self.config.members))

    def _member(self, index: int, member: Member) -> "ExportedModel":
        config = replace(self.config, backwards=member.backwards, network=member.network, ensemble=())
        names = {name: prefix_of(index) + name for name in member.network.tensor_shapes()}
        return replace(self, config=config, weights={name: self.weights[full] for name, full in names.items()})


def read(folder: Path) -> ExportedModel:
    """Read an exported model.

    Raises:
        ExportedModelError: a file is missing, damaged, of another version, or does not match the other files.
    """
    # A server needs no safetensors, because the graph of its archive has the weights.
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
    """Read all of a model except its weights, from the folder of an exported model or of an archive.

    Raises:
        ExportedModelError: see `read`.
    """
    description = _read_description(folder)
    _check(description, folder)
    return description


def read_config(folder: Path) -> ModelConfig:
    """Read a model's config alone, which takes little time. Whether the other files match it is not checked.

    Raises:
        ExportedModelError: the file is missing, damaged or of another version.
    """
    path = folder / CONFIG_FILE
    config = _config_from_json(_read_json(path), path)
    _check_config(config, path)
    return config


def _read_description(folder: Path) -> Description:
    """Read the files and check the form of each. `_check` checks whether they match each other."""
    config = _config_from_json(_read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    vocabulary = _read_json(folder / VOCABULARY_FILE)
    if not isinstance(vocabulary, list) or not all(token is None or isinstance(token, str) for token in vocabulary):
        raise ExportedModelError(f"{folder / VOCABULARY_FILE}: expected a list of strings and nulls.")
    if repeated := [token for token, count in Counter(vocabulary).items() if token is not None and count > 1]:
        raise ExportedModelError(f"{folder / VOCABULARY_FILE}: the token {repeated[0]!r} occurs more than once.")
    card = _read_json(folder / CARD_FILE)
    if not isinstance(card, dict):
        raise ExportedModelError(f"{folder / CARD_FILE}: expected a JSON object.")
    has_pieces = config.tokenizer.kind == "sentencepiece"
    pieces = _existing(folder / PIECES_FILE).read_bytes() if has_pieces else None
    return Description(config, tuple(vocabulary), card, pieces=pieces)


def write(model: ExportedModel, folder: Path) -> None:
    """Write an exported model into a folder, and create the folder if necessary.

    Raises:
        ExportedModelError: the parts of the model do not match each other.
    """
    import safetensors.numpy

    _check_weights(model, folder)
    write_description(model, folder)
    # Whatever the umask, `save_file` creates a file that only its owner can read.
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(model.weights))


def card_entry(card: object, *keys: str) -> str | None:
    """Return the string at a path of keys in a card; None if there is no string."""
    for key in keys:
        card = card.get(key) if isinstance(card, Mapping) else None
    return card if isinstance(card, str) else None


def write_description(model: Description, folder: Path) -> None:
    """Write all of a model except its weights.

    Raises:
        ExportedModelError: the parts of the model do not match each other.
    """
    _check(model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION}
    config = asdict(model.config)
    # Omit optional entries with their default, so that earlier versions of this code can read the file.
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
    """Check whether the parts of a model match each other.

    Args:
        model: the model.
        folder: the model's folder, for the error message; empty for a model without a folder.

    Raises:
        ExportedModelError: the parts do not match, or a weight is not a finite number.
    """
    _check(model, folder)
    _check_weights(model, folder)


def identity(folder: Path) -> str:
    """Return the SHA-256 of the files that determine the predictions.

    These are the config, the vocabulary, the weights, and SentencePiece's model if there is one.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, PIECES_FILE):
        if name != PIECES_FILE or (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check(model: Description, folder: Path) -> None:
    config, network = model.config, model.config.network
    _check_config(config, folder / CONFIG_FILE)
    if len(model.vocabulary) != network.vocabulary_size:
        raise ExportedModelError(
            f"{folder / VOCABULARY_FILE}: the vocabulary has {len(model.vocabulary)} entries, "
            f"the network {network.vocabulary_size} embeddings."
        )
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


def _check_config(config: ModelConfig, path: Path) -> None:
    for member in config.members:
        _check_sizes(member.network, path)
    _check_task(config, path)


def _check_task(config: ModelConfig, path: Path) -> None:
    """Check whether outputs, labels, thresholds and range match the task."""
    outputs = config.network.head_sizes[-1]
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
    shapes = {name: value.shape for name, value in model.weights.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise ExportedModelError(
                f"{folder / WEIGHTS_FILE}: tensor {name} has the shape {shapes.get(name)}, "
                f"expected {expected.get(name)} from {CONFIG_FILE}."
            )
        if model.weights[name].dtype not in (np.float16, np.float32):
            raise ExportedModelError(
                f"{folder / WEIGHTS_FILE}: tensor {name} is {model.weights[name].dtype}; expected float16 or float32."
            )
        if not np.isfinite(model.weights[name]).all():
            raise ExportedModelError(f"{folder / WEIGHTS_FILE}: tensor {name} has values that are not finite numbers.")


def _config_from_json(value: object, path: Path) -> ModelConfig:
    if not isinstance(value, dict):
        raise ExportedModelError(f"{path}: expected a JSON object.")
    if (value.get("format"), value.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ExportedModelError(
            f"{path}: expected format {FORMAT}, version {FORMAT_VERSION}; "
            f"found {shortened(value.get('format'))}, {shortened(value.get('format_version'))}."
        )
    # A later version of this code may add entries that an earlier one does not misread.
    known = {entry.name for entry in fields(ModelConfig)}
    try:
        config: ModelConfig = from_json({name: entry for name, entry in value.items() if name in known}, ModelConfig)
    except ValueError as error:
        raise ExportedModelError(f"{path}: {error}") from error
    return config


def _check_sizes(network: NetworkConfig, path: Path) -> None:
    head, epsilon = network.head_sizes, network.normalization_epsilon
    if len(head) < 2:
        raise ExportedModelError(f"{path}: `head_sizes` is {shortened(list(head))}; expected at least two sizes.")
    names = ("vocabulary_size", "embedding_size", "hidden_size", "layers", "chunk_tokens", "pooled_tokens")
    sizes = [(name, getattr(network, name)) for name in names] + [("head_sizes", size) for size in head]
    for name, size in sizes:
        largest = MAX_LAYERS if name == "layers" else MAX_SIZE
        if size is not None and not 1 <= size <= largest:
            raise ExportedModelError(
                f"{path}: `{name}` has {shortened(size)}; expected a whole number from 1 to {largest:,}."
            )
    if head[0] != 3 * network.embedding_size:
        raise ExportedModelError(
            f"{path}: `head_sizes` begins with {head[0]}; expected {3 * network.embedding_size}, three times "
            f"`embedding_size`."
        )
    if not 0 < epsilon < 1:
        raise ExportedModelError(f"{path}: `normalization_epsilon` is {epsilon!r}; expected a number above 0, below 1.")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ExportedModelError(f"{path} is missing. An exported model has the files {', '.join(FILES)}.")
    return path


def _read_json(path: Path) -> object:
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportedModelError(f"{path}: expected JSON in UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:  # Python's limits
        raise ExportedModelError(
            f"{path}: expected the JSON of a model; found a number of thousands of digits, or hundreds of levels."
        ) from error


def _write_json(value: object, path: Path) -> None:
    content = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    # The bytes of a file name that is not UTF-8, in the card's commands, become valid escapes of JSON.
    path.write_text(content, encoding="utf-8", errors="backslashreplace")
