"""ULMFiT's first two stages: the general language model, and the language model on tweets.

A language model is kept in the form of fastai's own pretrained ones, a folder with one `.pth` (weights) and
one `.pkl` (vocabulary), so that fastai's `wt103`, one trained here and one from elsewhere load alike.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.text.all import (
    AWD_LSTM,
    Callback,
    ColReader,
    ColSplitter,
    DataBlock,
    Learner,
    Perplexity,
    TextBlock,
    URLs,
    accuracy,
    awd_lstm_lm_config,
    language_model_learner,
    load_pickle,
    make_vocab,
    save_pickle,
    to_float,
    tokenize_df,
    untar_data,
)

from training.data import existing, sha256_of
from training.errors import TrainingError
from training.settings import WT103, GeneralSettings, LanguageModelSettings
from training.stages.stage import Phase, Stage
from training.stages.transformer import fast_in_bfloat16, word_vectors
from training.tables import DAMAGED, OPENERS

GENERAL_FILE = "language_model.pth"
ENCODER_FILE = "encoder.pth"
VOCABULARY_FILE = "vocabulary.pkl"
HELD_OUT_FRACTION = 0.02
MAX_HELD_OUT = 2_000


class Bfloat16OnCPU(Callback):  # type: ignore[misc]  # fastai has no types
    """Autocast to bfloat16 on a CPU, as fastai's MixedPrecision does on CUDA.

    A fifth faster for a 300/600/2 language model on a CPU with bfloat16 instructions.
    """

    order = 10

    def before_fit(self) -> None:
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)

    def before_batch(self) -> None:
        self.autocast.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        self.learn.pred = to_float(self.pred)

    def after_loss(self) -> None:
        self.autocast.__exit__(None, None, None)


def callbacks() -> list[Callback]:
    """What makes training faster on this machine."""
    return [Bfloat16OnCPU()] if fast_in_bfloat16() and not torch.cuda.is_available() else []


def train_general(texts: list[Path], settings: GeneralSettings, folder: Path) -> None:
    """Stage 1: train a language model on text files, one document a line.

    Raises:
        TrainingError: a file that is missing or holds no text.
    """
    documents = pd.DataFrame({"text": [line for path in texts for line in read_lines(path)]})
    stage = Stage(folder, settings, hashes_of(texts))
    if not stage.begin():
        return
    held_out = documents.sample(
        n=max(1, min(MAX_HELD_OUT, int(len(documents) * HELD_OUT_FRACTION))), random_state=settings.seed
    )
    documents["is_valid"] = documents.index.isin(held_out.index)
    words = sum(len(text.split()) for text in held_out["text"])
    if len(documents) == 1 or words <= settings.batch_size:
        raise TrainingError(
            f"Too little text for a language model: {len(documents)} documents, of which {len(held_out)} with {words} "
            f"words are held out, where a batch reads {settings.batch_size} streams of words. Name more --texts."
        )
    data = _loaders(documents, settings, min_freq=settings.min_frequency, max_vocab=settings.max_vocabulary)
    sizes = {"emb_sz": settings.embedding_size, "n_hid": settings.hidden_size, "n_layers": settings.layers}
    learner = _learner(data, sizes, settings.drop_mult)
    if settings.word_vectors:
        vectors = word_vectors(list(data.vocab), settings.embedding_size)
        # The decoder's weights are the same tensor.
        learner.model[0].encoder.weight.data.copy_(settings.word_vectors * vectors)
    stage.fit(learner, [Phase("all", settings.epochs, settings.learning_rate, 0)])
    torch.save(learner.model.state_dict(), folder / GENERAL_FILE)
    save_pickle(folder / VOCABULARY_FILE, list(data.vocab))
    stage.finish(documents=len(documents), tokens_per_epoch=len(data.train) * _tokens_per_batch(data))


def train_on_texts(
    tweets: pd.DataFrame, csv_sha256: str, general: Path, settings: LanguageModelSettings, folder: Path
) -> None:
    """Stage 2: go on training the language model `general` on the train split's texts.

    The validation split's texts measure it. Its vocabulary is the tweets' own tokens, then the general
    model's most frequent ones up to the limit: what users will write is wider than one month of tweets.
    """
    weights, vocabulary = language_model_files(general)
    stage = Stage(folder, settings, {"data": csv_sha256, "general": sha256_of(weights)})
    if not stage.begin():
        return
    documents = tweets[tweets["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "validation")
    _, counts = tokenize_df(documents[~documents["is_valid"]], "text")
    merged = merge_vocabularies(counts, load_pickle(vocabulary), settings.min_frequency, settings.max_vocabulary)
    data = _loaders(documents, settings, vocab=merged)
    learner = _learner(data, sizes_of(weights), settings.drop_mult)
    learner.load_pretrained(weights, vocabulary)
    stage.fit(
        learner,
        [
            Phase("embeddings", settings.frozen_epochs, settings.frozen_learning_rate, -1),
            Phase("all", settings.epochs, settings.learning_rate, 0),
        ],
    )
    torch.save(learner.model[0].state_dict(), folder / ENCODER_FILE)
    save_pickle(folder / VOCABULARY_FILE, merged)
    stage.finish()


def merge_vocabularies(counts: "Counter[str]", general: list[str], min_frequency: int, limit: int) -> list[str]:
    """The tokens of `counts` that occur `min_frequency` times, then those of `general`, `limit` at most."""
    own = [token for token in make_vocab(counts, min_freq=min_frequency, max_vocab=limit) if token != "xxfake"]
    return list(dict.fromkeys([*own, *(token for token in general if token != "xxfake")]))[:limit]


def general_model(name_or_path: str) -> Path:
    """The folder of a general language model: fastai's download for `wt103`, otherwise the path given."""
    if name_or_path != WT103:
        return Path(name_or_path)
    try:
        return Path(untar_data(URLs.WT103_FWD, c_key="model"))
    except OSError as error:
        raise TrainingError(
            f"fastai's download of its WikiText-103 model failed: {error}. With no network, train a general "
            f"language model here (--texts FILE ...) or name a folder that holds one (--general PATH)."
        ) from error


