"""Predictions, against an HTTP server that answers like the model."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment.errors import RefusedError, UnexpectedAnswerError
from sentiment.inference import InferenceClient, Prediction, split
from tests.client.scripted import Reply, Request, error, model, prediction, scripted


def expected(text: str) -> Prediction:
    value = prediction(text)
    return Prediction(value["label"], value["score"], value["scores"], "1.0")


@given(
    texts=st.lists(st.text(max_size=30), max_size=60),
    max_texts=st.integers(1, 10),
    max_characters=st.integers(1, 40),
)
def test_split_keeps_every_text_once_in_order_within_the_limits(
    texts: list[str], max_texts: int, max_characters: int
) -> None:
    parts = list(split(texts, max_texts, max_characters))
    assert [text for part in parts for text in part] == texts
    for part in parts:
        assert 1 <= len(part) <= max_texts
        assert len(part) == 1 or sum(map(len, part)) <= max_characters


def test_split_defaults_lie_within_the_servers_limits() -> None:
    for texts in (["a"] * 5_000, ["a" * 20_000] * 50, ["a" * 999] * 999):
        for part in split(texts):
            assert len(part) <= 1_000
            assert sum(map(len, part)) <= 200_000


def test_split_yields_a_full_part_before_it_reads_the_next_text() -> None:
    """A user who types one text per line gets each answer at once."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for text in ("one", "two"):
            taken.append(text)
            yield text

    assert next(split(lines(), max_texts=1)) == ["one"]
    assert taken == ["one"]


def test_one_prediction() -> None:
    with scripted(model) as server, InferenceClient(server.url) as client:
        assert client.predict("Late again ✈") == expected("Late again ✈")
        assert server.requests[0].path == "/predictions/sentiment"


def test_a_request_names_the_model_and_the_version() -> None:
    with scripted(model) as server, InferenceClient(server.url, "my model", "2.0") as client:
        client.predict("late")
        assert server.requests[0].path == "/predictions/my%20model/2.0"


def test_many_predictions_keep_their_order_across_connections() -> None:
    texts = [f"flight {number}" + "!" * (number % 7) for number in range(1_000)]
    with scripted(model) as server, InferenceClient(server.url, connections=4) as client:
        assert client.predict_many(texts) == list(map(expected, texts))
        assert client.predict_many([]) == []
        assert sum(len(request.json) for request in server.requests) == 1_000


def test_a_refused_text_fails_predict_many() -> None:
    with (
        scripted(model) as server,
        InferenceClient(server.url) as client,
        pytest.raises(RefusedError, match="BlankTextError"),
    ):
        client.predict_many(["late", " ", "early"])


@given(st.lists(st.sampled_from(["late", "so late", " ", "", "x" * 201, "\ud800"]), min_size=1, max_size=40))
def test_each_text_gets_its_prediction_or_its_own_error(texts: list[str]) -> None:
    with scripted(model) as server, InferenceClient(server.url) as client:
        answers = client.predict_each(texts)
    assert len(answers) == len(texts)
    for text, answer in zip(texts, answers, strict=True):
        if isinstance(answer, RefusedError):
            kinds = {"": "BlankTextError", " ": "BlankTextError", "\ud800": "NotUtf8Error"}
            assert answer.type == kinds.get(text, "TooLargeError"), text
        else:
            assert answer == expected(text)


def test_a_request_that_was_lost_with_its_worker_is_sent_again_in_halves() -> None:
    """TorchServe answers 507 if a worker died with the request."""
    lost = iter([error(507, "InternalServerException"), error(507, "InternalServerException")])
    texts = [f"flight {number}" for number in range(8)]
    with scripted(lambda request: next(lost, None) or model(request)) as server, InferenceClient(server.url) as client:
        assert client.predict_each(texts) == list(map(expected, texts))


@pytest.mark.parametrize("failure", [error(507, "InternalServerException"), Reply(504)], ids=["507", "504"])
def test_a_text_that_was_lost_with_its_worker_is_sent_once_more(failure: Reply) -> None:
    """A load balancer may time out on a hung worker before TorchServe does."""
    lost = iter([failure])
    with scripted(lambda request: next(lost, None) or model(request)) as server, InferenceClient(server.url) as client:
        assert client.predict_each(["late"]) == [expected("late")]


def test_a_text_that_ends_every_worker_gets_an_error() -> None:
    def answer(request: Request) -> Reply:
        return error(507, "InternalServerException") if b"end" in request.body else model(request)

    with scripted(answer) as server, InferenceClient(server.url) as client:
        first, second, third = client.predict_each(["late", "end", "early"])
    assert (first, third) == (expected("late"), expected("early"))
    assert isinstance(second, RefusedError)
    assert second.type == "InternalServerException"


def test_an_error_that_no_text_caused_is_raised() -> None:
    with (
        scripted(lambda _: error(404, "ModelNotFoundException")) as server,
        InferenceClient(server.url) as client,
    ):
        with pytest.raises(RefusedError, match="ModelNotFoundException"):
            client.predict_each(["late", "early"])
        assert [request.path for request in server.requests] == ["/predictions/sentiment", "/v2/models"]


@pytest.mark.parametrize(
    "value",
    [[], [1], {"label": "x"}, [{"label": "x"}] * 2, "text", [{"label": "x", "score": "y", "scores": {}}] * 2],
    ids=str,
)
def test_a_reply_of_another_shape_is_an_error(value: object) -> None:
    with (
        scripted(lambda _: Reply(body=json.dumps(value).encode())) as server,
        InferenceClient(server.url) as client,
        pytest.raises(UnexpectedAnswerError),
    ):
        client.predict_many(["late", "early"])


def test_health_is_the_status_of_torchserve() -> None:
    def ping(request: Request) -> Reply:
        assert (request.method, request.path) == ("GET", "/ping")
        return Reply(body=b'{"status": "Healthy"}')

    with scripted(ping) as server, InferenceClient(server.url) as client:
        assert client.health() == "Healthy"
