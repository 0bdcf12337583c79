"""Batches: every request gets its own reply, independent of the other requests of the batch."""

import json
import logging
import math
import re
import weakref
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler import batch, reply
from handler.batch import Failure, TokenizedRequest
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.padding import cost
from handler.prediction import Explanation, Prediction
from handler.reply import Model, Reply
from handler.request import read_request
from handler.task import Task
from handler.tokens import TokenizedText
from tests.paths import ROOT

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
CARD = {"card": "a card"}
DEFAULT_LIMITS = Limits()

Row = tuple[dict[str, object], dict[str, str]]


def answer(
    rows: list[Row], classifier: TextClassifier, limits: Limits = DEFAULT_LIMITS
) -> list[tuple[HTTPStatus, Any]]:
    return [(reply.status, json.loads(reply.body)) for reply in replies_to(rows, classifier, limits)]


def replies_to(rows: list[Row], classifier: TextClassifier, limits: Limits = DEFAULT_LIMITS) -> list[Reply]:
    results, _ = batch.infer(batch.read(rows, limits), classifier, limits)
    return batch.write(results, model(classifier), limits)


def model(classifier: TextClassifier, card: dict[str, str] = CARD) -> Model:
    return Model("sentiment", "1.0", classifier.task, card)


def text_row(text: str) -> Row:
    return {"body": text.encode()}, TEXT


def json_row(value: object) -> Row:
    return {"body": as_json(value)}, JSON


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_every_form_of_request_gets_the_reply_of_its_form(classifier: TextClassifier) -> None:
    rows = [text_row("a b"), json_row({"text": "a b"}), json_row(["a b", "c"]), json_row({"instances": ["a b"]})]
    [single, as_object, as_list, as_instances] = [body for _, body in answer(rows, classifier)]
    assert set(single) == {"label", "score", "scores"}
    assert list(single["scores"]) == list(classifier.labels)
    assert single["score"] == max(single["scores"].values()) == single["scores"][single["label"]]
    assert as_object["scores"] == pytest.approx(single["scores"], abs=1e-5)
    assert len(as_list) == 2
    assert as_list[0]["scores"] == pytest.approx(single["scores"], abs=1e-5)
    assert as_instances["predictions"][0]["scores"] == pytest.approx(single["scores"], abs=1e-5)


def test_empty_lists_get_empty_lists(classifier: TextClassifier) -> None:
    assert answer([json_row([]), json_row({"instances": []})], classifier) == [
        (HTTPStatus.OK, []),
        (HTTPStatus.OK, {"predictions": []}),
    ]


def test_a_malformed_request_does_not_affect_other_requests(classifier: TextClassifier) -> None:
    bad: list[Row] = [
        ({"body": b"\xff"}, TEXT),
        ({"body": b"{"}, JSON),
        json_row({"text": 1}),
        text_row(" "),
        text_row("a" * 30_000),
        json_row({"text": "\ud800"}),
        ({}, {}),
    ]
    good = [text_row("late again"), json_row(["thank you", "xxpad"])]
    alone = [answer([row], classifier)[0] for row in good]
    replies = answer([*bad[:3], good[0], *bad[3:], good[1]], classifier)
    statuses = [status.value for status, _ in replies]
    assert statuses == [400, 400, 400, 200, 400, 413, 400, 400, 200]
    assert replies[3][1]["scores"] == pytest.approx(alone[0][1]["scores"], abs=1e-5)
    for together, by_itself in zip(replies[8][1], alone[1][1], strict=True):
        assert together["scores"] == pytest.approx(by_itself["scores"], abs=1e-5)
    for status, body in replies:
        if status is not HTTPStatus.OK:
            assert set(body) == {"code", "type", "message"}
            assert body["code"] == status.value


def test_if_a_batch_exceeds_a_limit_the_large_request_is_refused_and_the_small_requests_are_answered(
    classifier: TextClassifier,
) -> None:
    limits = Limits(max_batch_characters=100)
    replies = answer([text_row("a" * 90), text_row("b" * 20), text_row("c" * 10)], classifier, limits)
    assert [status.value for status, _ in replies] == [503, 200, 200]
    assert replies[0][1]["type"] == "OverloadedError"


def explained_row(text: bytes) -> Row:
    return {"body": text}, TEXT | {"explain": "True"}


