"""Tests of evaluation: the figures, and that they are those of a running server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from handler import batch, exported
from handler.batch import PredictedRequest
from handler.classifier import TextClassifier
from handler.limits import Limits
from tests.approximately import approximately
from tests.client.scripted import Reply, Request, in_turn, scripted
from tests.e2e.server_process import Server
from tests.paths import MODEL, ROOT, TOY_TWEETS, WITH_CLIENT
from training import cli
from training.data import labelled, read_dataset, read_tweets, split_of_rows
from training.errors import TrainingError
from training.measure.evaluate import evaluate, predict
from training.measure.figures import figures, reliability
from training.measure.model import JSON_HEADERS, model_predictor
from training.measure.server import MODELS_PATH, server_predictor
from training.stages.calibration import best_calibration
from training.stages.targets import to_targets

VALIDATION_ACCURACY = 0.85
VALIDATION_MACRO_F1 = 0.8
VALIDATION_CALIBRATION_ERROR = 0.03
INT8_ACCURACY_LOST = 0.002
INT8_CALIBRATION_LOST = 0.003


def test_a_closed_pipe_gives_no_traceback() -> None:
    """As with `| head`, which ends before the output is complete."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "training", "evaluate", "--data", str(TOY_TWEETS), "--split", "validation"]
    environment = os.environ | WITH_CLIENT
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (ended.returncode, "Error" in ended.stderr) == (1, False), ended.stderr


