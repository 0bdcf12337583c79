"""The texts on which an archive's precision is measured: a user's own from a file, or else made up of the vocabulary.

Files are read with Python's own library: an archive is built where only serving's packages are installed.
"""

import csv
import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from handler.exported import Description
from training.errors import TrainingError

MOST_TEXTS: Final = 2_000
"""Of a file with more of them, a random sample; always the same one."""

LONGEST_FIELD: Final = 2**31 - 1
"""Characters in a field of a CSV file. Python's own limit, 131,072, is less than a long document."""

MADE_UP_TEXTS: Final = 400
MEDIAN_WORDS, SPREAD, MOST_WORDS = 20, 0.8, 300
"""The lengths of made-up texts have a log-normal distribution, as those of real ones nearly do."""

ZIPF_SHIFT: Final = 2.7
"""Word n of a language has about the frequency 1 / (n + 2.7) (Mandelbrot, "An Informational Theory of the Statistical
Structure of Language", 1953)."""

PIECES_SPACE: Final = "\u2581"

_FORMATS = "expected .csv, .tsv, .jsonl, .ndjson or .parquet, or .txt with one text a line (.gz or .xz behind it, too)"


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
        path: its ending says what it is.
        column: the texts' column. Of a table with one column, that one. Lines of a text file have none.

    Raises:
        TrainingError: no such file or column, a form that the ending does not promise, or no text in it.
        ModuleNotFoundError: a Parquet file, where pyarrow is not installed.
    """
    if not path.is_file():
        raise TrainingError(f"--texts {path}: no such file.")
    packing = path.suffix.lower() if path.suffix.lower() in (".gz", ".xz") else ""
    ending = Path(path.stem).suffix.lower() if packing else path.suffix.lower()
    if ending == ".parquet" and not packing:
        texts: Iterable[str] = _parquet(path, column)
    elif ending in (".csv", ".tsv"):
        texts = _table(path, packing, column, "\t" if ending == ".tsv" else ",")
    elif ending in (".jsonl", ".ndjson", ".json"):
        texts = _json_lines(path, packing, column)
    elif ending in (".txt", ""):
        texts = (line for _, line in _lines(path, packing))
    else:
        raise TrainingError(f"--texts {path}: {_FORMATS}.")
    return sample_of(texts, path.name)


def _lines(path: Path, packing: str) -> Iterator[tuple[int, str]]:
    """Each line with its number, which counts from 1, and its end."""
    number = 0
    try:
        with _opened(path, packing) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise TrainingError(f"--texts {path}, line {number}: expected UTF-8 ({error.reason}).") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise TrainingError(f"--texts {path}: expected a whole {packing} file: {error}.") from error


def _opened(path: Path, packing: str) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile:
    match packing:
        case ".gz":
            return gzip.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
    return path.open("rb")


def _table(path: Path, packing: str, column: str, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader((line for _, line in _lines(path, packing)), delimiter=delimiter)
    try:
        names = next(rows, [])
        place = names.index(_column_of(path, names, column))
        for row in rows:
            if place < len(row):
                yield row[place]
    except csv.Error as error:
        raise TrainingError(f"--texts {path}, line {rows.line_num}: {error}.") from error


def _json_lines(path: Path, packing: str, column: str) -> Iterator[str]:
    for number, line in _lines(path, packing):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise TrainingError(
                    f"--texts {path}, line {number}: expected one JSON value a line: {error}."
                ) from error
            text = value.get(_column_of(path, list(value), column)) if isinstance(value, dict) else value
            if not isinstance(text, str):
                raise TrainingError(f"--texts {path}, line {number}: expected a string, or an object with one.")
            yield text


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        name = _column_of(path, pyarrow.parquet.read_schema(path).names, column)
        values: list[Any] = pyarrow.parquet.read_table(path, columns=[name]).column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise TrainingError(f"--texts {path}: expected a Parquet file: {error}") from error
    return (value for value in values if isinstance(value, str))


def _column_of(path: Path, names: Sequence[str], column: str) -> str:
    if column in names:
        return column
    if len(names) == 1:
        return names[0]
    found = ", ".join(map(repr, names[:20])) or "none"
    raise TrainingError(
        f"--texts {path}: no column {column!r}; it has {found}. Name the texts' one with --text-column."
    )
