"""Tests of the texts on which an archive's precision is measured."""

from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from handler import exported
from tests.paths import MODEL
from training.errors import TrainingError
from training.export.sample import MAX_TEXTS, SYNTHETIC_TEXTS, read_sample, synthetic_sample


def test_texts_are_one_column_of_a_table(tmp_path: Path) -> None:
    table = pyarrow.table({"id": [1, 2, 3], "review": ["one", None, "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    sample = read_sample(tmp_path / "a.parquet", "review")
    assert (sample.texts, sample.source, sample.is_synthetic) == (("one", "two"), "a.parquet", False)


def test_the_sample_of_a_long_file_is_always_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(MAX_TEXTS * 3)))
    first, second = (read_sample(tmp_path / "a.txt", "text").texts for _ in range(2))
    assert first == second
    assert len(set(first)) == MAX_TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\n", "it has none"),
        ("a.jsonl", '{"text": "a"}\n{"text": [1]}\n', "line 2: A row has a text that is neither"),
    ],
)
def test_invalid_texts_are_reported(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match=message):
        read_sample(tmp_path / name, "text")


def test_synthetic_texts_have_frequent_words_often() -> None:
    model = exported.read_description(MODEL)
    sample = synthetic_sample(model)
    assert sample == synthetic_sample(model)
    assert sample.is_synthetic
    assert len(sample.texts) == SYNTHETIC_TEXTS
    words = [token for token in model.vocabulary if token and not token.startswith("xx") and not token.isspace()]
    counts = Counter(word for text in sample.texts for word in text.split())
    assert set(words[:3]) <= {word for word, _ in counts.most_common(6)}
    assert not any(word.startswith("xx") for word in counts)