def test_figures_of_a_small_example() -> None:
    predicted = np.array([0, 0, 1, 1, 0, 0])
    result = figures(["a", "a", "a", "b", "b", "c"], 0.8 * np.eye(3)[predicted] + 0.1, ["a", "b", "c"])
    assert (result["n"], result["accuracy"]) == (6, 0.5)
    assert result["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert result["per_class"]["a"] == {"precision": 0.5, "recall": 0.666667, "f1": 0.571429, "support": 3}
    assert result["per_class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert result["macro_f1"] == pytest.approx((0.571429 + 0.5 + 0) / 3, abs=1e-6)
    assert result["expected_calibration_error"] == pytest.approx(0.9 - 0.5)
    assert result["reliability"] == [[6, pytest.approx(0.9), 0.5]]


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    """Some labels are never predicted, and some never true."""
    generator = np.random.default_rng(seed)
    labels = list("abcdef")
    probabilities = generator.dirichlet(np.ones(6), size=50)
    probabilities[:, seed % 6] = 0
    true = [labels[index] for index in generator.integers(0, 5, size=50)]
    predicted = [labels[index] for index in probabilities.argmax(1)]
    result = figures(true, probabilities, labels)
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    assert result["accuracy"] == round(accuracy_score(true, predicted), 6)
    assert result["macro_f1"] == round(f1_score(true, predicted, labels=labels, average="macro", zero_division=0), 6)
    assert result["confusion_matrix"] == confusion_matrix(true, predicted, labels=labels).tolist()
    for index, scores in enumerate(result["per_class"].values()):
        expected = (*(round(float(figure[index]), 6) for figure in (precision, recall, f1)), support[index])
        assert tuple(scores.values()) == expected


def test_the_reliability_of_a_small_example() -> None:
    bins = reliability(np.array([0.51, 0.52, 0.98, 1.0]), np.array([True, False, True, True]))
    assert np.array(bins) == pytest.approx(np.array([[2, 0.515, 0.5], [2, 0.99, 1.0]]))


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    out: dict[str, Any] = json.loads(capfd.readouterr().out)
    return out


def test_evaluate_prints_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "--data", TOY_TWEETS, "--split", "train")
    assert set(result) == {
        *("n", "accuracy", "macro_f1", "expected_calibration_error"),
        *("labels", "per_class", "confusion_matrix", "reliability", "per_airline"),
    }
    assert result["n"] == 36


def test_accuracy_by_agreement_needs_annotators_who_disagree(tmp_path: Path, classifier: TextClassifier) -> None:
    table = pd.read_csv(TOY_TWEETS)
    predictor = model_predictor(classifier, "sentiment")

    def evaluated(confidence: float | list[float]) -> dict[str, Any]:
        table.assign(airline_sentiment_confidence=confidence).to_csv(tmp_path / "Tweets.csv", index=False)
        return evaluate(read_dataset(tmp_path / "Tweets.csv"), "train", predictor)

    assert "per_agreement" not in evaluated(1.0)
    by_agreement = evaluated([1.0, 0.6] * (len(table) // 2))["per_agreement"]
    assert {name: part["n"] > 0 for name, part in by_agreement.items()} == {"divided": True, "unanimous": True}
    assert sum(part["n"] for part in by_agreement.values()) == 36


def test_blank_labels_are_a_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(TOY_TWEETS)
    table.loc[split_of_rows(len(table)) == "test", "airline_sentiment"] = None
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    assert cli.main(["evaluate", "--data", str(tmp_path / "Tweets.csv"), "--split", "test"]) == 1
    assert "5 of the 5 rows in the test split have a blank label" in capfd.readouterr().err


def test_labels_unknown_to_the_model_are_a_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(TOY_TWEETS).replace("neutral", "mixed")
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    assert cli.main(["evaluate", "--data", str(tmp_path / "Tweets.csv"), "--split", "train"]) == 1
    assert "the split also has mixed" in capfd.readouterr().err


def test_figures_are_those_of_the_classifier(classifier: TextClassifier) -> None:
    tweets = read_tweets(TOY_TWEETS)
    rows = tweets[tweets["split"] == "train"]
    predicted = classifier.predict(list(rows["text"])).argmax(axis=1)
    right = sum(classifier.labels[index] == label for index, label in zip(predicted, rows["label"], strict=True))
    result = evaluate(read_dataset(TOY_TWEETS), "train", model_predictor(classifier, "sentiment"))
    assert result["accuracy"] == pytest.approx(right / len(rows), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "options"),
    [("", ["--model-name", "sentiment"]), ("/", ["--model-name", "sentiment"]), ("/predictions/sentiment", [])],
)
def test_the_figures_of_a_running_server_are_those_of_its_model(
    server: Server, served: TextClassifier, capfd: pytest.CaptureFixture[str], path: str, options: list[str]
) -> None:
    rows = labelled(read_tweets(TOY_TWEETS), "train")
    expected = figures(list(rows["label"]), served.predict(list(rows["text"])), served.labels)
    result = run(capfd, "--data", TOY_TWEETS, "--split", "train", "--url", server.project.inference + path, *options)
    assert {name: result[name] for name in expected} == approximately(expected)


def test_the_embedded_model_on_the_validation_split(
    real_csv: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", real_csv, "--split", "validation")
    result = run(capfd, *arguments)
    assert result["n"] == 1_450
    assert result["accuracy"] >= VALIDATION_ACCURACY
    assert result["macro_f1"] >= VALIDATION_MACRO_F1
    assert result["expected_calibration_error"] <= VALIDATION_CALIBRATION_ERROR
    for groups in ("per_airline", "per_agreement"):
        assert sum(scores["n"] for scores in result[groups].values()) == result["n"]
        right = sum(scores["n"] * scores["accuracy"] for scores in result[groups].values())
        assert right / result["n"] == pytest.approx(result["accuracy"], abs=1e-5)
    assert result["per_agreement"]["unanimous"]["n"] == 1_058
    through_the_server = run(capfd, *arguments, "--url", server.project.inference, "--model-name", "sentiment")
    assert through_the_server["accuracy"] >= result["accuracy"] - INT8_ACCURACY_LOST
    assert through_the_server["expected_calibration_error"] <= VALIDATION_CALIBRATION_ERROR + INT8_CALIBRATION_LOST
    card = json.loads((MODEL / "card.json").read_text())
    assert card["metrics"]["validation"] == approximately(result)


def test_the_embedded_model_is_calibrated_on_the_validation_split(
    real_tweets: pd.DataFrame, classifier: TextClassifier
) -> None:
    rows = real_tweets[real_tweets["split"] == "validation"]
    logits = np.log(classifier.predict(list(rows["text"])))
    temperature, biases = best_calibration(logits, to_targets(rows["label"], classifier.labels))
    assert temperature == pytest.approx(1, abs=0.03)
    assert biases == pytest.approx(0, abs=0.03)


def test_the_embedded_model_is_stored_in_half_precision() -> None:
    weights = exported.read(MODEL).weights
    assert weights["embedding.weight"].dtype == np.float16
    assert all(value.dtype == np.float16 for name, value in weights.items() if name.startswith("lstm"))


LATE: dict[str, Any] = {"label": "negative", "score": 0.8, "scores": {"negative": 0.8, "neutral": 0.1, "positive": 0.1}}
"""A prediction."""

OTHER_LABELS = {"label": "bad", "score": 0.8, "scores": {"bad": 0.8, "good": 0.2}}


def run_on(command: str, answers: Callable[[int], object], capfd: pytest.CaptureFixture[str]) -> str:
    """Return the error of a command on a server, whose reply depends on the number of texts in the request."""
    options = ["--data", str(TOY_TWEETS), "--split", "train"] if command == "evaluate" else []

    def reply(request: Request) -> Reply:
        return Reply(body=json.dumps(answers(len(request.json["instances"]))).encode())

    with scripted(reply) as server:
        assert cli.main([command, *options, "--url", f"{server.url}/v2/other"]) == 1
    return capfd.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "behaviour"])
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([], "Expected an object with 'predictions' of type list, not []."),
        (5, "Expected an object with 'predictions' of type list, not 5."),
        ("x", "Expected an object with 'predictions' of type list, not 'x'."),
        ({}, "Expected an object with 'predictions' of type list, not {}."),
        (LATE, "Expected an object with 'predictions' of type list, not {"),
        ({"predictions": None}, "Expected an object with 'predictions' of type list, not {'predictions': None}."),
        ({"predictions": []}, "Expected 1 predictions, not []."),
        ({"predictions": [LATE, LATE]}, "Expected 1 predictions, not [{"),
        ({"predictions": [None]}, "Expected an object with 'scores' of type dict, not None."),
        ({"predictions": [5]}, "Expected an object with 'scores' of type dict, not 5."),
        ({"predictions": [{}]}, "Expected an object with 'scores' of type dict, not {}."),
        ({"predictions": [LATE | {"label": None}]}, "Expected an object with 'label' of type str, not {"),
        ({"predictions": [LATE | {"scores": [0.8, 0.2]}]}, "Expected an object with 'scores' of type dict, not {"),
        ({"predictions": [LATE | {"scores": {}}]}, "Expected the label among the scores, not {"),
    ],
    ids=str,
)
def test_a_reply_that_is_no_prediction_is_reported_with_the_way_out(
    command: str, reply: object, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error = run_on(command, lambda _: reply, capfd)
    assert error.startswith(f"error: {expected}")
    assert "Check --url: expected the address of a server" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "behaviour"])
