"""ULMFiT's stages 1 and 2: the general language model, and the language model fine-tuned on the data.

A language model is stored in the format of fastai's pretrained models: a folder with one `.pth` file (weights) and one
`.pkl` file (vocabulary). fastai's `wt103`, a model trained here and a model from elsewhere therefore load the same way.
"""

import contextlib
import io
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
    make_vocab,
    to_float,
    tokenize_df,
    untar_data,
)

from training.data import existing, sha256_of
from training.errors import TrainingError
from training.files import reading
from training.settings import WT103, GeneralSettings, GeneratorSettings, LanguageModelSettings
from training.stages.products import ENCODER_FILE, GENERAL_FILE, VOCABULARY_FILE
from training.stages.stage import Phase, Stage, load_tensors, load_vocabulary, save_tensors, save_vocabulary
from training.stages.transformer import fast_in_bfloat16, word_vectors
from training.tables import DAMAGED, FORMATS, OPENERS, WORKBOOK_ENDINGS, ending_of

HELD_OUT_FRACTION = 0.02
MAX_HELD_OUT = 2_000
"""Share of the documents that measure the general language model, and their maximum number."""


class Bfloat16OnCPU(Callback):  # type: ignore[misc]  # fastai has no types
    """Autocast to bfloat16 on a CPU, as fastai's MixedPrecision does on CUDA.

    On a CPU with bfloat16 instructions, a 300/600/2 language model trains a fifth faster.
    """

    order = 10

    def before_fit(self) -> None:
        """Make the autocast context."""
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)

    def before_batch(self) -> None:
        """Enter the autocast context."""
        self.autocast.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        """Convert the prediction to float32."""
        self.learn.pred = to_float(self.pred)

    def after_loss(self) -> None:
        """Leave the autocast context."""
        self.autocast.__exit__(None, None, None)


def callbacks() -> list[Callback]:
    """Return the callbacks that make training faster on this machine."""
    return [Bfloat16OnCPU()] if fast_in_bfloat16() and not torch.cuda.is_available() else []


def train_general(texts: list[Path], settings: GeneralSettings, folder: Path) -> None:
    """Stage 1: train a language model on text files with one document per line.

    Args:
        texts: paths of the text files.
        settings: sizes and hyperparameters.
        folder: the stage's folder.

    Raises:
        TrainingError: a file is missing or has no text, or there is too little text.
    """
    documents = pd.DataFrame({"text": [line for path in texts for line in read_lines(path)]})
    stage = Stage(folder, settings, hashes_of(texts))
    if not stage.begin():
        return
    held_out = documents.sample(
        n=max(1, min(MAX_HELD_OUT, int(len(documents) * HELD_OUT_FRACTION))), random_state=settings.seed
    )
    documents["is_valid"] = documents.index.isin(held_out.index)
    data = streams(documents, settings, min_freq=settings.min_frequency, max_vocab=settings.max_vocabulary)
    sizes = {"emb_sz": settings.embedding_size, "n_hid": settings.hidden_size, "n_layers": settings.layers}
    learner = language_model_of(data, sizes, settings.drop_mult)
    if settings.word_vectors:
        vectors = word_vectors(list(data.vocab), settings.embedding_size)
        # The decoder shares this tensor.
        learner.model[0].encoder.weight.data.copy_(settings.word_vectors * vectors)
    stage.fit(learner, [Phase("all", settings.epochs, settings.learning_rate, 0)])
    save_tensors(learner.model.state_dict(), folder / GENERAL_FILE)
    save_vocabulary(list(data.vocab), folder / VOCABULARY_FILE)
    stage.finish(documents=len(documents), tokens_per_epoch=len(data.train) * _tokens_per_batch(data))