def test_work_above_the_limit_is_refused_and_other_requests_are_answered(classifier: TextClassifier) -> None:
    """A symbol is a token, so a limit of characters alone would not bound the time for a batch."""
    few, many, too_many = (text_row(text) for text in ("late again", "!?" * 8, "!?" * 10))
    limits = Limits(max_token_reads=round(19 * 2.2))  # the cost of a token in a text with a forward pass of its own
    replies = answer([few, many, few], classifier, limits)
    assert [status.value for status, _ in replies] == [200, 503, 200]
    assert replies[1][1]["type"] == "OverloadedError"
    [(status, body)] = answer([too_many], classifier, limits)
    assert (status.value, body["type"]) == (413, "TooLargeError")
    assert "more than 42 token reads" in body["message"]


class Delegate:
    """A classifier that behaves like another classifier. Subclasses override some of its methods."""

    def __init__(self, classifier: TextClassifier) -> None:
        self._classifier = classifier
        self.tokenized: list[str] = []
        """The texts that were tokenized."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def ids(self, text: str) -> list[int]:
        self.tokenized.append(text)
        return self._classifier.ids(text)

    def tokenize(self, text: str) -> TokenizedText:
        self.tokenized.append(text)
        return self._classifier.tokenize(text)


def test_the_tokenizer_stops_when_a_request_is_refused(classifier: TextClassifier) -> None:
    counted: Any = Delegate(classifier)
    [(status, _)] = answer([json_row(["!?" * 10] * 100)], counted, Limits(max_token_reads=44))
    assert status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert len(counted.tokenized) == 2


def test_the_tokenizer_stops_when_refused_requests_have_used_its_time(classifier: TextClassifier) -> None:
    counted: Any = Delegate(classifier)
    many, few = text_row("!?" * 10), text_row("late again")
    replies = answer([many, few, many, many, many, many, few], counted, Limits(max_token_reads=42))
    assert [status.value for status, _ in replies] == [413, 200, 413, 413, 413, 503, 200]
    assert len(counted.tokenized) == 6


def test_a_refused_request_keeps_no_texts_in_memory(classifier: TextClassifier) -> None:
    references: list[weakref.ref[TokenizedText]] = []

    class Referencing(Delegate):
        def tokenize(self, text: str) -> TokenizedText:
            tokenized = super().tokenize(text)
            references.append(weakref.ref(tokenized))
            return tokenized

    referencing: Any = Referencing(classifier)
    [result], _ = batch.infer(batch.read([explained_row(b"!? " * 1_000)], DEFAULT_LIMITS), referencing, DEFAULT_LIMITS)
    assert isinstance(result, Failure)
    assert [reference() for reference in references] == [None]


def test_the_limit_counts_an_explained_text_once_more_for_each_of_its_tokens(classifier: TextClassifier) -> None:
    """A batch with many explanations would take longer than the response timeout."""
    tokens = len(classifier.ids("great flight today"))
    explained = explained_row(b"great flight today")
    token_reads = 2.2 * tokens + cost([tokens] * (tokens + 1))
    for limit, status in ((math.ceil(token_reads), 200), (math.ceil(token_reads) - 1, 413)):
        assert answer([explained], classifier, Limits(max_token_reads=limit))[0][0] == status
    replies = answer(
        [explained, explained, text_row("late")], classifier, Limits(max_token_reads=round(1.8 * token_reads))
    )
    assert [status.value for status, _ in replies] == [200, 503, 200]


def test_any_text_with_the_length_of_a_tweet_can_be_explained(served: TextClassifier) -> None:
    assert answer([explained_row(b"!?" * 140)], served)[0][0] is HTTPStatus.OK


PROSE = ("The airline cancelled our flight without telling anybody, and nobody answered the telephone. " * 220)[:20_000]


@pytest.mark.parametrize("texts", [["!?" * 30] * 1_000, ["()" * 10_000], [PROSE] * 10])
def test_a_thousand_tweets_and_the_longest_texts_are_within_the_limits(
    classifier: TextClassifier, texts: list[str]
) -> None:
    tokenization = batch._Tokenization(classifier, DEFAULT_LIMITS)
    [result] = batch._smallest_first(batch.read([json_row(texts)], DEFAULT_LIMITS), tokenization)
    assert isinstance(result, TokenizedRequest)


ATTACK = ["😀$—" * 2_660 + "".join(chr(0x20000 + index) for index in range(12_020))] * 10
"""Texts of 694 kB with 79,810 tokens. spaCy's tokenizer would hash the rest of the word for each symbol."""