@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (lambda n: {"predictions": [LATE] * (n - 1)}, "predictions, not ["),
        (
            lambda texts: {"predictions": [OTHER_LABELS] * texts},
            "were negative, neutral, positive; now they are bad, good",
        ),
        (lambda n: {"predictions": [{"value": 0.5}] * n}, "now they are none, as it predicts several"),
    ],
    ids=["fewer predictions", "other labels", "another task"],
)
def test_a_reply_that_differs_from_the_first_is_reported(
    command: str, later: Callable[[int], object], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error = run_on(command, lambda n: {"predictions": [LATE]} if n == 1 else later(n), capfd)
    assert expected in error
    assert ("The model changed during the run." in error) == ("now they are" in expected)
    assert error.count("\n") == 1


def test_another_version_of_the_model_during_the_run_is_reported() -> None:
    """Its figures would be those of two models, even if their labels are the same."""
    replies = in_turn(*(Reply(headers={"X-Model-Version": version}) for version in ("1.0", "1.0", "2.0")))
    with scripted(replies) as server:
        predictor = server_predictor(server.url, "sentiment")
        for _ in range(2):
            predictor(b'["late"]')
        with pytest.raises(TrainingError, match=r"The model changed during the run, from version 1\.0 to 2\.0\."):
            predictor(b'["late"]')


NASTY = ["late ", "\u2603?", "A b ", "&amp;", "don't ", "<br />", "http://x.y/ ", "AAA"]
LONG_TEXTS = st.builds(
    lambda piece, times: "x" + (piece * times)[:19_999],
    st.sampled_from(NASTY) | st.text(min_size=1, max_size=3),
    st.integers(1, 20_000),
)


@settings(max_examples=6, deadline=None)
@given(st.lists(LONG_TEXTS, min_size=1, max_size=8))
@example(["x" + "\u2603?" * 5_000] * 3)
@example(["late"] * 120)
def test_the_batches_of_evaluation_are_within_the_servers_limits(toy_run: Path, texts: list[str]) -> None:
    """Also for a server of two networks, whose requests may have half as many tokens.

    A text has at most 20,000 characters. A text that exceeds the limits alone is reported as such.
    """
    classifier = TextClassifier.load(toy_run / "model")
    limits = replace(Limits(), max_token_reads=Limits().max_token_reads // 2)
    asked: list[str] = []

    def answer(body: bytes) -> bytes:
        instances = json.loads(body)["instances"]
        asked.extend(instances)
        [result], _ = batch.infer(batch.read([({"body": body}, JSON_HEADERS)], limits), classifier, limits)
        assert isinstance(result, PredictedRequest) or len(instances) == 1, result
        return json.dumps({"predictions": [LATE for _ in instances]}).encode()

    assert len(list(predict(texts, answer, list(LATE["scores"])))) == len(texts)
    assert asked == texts


def test_a_refusal_of_the_server_is_reported(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{server.project.inference}/predictions/nobody"
    assert cli.main(["evaluate", "--data", str(TOY_TWEETS), "--split", "train", "--url", url]) == 1
    assert "answered 404" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("listed", "model", "asked"),
    [
        ({"models": ["my reviews"]}, None, "/predictions/my%20reviews"),
        ({"models": ["reviews", "sentiment"]}, "reviews", "/predictions/reviews"),
        ({"models": ["reviews", "sentiment"]}, None, "has several models, reviews, sentiment: name one"),
        ({"models": []}, None, "has no model"),
        ({"models": [1]}, None, "does not list models: name one"),
        ([], None, "does not list models: name one"),
    ],
)
def test_the_evaluated_model_is_the_named_one_or_the_only_one(listed: Any, model: str | None, asked: str) -> None:
    paths = []

    def reply(request: Request) -> Reply:
        paths.append(request.path)
        return Reply(body=json.dumps(listed if request.path == MODELS_PATH else {}).encode())

    with scripted(reply) as server:
        if asked.startswith("/"):
            server_predictor(server.url, model)(b'["late"]')
            assert paths[-1] == asked
        else:
            with pytest.raises(TrainingError, match=asked):
                server_predictor(server.url, model)


def test_a_model_name_needs_a_server_address_without_a_path(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--data", str(TOY_TWEETS), "--split", "train", "--model-name", "reviews"]
    assert cli.main(command) == 1
    assert "name the server with --url" in capfd.readouterr().err
    assert cli.main([*command, "--url", "http://127.0.0.1:9/predictions/sentiment"]) == 1
    assert "--url already has a path, /predictions/sentiment" in capfd.readouterr().err


@pytest.mark.usefixtures("closed_proxy")
def test_a_server_on_this_machine_is_reached_without_a_proxy() -> None:
    with scripted(lambda _: Reply(body=b'{"label": "x"}')) as server:
        assert json.loads(server_predictor(server.url, "x")(b'["late"]')) == {"label": "x"}


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://[::1", "ftp://127.0.0.1"])
def test_an_invalid_address_is_reported(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--data", str(TOY_TWEETS), "--split", "train", "--url", url]) == 1
    assert "--url: " in capfd.readouterr().err
