"""The exported model: a folder of plain data. Its format is stated in `model_store/README.md`.

Reading it runs no code from it. Everything is checked before it is used, and what is wrong is named.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import safetensors
import safetensors.torch
from torch import Tensor

from handler.network import NetworkConfig, TextNetwork
from handler.tokens import Tokenizer, TokenizerConfig

FORMAT: Final = "fastai-awd-lstm-classifier"
FORMAT_VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
VOCABULARY_FILE: Final = "vocabulary.json"
WEIGHTS_FILE: Final = "weights.safetensors"
CARD_FILE: Final = "card.json"
FILES: Final = (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE, CARD_FILE)


class ExportedModelError(Exception):
    """The folder is not an exported model of this format. The message names the file and what was expected."""


@dataclass(frozen=True)
class ModelConfig:
    """`config.json`: everything but vocabulary and weights."""

    labels: tuple[str, ...]
    """Output `i` of the network is the probability of label `i`."""

    backwards: bool
    """Whether the network reads a text from its end (fastai's `backwards=True`)."""

    tokenizer: TokenizerConfig
    network: NetworkConfig


@dataclass(frozen=True)
class ExportedModel:
    config: ModelConfig
    vocabulary: tuple[str | None, ...]
    weights: dict[str, Tensor]
    card: dict[str, Any]

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.config.tokenizer, self.vocabulary)

    def network(self) -> TextNetwork:
        """The fp32 network, ready for inference."""
        network = TextNetwork(self.config.network)
        network.load_state_dict(self.weights)  # what is stored in half precision is widened here, exactly
        return network.eval()


def read(folder: Path) -> ExportedModel:
    """Read an exported model.

    Raises:
        ExportedModelError: a file is missing, damaged, of another version, or does not fit the others.
    """
    config = _config_from_json(_read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    vocabulary = _read_json(folder / VOCABULARY_FILE)
    if not isinstance(vocabulary, list) or not all(token is None or isinstance(token, str) for token in vocabulary):
        raise ExportedModelError(f"{folder / VOCABULARY_FILE}: expected a list of strings and nulls.")
    try:
        weights = safetensors.torch.load_file(_existing(folder / WEIGHTS_FILE))
    except (safetensors.SafetensorError, OSError) as error:
        raise ExportedModelError(f"{folder / WEIGHTS_FILE}: expected a safetensors file: {error}") from error
    card = _read_json(folder / CARD_FILE)
    if not isinstance(card, dict):
        raise ExportedModelError(f"{folder / CARD_FILE}: expected a JSON object.")
    model = ExportedModel(config, tuple(vocabulary), weights, card)
    _check(model, folder)
    return model


def write(model: ExportedModel, folder: Path) -> None:
    """Write an exported model into a folder, which is made if it is not there."""
    _check(model, folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION}
    _write_json(header | asdict(model.config), folder / CONFIG_FILE)
    _write_json(model.vocabulary, folder / VOCABULARY_FILE)
    safetensors.torch.save_file(model.weights, folder / WEIGHTS_FILE)
    _write_json(model.card, folder / CARD_FILE)


def identity(folder: Path) -> str:
    """SHA-256 over the files that decide the answers: config, vocabulary and weights."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _check(model: ExportedModel, folder: Path) -> None:
    config, network = model.config, model.config.network
    if len(model.vocabulary) != network.vocabulary_size:
        raise ExportedModelError(
            f"{folder}: the vocabulary has {len(model.vocabulary)} entries, "
            f"the network {network.vocabulary_size} embeddings."
        )
    if len(config.labels) != network.head_sizes[-1] or len(set(config.labels)) != len(config.labels):
        raise ExportedModelError(
            f"{folder}: expected {network.head_sizes[-1]} labels, all different; found {', '.join(config.labels)}."
        )
    expected = {name: tuple(value.shape) for name, value in TextNetwork(network).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in model.weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ExportedModelError(
                f"{folder / WEIGHTS_FILE}: tensor {name} has the shape {found.get(name)}, "
                f"expected {expected.get(name)} from {CONFIG_FILE}."
            )
    try:
        model.tokenizer()
    except (ValueError, ImportError) as error:
        raise ExportedModelError(f"{folder / CONFIG_FILE}: {error}") from error


def _config_from_json(value: object, path: Path) -> ModelConfig:
    if not isinstance(value, dict):
        raise ExportedModelError(f"{path}: expected a JSON object.")
    if (value.get("format"), value.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ExportedModelError(
            f"{path}: expected format {FORMAT}, version {FORMAT_VERSION}; "
            f"found {value.get('format')}, {value.get('format_version')}."
        )
    try:
        fields = {name: value[name] for name in get_type_hints(ModelConfig)}
        fields["labels"] = tuple(map(str, fields["labels"]))
        fields["tokenizer"] = TokenizerConfig(**_tuples(fields["tokenizer"]))
        fields["network"] = NetworkConfig(**_tuples(fields["network"]))
    except KeyError as error:
        raise ExportedModelError(f"{path}: {error} is missing.") from error
    except TypeError as error:
        raise ExportedModelError(f"{path}: {error}.") from error
    return ModelConfig(**fields)


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
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
