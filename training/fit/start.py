"""What `fit` begins with, and what each start permits."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from fastai.text.all import AWD_LSTM, save_pickle, set_seed, tokenize_df

from handler.exported import CARD_FILE, CONFIG_FILE
from training.data import sha256_of
from training.errors import TrainingError
from training.settings import MINILM, WT103, GeneralSettings
from training.stages.language_model import ENCODER_FILE, VOCABULARY_FILE, merge_vocabularies
from training.stages.transformer import load, word_vectors

OWN: Final = "own"
OWN_FOLDER: Final = "own-words"
"""Of a run."""

NON_COMMERCIAL_DATA: Final = {
    "570ee947ac9bfa555d8e0ac2973a19cb6c158b2ee9904c8bcbd9da6802cca3df": (
        "Twitter US Airline Sentiment (CrowdFlower, on Kaggle), CC BY-NC-SA 4.0"
    ),
}
"""Files that a licence keeps from commercial use, by their SHA-256 as the records of a model's stages have it."""


@dataclass(frozen=True)
class Start:
    """Starting weights and their terms."""

    name: str
    """As `--start` takes it."""

    what: str
    permits: str
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
    """The start that `--start` names.

    Raises:
        TrainingError: it is no known name, no exported model and no language model.
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


def terms_of(folder: Path) -> str:
    """What an exported model's licence permits, as far as its card tells."""
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--start {folder}: its {CARD_FILE} cannot be read ({error}).") from error
    if limits := sorted(non_commercial(card.get("stages", {}))):
        return f"NO COMMERCIAL USE: it was trained on {'; '.join(limits)}"
    if fitted := card.get("start"):
        return str(fitted["permits"])
    return f"what its card says ({folder / 'README.md'}); no stage of it is known to forbid commercial use"


def non_commercial(stages: Mapping[str, Any]) -> set[str]:
    """The data of `NON_COMMERCIAL_DATA` that a model's stages were trained on."""
    digests = {digest for record in stages.values() for digest in record.get("inputs", {}).values()}
    return {terms for digest, terms in NON_COMMERCIAL_DATA.items() if digest in digests}


def offers(chosen: Start) -> list[str]:
    """Lines that say what training begins with, what that permits, and what else there is."""
    lines = [f"Starting weights: {chosen.name}, {chosen.what}.", f"  They permit {chosen.permits}."]
    general = Path("model_store/general")
    others = [start for start in (OWN_START, WT103_START) if start != chosen]
    if (general / CARD_FILE).is_file() and Path(chosen.name) != general:
        others.append(Start(str(general), "this project's encoder of English tweets", terms_of(general), ""))
    lines += [f"  Or --start {start.name}: {start.what}. {_sentence(start.permits)}." for start in others]
    return lines


def _sentence(permits: str) -> str:
    return permits if permits.startswith("NO ") else f"It permits {permits}"


def own_words(texts: Iterable[str], settings: GeneralSettings, run: Path) -> Path:
    """An encoder that has read nothing yet, whose embeddings are a transformer's word vectors.

    Its vocabulary is the tokens of the texts, then the whole words of all-MiniLM-L6-v2's vocabulary, the most frequent
    first: a word that a user's few texts lack still has a vector near to those of words like it.

    Returns:
        the folder in the run, as a language model's stage writes it.
    """
    import pandas as pd

    folder = run / OWN_FOLDER
    if (folder / ENCODER_FILE).is_file() and (folder / VOCABULARY_FILE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _, counts = tokenize_df(pd.DataFrame({"text": list(texts)}), "text")
    tokenizer, _ = load(MINILM)
    known: dict[str, int] = tokenizer.get_vocab()
    words = sorted((word for word in known if not word.startswith(("##", "["))), key=known.__getitem__)
    vocabulary = merge_vocabularies(counts, words, settings.min_frequency, settings.max_vocabulary)
    set_seed(settings.seed, reproducible=True)
    encoder = AWD_LSTM(len(vocabulary), settings.embedding_size, settings.hidden_size, settings.layers)
    state = encoder.state_dict()
    if settings.word_vectors:
        vectors = settings.word_vectors * word_vectors(vocabulary, settings.embedding_size)
        # fastai keeps the embedding under two names.
        state["encoder.weight"] = state["encoder_dp.emb.weight"] = vectors
    save_pickle(folder / VOCABULARY_FILE, vocabulary)
    torch.save(state, folder / ENCODER_FILE)
    return folder


def described(start: Start, folder: Path) -> dict[str, str]:
    """The start as a model's card has it."""
    return {
        "name": Path(start.name).name,
        "what": start.what,
        "permits": start.permits,
        "encoder_sha256": sha256_of(folder / ENCODER_FILE),
    }
