"""The texts on which an archive's precision is measured: a user's own, or else made up of the vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from handler.exported import Description
from training.errors import TrainingError
from training.tables import Source

MOST_TEXTS: Final = 2_000
"""Of a file with more of them, a random sample; always the same one."""

MADE_UP_TEXTS: Final = 400
MEDIAN_WORDS, SPREAD, MOST_WORDS = 20, 0.8, 300
"""The lengths of made-up texts have a log-normal distribution, as those of real ones nearly do."""

ZIPF_SHIFT: Final = 2.7
"""Word n of a language has about the frequency 1 / (n + 2.7) (Mandelbrot, "An Informational Theory of the Statistical
Structure of Language", 1953)."""

PIECES_SPACE: Final = "\u2581"


@dataclass(frozen=True)
class Sample:
    """Texts, and where they come from."""

    texts: tuple[str, ...]
    source: str
    made_up: bool = False


def made_up(model: Description) -> Sample:
    """Texts of the vocabulary's words, drawn with a language's frequencies.

    fastai sorts a vocabulary by frequency, so the places of the words are their ranks (Zipf's law).
    """
    words = [token for token in model.vocabulary if token and not token.startswith("xx") and not token.isspace()]
    if not words:
        return Sample(("a",), "made up of no word, as the vocabulary has none", made_up=True)
    generator = np.random.default_rng(1)
    frequencies = 1 / (np.arange(len(words)) + ZIPF_SHIFT)
    lengths = generator.lognormal(np.log(MEDIAN_WORDS), SPREAD, MADE_UP_TEXTS).round().clip(1, MOST_WORDS).astype(int)
    chosen = (generator.choice(len(words), length, p=frequencies / frequencies.sum()) for length in lengths)
    texts = tuple(_joined([words[index] for index in indexes]) for indexes in chosen)
    return Sample(texts, "made up of the vocabulary's words", made_up=True)


def _joined(words: Sequence[str]) -> str:
    """SentencePiece's pieces have their spaces in them."""
    spaced = any(word.startswith(PIECES_SPACE) for word in words)
    return "".join(words).replace(PIECES_SPACE, " ").strip() if spaced else " ".join(words)


def sample_of(texts: Iterable[str], source: str) -> Sample:
    """At most `MOST_TEXTS` of the texts that are not blank, in their order.

    Raises:
        TrainingError: all are blank.
    """
    known = [text for text in texts if text.strip()]
    if not known:
        raise TrainingError(f"{source}: expected texts; it has none.")
    if len(known) > MOST_TEXTS:
        places = np.random.default_rng(1).choice(len(known), MOST_TEXTS, replace=False)
        known = [known[place] for place in sorted(places)]
    return Sample(tuple(known), source)


def read_sample(path: Path, column: str) -> Sample:
    """A sample of a file's texts: a table's column (CSV, TSV, JSON lines, Parquet), or one text a line.

    Args:
        path: see `training.tables.Source`; also a text file, with one text a line.
        column: the texts' column. Of a table with one column, that one.

    Raises:
        TrainingError: a problem with the file, or no text in it.
    """
    source = Source("--texts", path, {"--text-column": column})
    records = source.records()
    texts = [record.values[0] for record in records]
    source.refuse(
        (record.line for record, text in zip(records, texts, strict=True) if not isinstance(text, str | None)),
        "a text that is not a string",
        "Put it in quotes, or name the texts' column with --text-column.",
    )
    return sample_of((text for text in texts if text), path.name)