def train_on_texts(
    tweets: pd.DataFrame, csv_sha256: str, general: Path, settings: LanguageModelSettings, folder: Path
) -> None:
    """Stage 2: fine-tune the general language model on the texts of the train split.

    The texts of the validation split measure it. The vocabulary is the tokens of the train split, followed by the
    most frequent tokens of the general model up to the limit: users write more words than one data set contains.

    Args:
        tweets: the labelled texts (`training.data`).
        csv_sha256: SHA-256 of their file.
        general: folder of the general language model.
        settings: hyperparameters.
        folder: the stage's folder.
    """
    weights, vocabulary = language_model_files(general)
    stage = Stage(folder, settings, {"data": csv_sha256, "general": sha256_of(weights)})
    if not stage.begin():
        return
    documents = tweets[tweets["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "validation")
    _, counts = tokenize_df(documents[~documents["is_valid"]], "text")
    merged = merge_vocabularies(counts, load_vocabulary(vocabulary), settings.min_frequency, settings.max_vocabulary)
    data = streams(documents, settings, vocab=merged)
    learner = language_model_of(data, sizes_of(weights), settings.drop_mult)
    with reading(weights):
        learner.load_pretrained(weights, vocabulary)
    stage.fit(
        learner,
        [
            Phase("embeddings", settings.frozen_epochs, settings.frozen_learning_rate, -1),
            Phase("all", settings.epochs, settings.learning_rate, 0),
        ],
    )
    save_tensors(learner.model[0].state_dict(), folder / ENCODER_FILE)
    save_vocabulary(merged, folder / VOCABULARY_FILE)
    stage.finish()


def merge_vocabularies(counts: "Counter[str]", general: list[str], min_frequency: int, limit: int) -> list[str]:
    """Merge two vocabularies.

    Args:
        counts: number of occurrences of each token of the new texts.
        general: the other vocabulary, most frequent token first.
        min_frequency: number of occurrences from which a token of `counts` is included.
        limit: maximum size of the merged vocabulary.

    Returns:
        fastai's special tokens, the included tokens of `counts`, then tokens of `general` up to the limit.
    """
    own = [token for token in make_vocab(counts, min_freq=min_frequency, max_vocab=limit) if token != "xxfake"]
    return list(dict.fromkeys([*own, *(token for token in general if token != "xxfake")]))[:limit]


def general_model(name_or_path: str) -> Path:
    """Return the folder of a general language model: fastai's download for `wt103`, otherwise the given path.

    Raises:
        TrainingError: the download failed.
    """
    if name_or_path != WT103:
        return Path(name_or_path)
    try:
        return Path(untar_data(URLs.WT103_FWD, c_key="model"))
    except OSError as error:
        raise TrainingError(
            f"fastai's download of its WikiText-103 model failed: {error}. Without internet access, train a general "
            f"language model here (--texts FILE ...) or name the folder of one (--general FOLDER)."
        ) from error


def language_model_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the weights (`.pth`) and the vocabulary (`.pkl`) of a language model in fastai's format.

    Raises:
        TrainingError: the folder does not have exactly one file of each kind.
    """
    weights = [path for path in sorted(folder.glob("*.pth")) if path.name != "checkpoint.pth"]
    vocabularies = sorted(folder.glob("*.pkl"))
    if len(weights) != 1 or len(vocabularies) != 1:
        raise TrainingError(
            f"{folder} has {len(weights)} .pth files and {len(vocabularies)} .pkl files; expected one .pth file "
            f"(weights) and one .pkl file (vocabulary) of a language model in fastai's format."
        )
    return weights[0], vocabularies[0]


def sizes_of(weights: Path, prefix: str = "0.") -> dict[str, int]:
    """Read the sizes of an AWD-LSTM from its weights.

    Args:
        weights: a `.pth` file of a language model or of an encoder.
        prefix: prefix of the encoder's parameters in the file: `0.` in a language model, empty in an encoder.

    Returns:
        The sizes by fastai's names: `emb_sz`, `n_hid`, `n_layers`.

    Raises:
        TrainingError: the file is damaged, or has no such weights.
    """
    with reading(weights):
        state = load_tensors(weights)
        state = state.get("model", state)
        recurrent = [value for name, value in state.items() if name.endswith("weight_hh_l0_raw")]
        return {
            "emb_sz": state[f"{prefix}encoder.weight"].shape[1],
            "n_hid": recurrent[0].shape[1],
            "n_layers": len(recurrent),
        }


def hashes_of(texts: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of text files by file name, as a stage's record has them.

    Raises:
        TrainingError: two files have the same name.
    """
    hashes = {path.name: sha256_of(path) for path in texts}
    if len(hashes) < len(texts):
        raise TrainingError("Two text files have the same name, by which the record identifies them. Rename one.")
    return hashes


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file that are not blank.

    Args:
        path: a text file, which may be compressed (`.xz`, `.gz`); of a `.tsv` file, the last field of each line is
            read.

    Raises:
        TrainingError: the file is missing, is not UTF-8, or has no text.
    """
    existing(path, "; expected UTF-8 text with one document per line, which may be compressed (.xz, .gz).")
    if ending_of(path) in {*FORMATS, *WORKBOOK_ENDINGS} - {".tsv"}:
        raise TrainingError(
            f"{path}: expected UTF-8 text with one document per line; in a table, each line would be a document. Write "
            "the column of the texts to a file with the ending .txt."
        )
    opener = OPENERS.get(path.suffix.lower(), open)
    is_empty = True
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    is_empty = False
                    text = line.rstrip("\n")
                    yield text.rpartition("\t")[2] if ".tsv" in path.name.lower() else text
    except (UnicodeDecodeError, *DAMAGED) as error:
        raise TrainingError(f"{path}: expected UTF-8 text with one document per line ({error}).") from error
    if is_empty:
        raise TrainingError(f"{path} has no text; expected UTF-8 text with one document per line.")


def streams(
    documents: pd.DataFrame, settings: GeneralSettings | LanguageModelSettings | GeneratorSettings, **vocabulary: Any
) -> Any:
    """Make fastai data loaders of documents as streams of tokens; the column `is_valid` marks held-out documents.

    Raises:
        TrainingError: the held-out documents, or the others, are too short for one token in each stream of a batch.
    """
    block = DataBlock(
        blocks=TextBlock.from_df("text", is_lm=True, seq_len=settings.sequence_length, **vocabulary),
        get_x=ColReader("text"),
        splitter=ColSplitter("is_valid"),
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # fastai prints that a traceback follows
            data = block.dataloaders(documents, bs=settings.batch_size, num_workers=0)
    except IndexError as error:  # fastai cannot make a batch of the documents to train on
        raise _too_little_text("to train on", settings.batch_size) from error
    for loader in data.loaders:
        if not loader.n_batches:
            raise _too_little_text("held out", settings.batch_size)
        # fastai looks up every token again in every epoch, which takes five sixths of the time to load a batch.
        token_ids = loader.items.coll
        loader.items.coll = [token_ids[row] for row in range(len(token_ids))]
    return data


def _too_little_text(part: str, batch_size: int) -> TrainingError:
    return TrainingError(
        f"Too little text for a language model: the documents {part} have at most {batch_size} tokens, and a batch has "
        f"{batch_size} streams of tokens. Add text, or lower batch_size with --set."
    )


def existing_encoder(folder: Path) -> Path:
    """Return the file of the encoder in a stage's folder.

    Raises:
        TrainingError: there is no encoder.
    """
    return existing(
        folder / ENCODER_FILE,
        ": name an encoder with --start model_store/general, or run `python -m training language-model` first.",
    )


def language_model_of(data: Any, sizes: dict[str, int], drop_mult: float) -> Learner:
    """Make a language model with random weights."""
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