def test_a_batch_of_the_largest_requests_has_the_work_of_one_request(served: TextClassifier) -> None:
    """The batch has as many requests as TorchServe hands over. A refused request leaves the limit to other requests."""
    for texts in (ATTACK, ["()" * 10_000] * 10, ["!?" * 35] * 1_000):
        small_request = text_row("late again")
        rows = [json_row(texts), small_request, *[json_row(texts)] * 14]
        tokenization = batch._Tokenization(served, DEFAULT_LIMITS)
        results = batch._smallest_first(batch.read(rows, DEFAULT_LIMITS), tokenization)
        assert isinstance(results[1], TokenizedRequest)
        admitted = [[len(ids) for ids in each.ids] for each in results if isinstance(each, TokenizedRequest)]
        assert sum(map(cost, admitted)) <= DEFAULT_LIMITS.max_token_reads
        assert tokenization.tokens <= 2 * (DEFAULT_LIMITS.max_token_reads + DEFAULT_LIMITS.max_text_characters)


LABELS = tuple(f"label {number:019}" for number in range(400))


class ManyLabels(Delegate):
    """The classifier with other labels, which share the probability of its own labels."""

    def __init__(self, classifier: TextClassifier, labels: tuple[str, ...] = LABELS) -> None:
        super().__init__(classifier)
        self.task = Task(labels)

    def probabilities(self, ids: list[list[int]]) -> Any:
        rows = self._classifier.probabilities(ids)
        return np.resize(rows, (len(ids), self.task.outputs)) / self.task.outputs

    def explain(self, text: TokenizedText, prediction: Prediction) -> Explanation:
        outputs = np.resize(prediction.outputs, self._classifier.task.outputs)
        return self._classifier.explain(text, replace(prediction, outputs=tuple(outputs.tolist())))


def test_a_request_with_a_reply_too_large_for_torchserve_is_refused_before_the_tokenizer(
    classifier: TextClassifier,
) -> None:
    labelled: Any = ManyLabels(classifier)
    many = as_json(["late"] * 1_000)
    for headers in (JSON, JSON | {"explain": "True"}):
        [(status, refused)] = answer([({"body": many}, headers)], labelled)
        assert (status.value, refused["type"]) == (413, "TooLargeError")
        assert labelled.tokenized == []
        assert "1000 texts" in refused["message"]
    [(_, refused)] = answer([({"body": many}, JSON)], labelled)
    [fitting] = map(int, re.findall(r"enough for (\d+) such texts", refused["message"]))
    assert fitting > 300
    [(status, predictions)] = answer([json_row(["late"] * fitting)], labelled)
    assert (status.value, len(predictions)) == (200, fitting)


def test_requests_whose_replies_are_too_large_together_get_503(classifier: TextClassifier) -> None:
    labelled: Any = ManyLabels(classifier)
    rows = [json_row(["late"] * 100)] * 6 + [text_row("late again")]
    replies = replies_to(rows, labelled)
    assert [reply.status.value for reply in replies] == [200] * 4 + [503] * 2 + [200]
    assert sum(len(reply.body) for reply in replies) <= DEFAULT_LIMITS.max_batch_reply_bytes
    assert len(labelled.tokenized) == 401


anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=150)
@given(
    st.lists(anything.filter(lambda text: text.replace("\ufeff", "").strip()), min_size=1, max_size=4),
    st.lists(anything, min_size=1, max_size=5, unique=True),
    st.booleans(),
)
@example(["A"], ["a"], True)
@example(["\x00"], ["\x00"], True)
@example(["İ \u1e9e"], ["é"], True)
@example(["A B AB A-B"], ["a"], True)
@example(["aaaa bbbb a a a a"], ["a"], True)
def test_no_reply_has_more_bytes_than_its_estimate(
    classifier: TextClassifier, texts: list[str], labels: list[str], is_explained: bool
) -> None:
    labelled: Any = ManyLabels(classifier, tuple(labels))
    headers = JSON | ({"explain": "True"} if is_explained else {})
    fields: dict[str, object] = {"body": as_json({"instances": texts})}
    [written] = replies_to([(fields, headers)], labelled)
    assert written.status is HTTPStatus.OK
    request = read_request(fields, headers, DEFAULT_LIMITS)
    assert len(written.body) <= reply.max_bytes(request, labelled.task, is_explained)


