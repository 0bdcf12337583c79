"""Replies of multi-label classifiers and regressions in every form of request.

Both models are made from the embedded model: with a sigmoid in place of the softmax, and with one output as the value.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler import batch, exported, open_inference, reply
from handler.batch import PredictedRequest
from handler.classifier import TextClassifier
from handler.exported import ExportedModel, ExportedModelError
from handler.limits import Limits
from handler.metrics import Metrics
from handler.network import TextNetwork
from handler.open_inference import Output, Outputs
from handler.prediction import Prediction
from handler.reply import Model, Reply
from handler.request import read_request
from handler.task import Task
from tests.paths import MODEL

TEXT = "Thank you, but we were two hours late"
LABELS = ("negative", "neutral", "positive")
JSON = {"content-type": "application/json"}
INFER = {"x-open-inference": "infer"}
LIMITS = Limits()


def multi_label() -> ExportedModel:
    model = exported.read(MODEL)
    return replace(
        model, config=replace(model.config, task="multi-label", thresholds=(0.5, 0.05, 0.5)), card={"notes": ""}
    )


def regression() -> ExportedModel:
    model = exported.read(MODEL)
    sizes = model.config.network.head_sizes
    last = f"head.{len(sizes) - 2}.weight"
    network = replace(model.config.network, head_sizes=(*sizes[:-1], 1))
    config = replace(model.config, network=network, labels=(), task="regression")
    return replace(model, config=config, weights=model.weights | {last: model.weights[last][:1]}, card={})


@pytest.fixture(scope="module", params=[multi_label, regression], ids=["multi-label", "regression"])
def model(request: pytest.FixtureRequest) -> ExportedModel:
    model: ExportedModel = request.param()
    exported.check(model)
    return model


@pytest.fixture(scope="module")
def classifier(model: ExportedModel) -> TextClassifier:
    return TextClassifier(model, TextNetwork.of(model))


def answer(classifier: TextClassifier, body: bytes, headers: dict[str, str]) -> Any:
    return json.loads(written(classifier, body, headers).body)


def written(classifier: TextClassifier, body: bytes, headers: dict[str, str]) -> Reply:
    requests = batch.read([({"body": body}, headers)], LIMITS, classifier.task.name)
    results, _ = batch.infer(requests, classifier, LIMITS)
    [reply] = batch.write(results, Model("reviews", "1.0", classifier.task, classifier.card), LIMITS)
    return reply


def as_json(body: object) -> bytes:
    return json.dumps(body).encode()


def test_each_task_has_its_reply(classifier: TextClassifier) -> None:
    outputs = classifier.predict([TEXT])[0]
    reply_json = answer(classifier, as_json({"text": TEXT}), JSON)
    if classifier.task.name == "multi-label":
        assert list(reply_json) == ["labels", "scores"]
        assert list(reply_json["scores"].values()) == pytest.approx(outputs.tolist(), abs=1e-6)
        over = [label for label, p, least in zip(LABELS, outputs, (0.5, 0.05, 0.5), strict=True) if p > least]
        assert reply_json["labels"] == over
        assert over
    else:
        assert reply_json == {"value": pytest.approx(float(outputs[0]), rel=1e-5)}
    assert answer(classifier, as_json({"instances": [TEXT]}), JSON) == {"predictions": [reply_json]}


def test_each_task_has_its_explanation(classifier: TextClassifier) -> None:
    reply_json = answer(classifier, as_json({"text": TEXT}), JSON | {"explain": "True"})
    ids = classifier.ids(TEXT)
    place = [token["token"] for token in reply_json["tokens"]].index("late")
    occluded = [*ids[:place], classifier.unknown_id, *ids[place + 1 :]]
    falls = classifier.probabilities([ids])[0] - classifier.probabilities([occluded])[0]
    token = reply_json["tokens"][place]
    if classifier.task.name == "multi-label":
        expected = {
            label: fall for label, fall in zip(LABELS, falls.tolist(), strict=True) if label in reply_json["labels"]
        }
        assert token["weights"] == pytest.approx(expected, abs=1e-5)
        assert token["weight"] == pytest.approx(sum(expected.values()), abs=1e-5)
    else:
        assert "weights" not in token
        assert token["weight"] == pytest.approx(float(falls[0]), abs=1e-5)


def test_if_no_label_is_predicted_the_most_probable_label_is_explained() -> None:
    model = multi_label()
    model = replace(model, config=replace(model.config, thresholds=(1.0, 1.0, 1.0)))
    reply_json = answer(
        TextClassifier(model, TextNetwork.of(model)), as_json({"text": TEXT}), JSON | {"explain": "True"}
    )
    assert reply_json["labels"] == []
    assert {tuple(token["weights"]) for token in reply_json["tokens"]} == {
        (max(reply_json["scores"], key=reply_json["scores"].__getitem__),)
    }


def test_each_task_has_its_tensors(classifier: TextClassifier) -> None:
    request = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": [TEXT, "late"]}]}
    outputs = classifier.predict([TEXT, "late"])
    [tensor] = answer(classifier, as_json(request), INFER)["outputs"]
    [described] = answer(classifier, b"", {"x-open-inference": "metadata"})["outputs"]
    name, shape = {"multi-label": ("scores", [2, 3]), "regression": ("value", [2])}[classifier.task.name]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == (name, shape, "FP32")
    assert tensor["data"] == pytest.approx(outputs.ravel().tolist(), rel=1e-5, abs=1e-6)
    assert described == {"name": name, "datatype": "FP32", "shape": [-1, *shape[1:]]}
    refused = answer(classifier, as_json(request | {"outputs": [{"name": "label"}]}), INFER)
    assert refused == {"error": f"Output 0 is unknown. The model has the output `{name}`."}


def test_the_metadata_name_the_task(classifier: TextClassifier) -> None:
    properties = answer(classifier, b"", {"x-open-inference": "metadata"})["properties"]
    if classifier.task.name == "multi-label":
        labels = '["negative", "neutral", "positive"]'
        assert properties == {"task": "multi-label", "labels": labels, "thresholds": "[0.5, 0.05, 0.5]"}
    else:
        assert properties == {"task": "regression"}


def test_each_predicted_label_is_counted(classifier: TextClassifier) -> None:
    metrics = Metrics(classifier, "reviews", "1.0")
    requests = batch.read([({"body": as_json([TEXT, TEXT])}, JSON)], LIMITS, classifier.task.name)
    [result], measurements = batch.infer(requests, classifier, LIMITS)
    metrics.count([result], measurements)
    counted = {
        sample.labels["label"]: sample.value
        for sample in metrics.take()
        if sample.name == "classifier_predictions_total"
    }
    assert isinstance(result, PredictedRequest)
    predicted = result.predictions[0].labels
    assert counted == {label: 2 * (label in predicted) for label in classifier.labels}


anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=30)
@given(
    st.lists(anything.filter(lambda text: text.replace("\ufeff", "").strip()), min_size=1, max_size=3), st.booleans()
)
def test_no_reply_has_more_bytes_than_its_estimate(
    classifier: TextClassifier, texts: list[str], is_explained: bool
) -> None:
    headers = JSON | ({"explain": "True"} if is_explained else {})
    body = as_json({"instances": texts})
    request = read_request({"body": body}, headers, LIMITS, classifier.task.name)
    size = len(written(classifier, body, headers).body)
    assert size <= reply.max_bytes(request, classifier.task, is_explained)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5), st.booleans())
def test_no_value_has_more_bytes_than_its_estimate(values: list[float], is_binary: bool) -> None:
    task, outputs = Task((), "regression"), Outputs(None, (Output("value", is_binary),))
    predictions = [Prediction.from_outputs(np.array([value], np.float32), task) for value in values]
    results = [reply.prediction_json(prediction, task)["value"] for prediction in predictions]
    assert results == pytest.approx(values, rel=1e-5, abs=0)
    body, _ = open_inference.reply(predictions * 300, outputs, task, "m" * 255, "1.0")
    assert len(body) <= open_inference.max_bytes(300 * len(values), task, outputs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "ranking", "`task` is 'ranking'; expected one of single-label, multi-label, regression"),
        ("thresholds", [0.5], "expected 3 numbers as `thresholds`"),
        ("thresholds", [0.5, 0.5, "0.5"], r"`thresholds\[2\]` is '0.5'; expected a number"),
        ("value_range", [0, 1], "`value_range` is .* expected the least and the greatest value of a regression"),
        ("task", "regression", "a regression has no labels and one output"),
        ("task", "single-label", "expected 0 numbers as `thresholds`"),
    ],
)
def test_settings_that_do_not_match_the_task_are_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    exported.write(multi_label(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ExportedModelError, match=message):
        exported.read(tmp_path)


def test_a_written_task_is_read_back_unchanged(model: ExportedModel, tmp_path: Path) -> None:
    exported.write(model, tmp_path)
    assert exported.read_description(tmp_path).config == model.config


def test_the_file_of_a_single_label_model_has_no_task(tmp_path: Path) -> None:
    """Versions of this code without other tasks can read the file, and the identity of the model stays the same."""
    exported.write_description(exported.read_description(MODEL), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == (MODEL / "config.json").read_bytes()
