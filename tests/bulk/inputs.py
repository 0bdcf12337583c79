"""Input files of all formats, with texts of the tests' own tweets, and with rows that have errors."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from benchmarks.tweets import rare_words, with_new_words
from tests.paths import TOY_TEXTS, TOY_TWEETS

CSV_ROWS, OTHER_ROWS = 2_600, 800
TEXTS = CSV_ROWS + 3 * OTHER_ROWS
PADDING_CHARACTERS = 2_000
"""Length of a further cell in CSV, so that a file with few texts has several shards."""

BAD = {"blank": " \t", "empty": "", "long": "so late " * 2_501}
"""Texts with errors, which all formats can have."""

BAD_ROWS = {"BlankTextError": 34, "TooLargeError": 16}
"""Number of rows with errors in the files of `write_inputs`: 1 % of all rows."""


def texts(count: int) -> list[str]:
    """Different texts, among them some with line ends, quotes, delimiters, and several scripts."""
    toy = list(pd.read_csv(TOY_TWEETS)["text"]) + TOY_TEXTS.read_text(encoding="utf-8").splitlines()
    toy += ['two lines\nof "one" tweet, and a comma', "Danke für den Flug ✈ 😀", "\ufefflate again", "x" * 3_000]
    return with_new_words(toy, rare_words(toy), count)


def write_inputs(folder: Path) -> dict[str, list[str]]:
    """Write `tweets.csv`, `tweets.jsonl`, `tweets.parquet` and `tweets.txt`; returns the texts of each."""
    generator = random.Random(37)
    values = texts(TEXTS)
    for number, index in enumerate(generator.sample(range(TEXTS), sum(BAD_ROWS.values()))):
        values[index] = list(BAD.values())[number % len(BAD)]
    generator.shuffle(values)
    writers: dict[str, Callable[[Path, Sequence[str]], None]] = {
        "tweets.csv": write_csv,
        "tweets.jsonl": write_json_lines,
        "tweets.parquet": write_parquet,
        "tweets.txt": write_lines,
    }
    begin, written = 0, {}
    for name, write in writers.items():
        end = begin + (CSV_ROWS if name == "tweets.csv" else OTHER_ROWS)
        written[name] = values[begin:end]
        if name == "tweets.txt":
            written[name] = [text.replace("\n", " ") for text in written[name]]
        write(folder / name, written[name])
        begin = end
    return written


def write_csv(path: Path, values: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text", "padding"])
        for index, text in enumerate(values):
            writer.writerow([index, text, "ä" * (PADDING_CHARACTERS // 2)])


def write_json_lines(path: Path, values: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(values)))


def write_parquet(path: Path, values: Sequence[str]) -> None:
    column = pa.array([text or None for text in values]).dictionary_encode()
    table = pa.table({"id": range(len(values)), "text": column})
    pyarrow.parquet.write_table(table, path, row_group_size=300)


def write_lines(path: Path, values: Sequence[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in values), encoding="utf-8")
