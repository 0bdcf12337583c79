"""The texts on which an archive's precision is measured."""

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from handler import exported
from tests.paths import MODEL
from training.errors import TrainingError
from training.sample import MADE_UP_TEXTS, MOST_TEXTS, made_up, read_sample

TEXTS = ("one, two", "zwei\nZeilen", "\u4f60\u597d")


def csv_of(delimiter: str) -> bytes:
    return (
        f'id{delimiter}text\n1{delimiter}"one, two"\n2{delimiter}"zwei\nZeilen"\n3{delimiter}\u4f60\u597d\n'
    ).encode()


JSON_LINES = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv_of(",")),
        ("a.CSV", b"\xef\xbb\xbf" + csv_of(",")),
        ("a.tsv", csv_of("\t")),
        ("a.csv", csv_of(";")),
        ("a.csv.gz", gzip.compress(csv_of(","), mtime=0)),
        ("a.jsonl", JSON_LINES),
        ("a.ndjson.xz", lzma.compress(JSON_LINES)),
        ("a.jsonl", "\n".join(map(json.dumps, TEXTS)).encode()),
    ],
)
def test_a_files_ending_says_how_its_texts_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    sample = read_sample(tmp_path / name, "text")
    assert sample.texts == TEXTS
    assert (sample.source, sample.made_up) == (name, False)


def test_parquet_and_other_columns(tmp_path: Path) -> None:
    table = pyarrow.table({"id": [1, 2, 3, 4], "review": [*TEXTS, None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_sample(tmp_path / "a.parquet", "review").texts == TEXTS
    with pytest.raises(TrainingError, match=r"no column 'text'; it has 'id', 'review'.*--text-column"):
        read_sample(tmp_path / "a.parquet", "text")


def test_a_text_file_has_a_text_on_each_line_that_is_not_blank(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\none, two\n\n \nthree\n")
    assert [text.strip() for text in read_sample(tmp_path / "a.txt", "text").texts] == ["text", "one, two", "three"]


def test_a_table_of_one_column_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tweet\nhello\n")
    assert read_sample(tmp_path / "a.csv", "text").texts == ("hello",)


def test_of_a_long_file_the_same_texts_are_taken_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(MOST_TEXTS * 3)))
    first, second = (read_sample(tmp_path / "a.txt", "text").texts for _ in range(2))
    assert first == second
    assert len(set(first)) == MOST_TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\nfine,1\n\xff,2\n", "line 3: expected UTF-8"),
        ("a.csv", b"", "no column 'text'; it has none"),
        ("a.csv", b"text\n", "it has none"),
        ("a.jsonl", b'"fine"\n{]\n', "line 2: expected one JSON value"),
        ("a.jsonl", b'{"text": 1}\n', "line 1: expected a string"),
        ("a.jsonl", b"[1]\n", "line 1: expected a string"),
        ("a.parquet", b"PAR", "expected a Parquet file"),
        ("a.csv.gz", b"text\n", "expected a whole .gz file"),
        ("a.csv.xz", b"text\n", "expected a whole .xz file"),
        ("a.xlsx", b"", r"expected \.csv, \.tsv"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        read_sample(tmp_path / name, "text")


def test_made_up_texts_have_frequent_words_often() -> None:
    model = exported.read_description(MODEL)
    sample = made_up(model)
    assert sample == made_up(model)
    assert sample.made_up
    assert len(sample.texts) == MADE_UP_TEXTS
    words = [token for token in model.vocabulary if token and not token.startswith("xx") and not token.isspace()]
    counts = Counter(word for text in sample.texts for word in text.split())
    assert set(words[:3]) <= {word for word, _ in counts.most_common(6)}
    assert not any(word.startswith("xx") for word in counts)
