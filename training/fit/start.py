"""Starting weights of `fit`, and the terms of their licences."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from fastai.text.all import AWD_LSTM, tokenize_df

from handler.exported import CARD_FILE, CONFIG_FILE
from training.data import sha256_of
from training.errors import TrainingError
from training.settings import MINILM, WT103, GeneralSettings
from training.stages.language_model import merge_vocabularies
from training.stages.products import ENCODER_FILE, VOCABULARY_FILE
from training.stages.stage import Stage, save_tensors, save_vocabulary
from training.stages.terms import terms_of
from training.stages.transformer import load, word_vectors

OWN: Final = "own"
OWN_FOLDER: Final = "own-words"
"""Folder in the run of an encoder with word vectors."""


@dataclass(frozen=True)
class Start:
    """Starting weights and their terms."""

    name: str
    """Value of `--start`."""

    what: str
    """Description for the user."""

    permits: str
    """What the licence of the weights permits."""

    kind: str
    """`own`, `language model` or `exported model`."""


OWN_START: Final = Start(
    OWN,
    f"the words of your texts and of {MINILM}'s vocabulary, with that transformer's word vectors; no other weights",
    f"commercial use, as far as your own texts do ({MINILM}: Apache 2.0)",
    "own",
)
WT103_START: Final = Start(
    WT103,
    "fastai's AWD-LSTM language model of WikiText-103 (400/1152/3), downloaded by fastai: 105 MB, once",
    "commercial use with attribution (WikiText-103: CC BY-SA; fastai states no other terms for its weights)",
    "language model",
)


def start_named(name: str) -> Start:
    """Return the start that `--start` names.

    Raises:
        TrainingError: the name is neither a known name nor the folder of an exported model or a language model.
    """
    if name == OWN:
        return OWN_START
    if name == WT103:
        return WT103_START
    folder = Path(name)
    if (folder / CONFIG_FILE).is_file():
        return Start(name, "an exported model's encoder", terms_of(folder), "exported model")
    if list(folder.glob("*.pth")):
        return Start(name, "a language model in fastai's form", "what its own source says", "language model")
    raise TrainingError(
        f"--start {name}: expected `{OWN}`, `{WT103}`, an exported model's folder (model_store/general), or the folder "
        f"of a language model in fastai's form (one .pth and one .pkl file)."
    )


def describe_starts(chosen: Start) -> list[str]:
    """Describe the chosen start and its terms, and the alternatives, in lines for the user."""
    lines = [f"Starting weights: {chosen.name}, {chosen.what}.", f"  They permit {chosen.permits}."]
    general = Path("model_store/general")
    alternatives = [start for start in (OWN_START, WT103_START) if start != chosen]
    if (general / CARD_FILE).is_file() and Path(chosen.name) != general:
        alternatives.append(Start(str(general), "this project's encoder of English tweets", terms_of(general), ""))
    lines += [f"  Or --start {start.name}: {start.what}. {_sentence(start.permits)}." for start in alternatives]
    return lines


def _sentence(permits: str) -> str:
    return permits if permits.startswith("NO ") else f"It permits {permits}"


def own_words(texts: Iterable[str], settings: GeneralSettings, run: Path) -> Path:
    """Write an untrained encoder whose embeddings are a transformer's word vectors.

    The vocabulary is the tokens of the texts, then the whole words of all-MiniLM-L6-v2's vocabulary, most frequent
    first. A word that is not in the user's texts therefore still has a vector similar to those of related words.

    Args:
        texts: texts of the train split.
        settings: sizes of the encoder and of its vocabulary.
        run: folder of the run.

    Returns:
        The folder in the run, in the format of a language model's stage.

    Raises:
        TrainingError: the folder has an encoder of other settings or texts.
    """
    folder, texts = run / OWN_FOLDER, list(texts)
    stage = Stage(folder, settings, {"texts": hashlib.sha256("\n".join(texts).encode()).hexdigest()})
    if not stage.begin():
        return folder
    _, counts = tokenize_df(pd.DataFrame({"text": texts}), "text")
    tokenizer, _ = load(MINILM)
    ids: dict[str, int] = tokenizer.get_vocab()
    words = sorted((word for word in ids if not word.startswith(("##", "["))), key=ids.__getitem__)
    vocabulary = merge_vocabularies(counts, words, settings.min_frequency, settings.max_vocabulary)
    stage.seed()
    encoder = AWD_LSTM(len(vocabulary), settings.embedding_size, settings.hidden_size, settings.layers)
    state = encoder.state_dict()
    if settings.word_vectors:
        vectors = settings.word_vectors * word_vectors(vocabulary, settings.embedding_size)
        # fastai stores the embedding under two names.
        state["encoder.weight"] = state["encoder_dp.emb.weight"] = vectors
    save_vocabulary(vocabulary, folder / VOCABULARY_FILE)
    save_tensors(state, folder / ENCODER_FILE)
    stage.finish()
    return folder


def start_entry(start: Start, folder: Path) -> dict[str, str]:
    """Return the entry `start` of a model's card; `folder` has the encoder."""
    return {
        "name": Path(start.name).name,
        "what": start.what,
        "permits": start.permits,
        "encoder_sha256": sha256_of(folder / ENCODER_FILE),
    }
