"""Texts on which the precision of an archive is measured: a user's texts, or synthetic texts of the vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from handler.exported import Description
from training.data import Dataset
from training.errors import TrainingError
from training.tables import Source, as_string

MAX_TEXTS: Final = 2_000
"""Maximum number of texts in a sample of a file; a larger file is sampled at random, with a fixed seed."""

SYNTHETIC_TEXTS: Final = 400
"""Number of synthetic texts in a sample."""

MEDIAN_WORDS, SIGMA, MAX_WORDS = 20, 0.8, 300
"""Log-normal distribution of the number of words in a synthetic text, which is close to that of real texts."""

ZIPF_SHIFT: Final = 2.7
"""Shift in Mandelbrot's law: the nth most frequent word of a language has a frequency of about 1 / (n + 2.7).

Source: Mandelbrot, "An Informational Theory of the Statistical Structure of Language", 1953.
"""

SENTENCEPIECE_SPACE: Final = "\u2581"
"""Character with which SentencePiece replaces a space."""


@dataclass(frozen=True)
class Sample:
    """Texts and their source."""

    texts: tuple[str, ...]
    source: str
    """Description of the source, after "texts" or "texts of"."""

    is_synthetic: bool = False
    """True if the texts are synthetic."""


def synthetic_sample(model: Description) -> Sample:
    """Make synthetic texts of the vocabulary's words, drawn with the word frequencies of a language.

    fastai sorts a vocabulary by frequency, so the position of a word is its rank (Zipf's law).
    """
    words = [token for token in model.vocabulary if token and not token.startswith("xx") and not token.isspace()]
    if not words:
        return Sample(("a",), "made up of no word, as the vocabulary has none", is_synthetic=True)
    generator = np.random.default_rng(1)
    frequencies = 1 / (np.arange(len(words)) + ZIPF_SHIFT)
    lengths = generator.lognormal(np.log(MEDIAN_WORDS), SIGMA, SYNTHETIC_TEXTS).round().clip(1, MAX_WORDS).astype(int)
    chosen = (generator.choice(len(words), length, p=frequencies / frequencies.sum()) for length in lengths)
    texts = tuple(_joined([words[index] for index in indexes]) for indexes in chosen)
    return Sample(texts, "made up of the vocabulary's words", is_synthetic=True)


def _joined(words: Sequence[str]) -> str:
    """Join words with spaces; tokens of SentencePiece already contain the spaces."""
    spaced = any(word.startswith(SENTENCEPIECE_SPACE) for word in words)
    return "".join(words).replace(SENTENCEPIECE_SPACE, " ").strip() if spaced else " ".join(words)


def sample_of(texts: Iterable[str], source: str) -> Sample:
    """Sample at most `MAX_TEXTS` of the texts that are not blank, in their order.

    Args:
        texts: the texts.
        source: description of their source.

    Raises:
        TrainingError: all texts are blank.
    """
    sample = [text for text in texts if text.strip()]
    if not sample:
        raise TrainingError(f"{source}: expected texts; it has none.")
    if len(sample) > MAX_TEXTS:
        positions = np.random.default_rng(1).choice(len(sample), MAX_TEXTS, replace=False)
        sample = [sample[position] for position in sorted(positions)]
    return Sample(tuple(sample), source)


def held_out_sample(data: Dataset, file: str) -> Sample | None:
    """Sample the texts that are not in the train split, which the classifier may know by heart; None if there are none.

    Args:
        data: the labelled texts.
        file: name of their file, for the user.
    """
    texts = [row.text for row in data.rows if row.split != "train"]
    splits = [split for split in ("validation", "test") if any(row.split == split for row in data.rows)]
    if not texts:
        return None
    return sample_of(texts, f"the {' and '.join(splits)} split{'s' * (len(splits) > 1)} of {file}")


def read_sample(path: Path, column: str) -> Sample:
    """Sample the texts of a file: a column of CSV, TSV, JSON lines or Parquet, or one text per line.

    Args:
        path: see `training.tables.Source`.
        column: name of the column with the texts; ignored if the file has only one column.

    Raises:
        TrainingError: the file cannot be read, or has no text.
    """
    source = Source("--texts", path, {"--text-column": column})
    records = source.records()
    texts = [as_string(record.values[0]) for record in records]
    source.refuse(
        (
            record.line
            for record, text in zip(records, texts, strict=True)
            if text is None and not isinstance(record.values[0], str | None)
        ),
        "a text that is neither a string nor a number",
        "Enclose it in quotes, or name the column of the texts with --text-column.",
    )
    return sample_of((text for text in texts if text), path.name)