def test_no_worker_sends_a_reply_above_the_limit(classifier: TextClassifier, caplog: pytest.LogCaptureFixture) -> None:
    """The limit also applies to the model's card."""
    limits = Limits(max_batch_reply_bytes=200)
    results, _ = batch.infer(batch.read([({}, {"describe": "True"})], limits), classifier, limits)
    [written] = batch.write(results, model(classifier, {"card": "a" * 200}), limits)
    assert (written.status.value, json.loads(written.body)["type"]) == (500, "InternalError")
    assert "bytes" in caplog.text


def test_the_limit_of_replies_is_torchserves_maximum_response_size() -> None:
    """TorchServe reads replies up to and including this size (`org.pytorch.serve.util.codec.CodecUtils.readLength`)."""
    properties = (ROOT / "config.properties").read_text(encoding="utf-8").splitlines()
    assert f"max_response_size={DEFAULT_LIMITS.max_batch_reply_bytes}" in properties


def test_the_limit_of_a_batch_never_refuses_a_single_request(classifier: TextClassifier) -> None:
    assert answer([text_row("a" * 90)], classifier, Limits(max_batch_characters=10))[0][0] is HTTPStatus.OK


def test_a_batch_may_have_requests_of_all_kinds(classifier: TextClassifier) -> None:
    rows: list[Row] = [
        text_row("great flight"),
        ({"body": b"great flight"}, TEXT | {"explain": "True"}),
        ({}, {"describe": "True"}),
        ({"body": b"!?" * 500}, TEXT | {"explain": "True"}),
    ]
    [predicted, explained, described, too_long] = answer(rows, classifier)
    assert set(predicted[1]) == {"label", "score", "scores"}
    assert explained[1]["label"] == predicted[1]["label"]
    assert [token["token"] for token in explained[1]["tokens"]] == classifier.tokens("great flight")
    assert described == (HTTPStatus.OK, CARD)
    assert too_long[0].value == 413


def test_a_clients_own_header_does_not_request_a_description(classifier: TextClassifier) -> None:
    """TorchServe forwards every header. It sets `explain` itself for some of its paths, but not for all."""
    described = TEXT | {"describe": "True"}
    for headers in (described, described | {"explain": "False"}):
        [(status, body)] = answer([({"body": b"late again"}, headers)], classifier)
        assert (status, set(body)) == (HTTPStatus.OK, {"label", "score", "scores"})
    for headers in (described | {"explain": "False"}, FORM | {"describe": "True"}):
        [(status, body)] = answer([({}, headers)], classifier)
        assert status is HTTPStatus.BAD_REQUEST


class Defective(Delegate):
    """The classifier with a step that fails for one text."""

    def __init__(self, classifier: TextClassifier, step: str) -> None:
        super().__init__(classifier)
        self._step = step
        self._word = "secret"

    def ids(self, text: str) -> list[int]:
        if self._step == "ids" and self._word in text:
            raise RuntimeError(f"cannot read {text}")
        return [7, 7, 7] if self._word in text else self._classifier.ids(text)

    def probabilities(self, ids: Any) -> Any:
        if self._step == "probabilities" and [7, 7, 7] in list(ids):
            raise RuntimeError(f"cannot weigh {self._word}")
        return self._classifier.probabilities(ids)


@pytest.mark.parametrize("step", ["ids", "probabilities"])
def test_an_unexpected_error_fails_only_its_own_request_and_logs_no_text(
    classifier: TextClassifier, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    defective: Any = Defective(classifier, step)
    with caplog.at_level(logging.DEBUG):
        replies = answer([text_row("thanks"), text_row("my secret"), text_row("late")], defective)
    assert [status.value for status, _ in replies] == [200, 500, 200]
    assert replies[1][1]["type"] == "InternalError"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in replies[1][1]["message"]


@settings(max_examples=100)
@given(st.lists(st.text() | st.binary(), max_size=6))
def test_any_body_gets_a_prediction_or_a_documented_error(
    classifier: TextClassifier, bodies: list[str | bytes]
) -> None:
    rows: list[Row] = [
        ({"body": body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")}, headers)
        for body, headers in zip(bodies, [TEXT, JSON, {}] * 2, strict=False)
    ]
    for status, _ in answer(rows, classifier):
        assert status.value in (200, 400, 413)
