"""Tests of reading the data set and of its splits."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from tests.paths import TOY_TWEETS
from training.data import labelled, read_dataset, read_tweets, sha256_of, split_of_rows
from training.errors import TrainingError


def test_the_split_has_the_published_sizes(real_tweets: pd.DataFrame) -> None:
    assert real_tweets["split"].value_counts().to_dict() == {"train": 11_726, "validation": 1_450, "test": 1_464}


def test_the_split_depends_only_on_the_number_of_rows() -> None:
    split = split_of_rows(14_640)
    # The first row of each split with scikit-learn's two calls, as of writing.
    assert [int((split == name).argmax()) for name in ("train", "validation", "test")] == [1, 0, 4]


@pytest.mark.parametrize("rows", [30, 46, 1_001, 14_640])
def test_the_split_is_that_of_scikit_learn(rows: int) -> None:
    rest, test = train_test_split(np.arange(rows), test_size=0.1, random_state=1)
    train, validation = train_test_split(rest, test_size=0.11, random_state=1)
    splits = split_of_rows(rows)
    for name, positions in (("train", train), ("validation", validation), ("test", test)):
        assert np.flatnonzero(splits == name).tolist() == sorted(positions)


def test_the_real_train_and_validation_splits_are_fully_labelled(real_tweets: pd.DataFrame) -> None:
    assert len(labelled(real_tweets, "train")) == 11_726
    assert len(labelled(real_tweets, "validation")) == 1_450


def test_blank_labels_in_the_requested_split_are_an_error(tmp_path: Path) -> None:
    table = pd.read_csv(TOY_TWEETS)
    split = split_of_rows(len(table))
    table.loc[split == "test", "airline_sentiment"] = ""
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    tweets = read_tweets(tmp_path / "Tweets.csv")
    assert len(labelled(tweets, "validation")) > 0
    with pytest.raises(TrainingError, match="5 of the 5 rows in the test split have a blank label"):
        labelled(tweets, "test")


def test_a_file_with_splits_may_be_small_but_the_requested_split_must_have_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label,split\nlate again,negative,validation\nthank you!,positive,validation\n")
    data = read_dataset(path)
    assert [row.label for row in data.labelled("validation")] == ["negative", "positive"]
    for rows in (lambda: data.labelled("test"), lambda: labelled(data.table(), "test")):
        with pytest.raises(TrainingError, match="The test split has no row"):
            rows()
    assert data.is_labelled("validation")
    assert not data.is_labelled("test"), "a split without rows cannot be evaluated"


def test_texts_are_read_unchanged(tmp_path: Path) -> None:
    texts = ['"quoted", with commas', "two\nlines", "&amp; 😀 é", "NA", "null", " spaces "] * 5
    pd.DataFrame({"text": texts, "airline_sentiment": "neutral"}).to_csv(tmp_path / "t.csv", index=False)
    assert list(read_tweets(tmp_path / "t.csv")["text"]) == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No file at"),
        (b"", "cannot be read as CSV"),
        (b"PK\x03\x04\xff\xfe\x00", "cannot be read as CSV: it is an Excel workbook or another archive"),
        (b"<html>\n<p>Sign in, please</p>\n</html>\n", "has no column `text` and no `airline_sentiment`"),
        (b"tweet_id,text\n1,hello\n", "has no column `airline_sentiment`; it has `tweet_id`, `text`"),
        (b"text,airline_sentiment\n" + b"a,neutral\n,neutral\n" * 20, "20 rows with no text, the first at row 1"),
        (b"text,airline_sentiment\n" + b"a,neutral\n" * 5, "has 5 rows; at least 30"),
    ],
)
def test_an_invalid_file_gives_an_error_that_says_what_is_expected(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "Tweets.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        read_tweets(path)
    if "with no text" not in message:
        assert "kaggle datasets download crowdflower/twitter-airline-sentiment" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No file at"),
        (b"text,label\nhello,good\n", "has no column `split`; it has `text`, `label`."),
        (b"comment,stars\nhello,5\n", "has no column `text` and no `label` and no `split`; it has `comment`, `stars`"),
        (b'text,label,split\n"open,good,test\n', "cannot be read as CSV"),
        (b"text,label,split\nhello,good,holdout\n", "has the split 'holdout'; expected train, validation, test"),
    ],
)
def test_an_error_of_another_file_does_not_mention_kaggle(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "base.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        read_dataset(tmp_path / "base.csv")
    assert not any(word in str(caught.value).lower() for word in ("kaggle", "airline"))
    if "has the split" not in message:
        assert "CSV with the columns `text`, `label` and `split` (train, validation or test)" in str(caught.value)


def test_the_hash_is_that_of_the_files_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
