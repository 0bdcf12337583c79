"""Evaluation: the figures themselves, and that they are those of the steps a server takes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from handler.classifier import TextClassifier
from tests.e2e.server_process import Server
from tests.paths import MODEL, TOY_TWEETS
from training import cli
from training.data import read_tweets, split_of_rows
from training.evaluate import evaluate, figures, model_answer

VALIDATION_ACCURACY = 0.82


def test_figures_by_hand() -> None:
    found = figures(["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "a", "a"], ["a", "b", "c"])
    assert (found["n"], found["accuracy"]) == (6, 0.5)
    assert found["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert found["per_class"]["a"] == {"precision": 0.5, "recall": 0.666667, "f1": 0.571429, "support": 3}
    assert found["per_class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert found["macro_f1"] == pytest.approx((0.571429 + 0.5 + 0) / 3, abs=1e-6)


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    out: dict[str, Any] = json.loads(capfd.readouterr().out)
    return out


def test_one_json_object_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    found = run(capfd, "--data", TOY_TWEETS, "--split", "train")
    assert set(found) == {"n", "accuracy", "macro_f1", "labels", "per_class", "confusion_matrix"}
    assert found["n"] == 36


def test_blank_labels_are_a_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(TOY_TWEETS)
    table.loc[split_of_rows(len(table)) == "test", "airline_sentiment"] = None
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    assert cli.main(["evaluate", "--data", str(tmp_path / "Tweets.csv"), "--split", "test"]) == 1
    assert "5 of the 5 rows in the test split have a blank `airline_sentiment`" in capfd.readouterr().err


def test_labels_that_the_model_does_not_have_are_a_clear_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(TOY_TWEETS).replace("neutral", "mixed")
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    assert cli.main(["evaluate", "--data", str(tmp_path / "Tweets.csv"), "--split", "train"]) == 1
    assert "the split also has mixed" in capfd.readouterr().err


def test_figures_are_those_of_the_classifier(classifier: TextClassifier) -> None:
    tweets = read_tweets(TOY_TWEETS)
    rows = tweets[tweets["split"] == "train"]
    predicted = classifier.predict(list(rows["text"])).argmax(axis=1)
    right = sum(classifier.labels[index] == label for index, label in zip(predicted, rows["label"], strict=True))
    assert evaluate(tweets, "train", model_answer(MODEL))["accuracy"] == pytest.approx(right / len(rows), abs=1e-6)


@pytest.mark.parametrize("path", ["", "/", "/predictions/sentiment"])
def test_a_running_server_has_the_same_figures(server: Server, capfd: pytest.CaptureFixture[str], path: str) -> None:
    arguments = ("--data", TOY_TWEETS, "--split", "train")
    assert run(capfd, *arguments, "--url", server.project.inference + path) == run(capfd, *arguments)


def test_the_default_on_the_validation_split(real_csv: Path, server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", real_csv, "--split", "validation")
    found = run(capfd, *arguments)
    assert found["n"] == 1_450
    assert found["accuracy"] >= VALIDATION_ACCURACY
    assert run(capfd, *arguments, "--url", server.project.inference) == found
    card = json.loads((MODEL / "card.json").read_text())
    assert card["metrics"]["validation"] == found


def test_a_server_that_refuses_is_told(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{server.project.inference}/predictions/nobody"
    assert cli.main(["evaluate", "--data", str(TOY_TWEETS), "--split", "train", "--url", url]) == 1
    assert "answered 404" in capfd.readouterr().err