def language_model_files(folder: Path) -> tuple[Path, Path]:
    """The weights (`.pth`) and the vocabulary (`.pkl`) of a language model in fastai's form."""
    found = [sorted(folder.glob(pattern)) for pattern in ("*.pth", "*.pkl")]
    weights, vocabularies = ([path for path in paths if path.name != "checkpoint.pth"] for paths in found)
    if len(weights) != 1 or len(vocabularies) != 1:
        raise TrainingError(
            f"{folder} should hold one .pth file (weights) and one .pkl file (vocabulary) of a language model, "
            f"as fastai's own pretrained ones do; it has {len(weights)} and {len(vocabularies)}."
        )
    return weights[0], vocabularies[0]


def sizes_of(weights: Path, prefix: str = "0.") -> dict[str, int]:
    """An AWD-LSTM's sizes, read off its weights, under fastai's names.

    Args:
        weights: a `.pth` file, of a language model or, with `prefix=""`, of its encoder alone.
    """
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    recurrent = [value for name, value in state.items() if name.endswith("weight_hh_l0_raw")]
    return {
        "emb_sz": state[f"{prefix}encoder.weight"].shape[1],
        "n_hid": recurrent[0].shape[1],
        "n_layers": len(recurrent),
    }


def hashes_of(texts: list[Path]) -> dict[str, str]:
    """The SHA-256 of text files by name, as a record has them.

    Raises:
        TrainingError: two of them have one name.
    """
    hashes = {path.name: sha256_of(path) for path in texts}
    if len(hashes) < len(texts):
        raise TrainingError("Two of the texts' files have the same name; the record tells them by it. Rename one.")
    return hashes


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file that are not blank; `.xz` and `.gz` are unpacked, `.tsv` ends with the text.

    Raises:
        TrainingError: not UTF-8, or no text in it.
    """
    existing(path, "; expected UTF-8 text, one document a line (.xz and .gz too).")
    opened = OPENERS.get(path.suffix.lower(), open)
    found = False
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    found = True
                    text = line.rstrip("\n")
                    yield text.rpartition("\t")[2] if ".tsv" in path.name.lower() else text
    except (UnicodeDecodeError, *DAMAGED) as error:
        raise TrainingError(f"{path}: expected UTF-8 text, one document a line ({error}).") from error
    if not found:
        raise TrainingError(f"{path} holds no text; expected UTF-8 text, one document a line.")


def _loaders(documents: pd.DataFrame, settings: GeneralSettings | LanguageModelSettings, **vocabulary: Any) -> Any:
    """fastai's data loaders of the documents as streams of tokens; `is_valid` tells what is held out."""
    data = DataBlock(
        blocks=TextBlock.from_df("text", is_lm=True, seq_len=settings.sequence_length, **vocabulary),
        get_x=ColReader("text"),
        splitter=ColSplitter("is_valid"),
    ).dataloaders(documents, bs=settings.batch_size, num_workers=0)
    for loader in data.loaders:
        # fastai looks every token up anew in every epoch, five sixths of the time that a batch takes to load.
        documents_ids = loader.items.coll
        loader.items.coll = [documents_ids[row] for row in range(len(documents_ids))]
    return data


def _learner(data: Any, sizes: dict[str, int], drop_mult: float) -> Learner:
    return language_model_learner(
        data,
        AWD_LSTM,
        config=awd_lstm_lm_config | sizes,
        drop_mult=drop_mult,
        pretrained=False,
        metrics=[accuracy, Perplexity()],
        cbs=callbacks(),
    )


def _tokens_per_batch(data: Any) -> int:
    return int(data.train.bs * data.train.seq_len)
