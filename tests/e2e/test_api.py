"""Tests of `POST /predictions/sentiment` with a real server."""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from server import cores, memory
from tests.e2e import grpc_calls
from tests.e2e.server_process import BATCH, Server
from tests.paths import TOY_TWEETS
from training.data import read_tweets

TOLERANCE = 1e-5
TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}

AWKWARD = {
    "emoji": "😀😂 what a flight 👨‍👩‍👧🇬🇧 ❤️",
    "many emoji": "😀😂❤🙏" * 500,
    "right to left": "شكرا لكم على الرحلة \u202e שלום",
    "null characters": "null\x00 and \x00\x00 void",
    "padding": "xxpad xxpad late xxpad",
    "special tokens": "xxbos xxunk xxmaj xxrep 4 x xxfake",
    "control characters": "\x01\x1b[31m red \x7f\x85\u2028",
    "combining characters": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L",
    "one character": "a",
    "punctuation": "()" * 2_000,
    "capitals": "AB" * 5_000 + "a",
    "the longest": "late again " * 1_818 + "!!",
    "markup": '<b>&amp; "quotes" \\n {"text": [1]}',
    "not a number": "NaN",
    "the number of no character": f"late &#{'1' * 5_000}; again",
}


class Client:
    def __init__(self, server: Server, session: requests.Session, model: str = "sentiment") -> None:
        self.url = f"{server.project.inference}/predictions/{model}"
        self.session = session

    def __call__(
        self, body: bytes | str | None = None, headers: dict[str, str] | None = None, **options: Any
    ) -> requests.Response:
        data = body.encode() if isinstance(body, str) else body
        return self.session.post(self.url, data=data, headers=headers, timeout=120, **options)

    def scores(self, text: str) -> dict[str, float]:
        response = self(text, TEXT)
        assert response.status_code == 200, response.text
        scores: dict[str, float] = response.json()["scores"]
        return scores


@pytest.fixture(scope="module")
def ask(server: Server, session: requests.Session) -> Client:
    return Client(server, session)


@pytest.fixture(scope="module")
def expected(served: TextClassifier) -> Callable[[str], dict[str, float]]:
    def scores(text: str) -> dict[str, float]:
        return dict(zip(served.labels, map(float, served.predict([text])[0]), strict=True))

    return scores


Expected = Callable[[str], dict[str, float]]


def test_a_prediction_has_label_score_and_scores(ask: Client, expected: Expected) -> None:
    response = ask("Thank you for the great flight!", TEXT)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    body = response.json()
    assert list(body) == ["label", "score", "scores"]
    assert body["scores"] == pytest.approx(expected("Thank you for the great flight!"), abs=TOLERANCE)
    assert body["score"] == body["scores"][body["label"]] == max(body["scores"].values())


@pytest.mark.parametrize(
    ("options", "as_list"),
    [
        ({"body": "late again ✈", "headers": TEXT}, False),
        ({"body": "late again ✈", "headers": {"content-type": "text/plain; charset=utf-8"}}, False),
        ({"body": "late again ✈"}, False),
        ({"body": json.dumps({"text": "late again ✈"}), "headers": JSON}, False),
        ({"json": {"text": "late again ✈"}}, False),
        (
            {
                "body": json.dumps({"text": "late again ✈"}),
                "headers": {"content-type": "application/json; charset=UTF-8"},
            },
            False,
        ),
        ({"json": ["late again ✈"]}, True),
        ({"json": {"instances": ["late again ✈"]}}, True),
        ({"json": {"instances": [{"text": "late again ✈"}]}}, True),
        ({"files": {"text": (None, "late again ✈")}}, False),
    ],
    ids=str,
)
def test_every_form_of_body_gets_the_same_scores(
    ask: Client, expected: Expected, options: dict[str, Any], as_list: bool
) -> None:
    response = ask(**options)
    assert response.status_code == 200, response.text
    body = response.json()
    if as_list:
        [body] = body["predictions"] if isinstance(body, dict) else body
    assert body["scores"] == pytest.approx(expected("late again ✈"), abs=TOLERANCE)


def test_an_urlencoded_form(ask: Client, expected: Expected) -> None:
    response = ask.session.post(ask.url, data={"text": "late again ✈"}, timeout=60)
    assert response.json()["scores"] == pytest.approx(expected("late again ✈"), abs=TOLERANCE)


def test_a_list_keeps_its_order(ask: Client, expected: Expected) -> None:
    texts = list(read_tweets(TOY_TWEETS)["text"])
    body = ask(json=texts).json()
    assert len(body) == len(texts)
    for text, prediction in zip(texts, body, strict=True):
        assert prediction["scores"] == pytest.approx(expected(text), abs=TOLERANCE), text


def test_an_empty_list_has_an_empty_answer(ask: Client) -> None:
    assert ask(json=[]).json() == []
    assert ask(json={"instances": []}).json() == {"predictions": []}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_texts_get_the_models_own_scores(ask: Client, expected: Expected, name: str) -> None:
    text = AWKWARD[name]
    assert ask.scores(text) == pytest.approx(expected(text), abs=TOLERANCE)
    assert ask(json={"text": text}).json()["scores"] == pytest.approx(expected(text), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "status", "kind"),
    [
        ({"body": b"\xff\xfe\x00", "headers": TEXT}, 400, "NotUtf8Error"),
        ({"body": b"\xff\xfe\x00"}, 400, "NotUtf8Error"),
        ({"body": b'{"text": "\xe9"}', "headers": JSON}, 400, "NotUtf8Error"),
        ({"body": b'{"text": "\\ud800"}', "headers": JSON}, 400, "NotUtf8Error"),
        (
            {"body": "Grüße".encode("latin-1"), "headers": {"content-type": "text/plain; charset=latin-1"}},
            400,
            "NotUtf8Error",
        ),
        ({"body": b'{"text": ', "headers": JSON}, 400, "NotJsonError"),
        ({"body": b"", "headers": JSON}, 400, "NotJsonError"),
        ({"json": {"txet": "a"}}, 400, "WrongShapeError"),
        ({"json": {"text": None}}, 400, "WrongShapeError"),
        ({"json": ["a", 2]}, 400, "WrongShapeError"),
        ({"json": "a"}, 400, "WrongShapeError"),
        ({"json": {"instances": {"text": "a"}}}, 400, "WrongShapeError"),
        ({"files": {"txet": (None, "a")}}, 400, "WrongShapeError"),
        ({"body": "a", "headers": {"content-type": "image/png"}}, 400, "WrongShapeError"),
        (
            {"body": '{"text": "a"}', "headers": {"content-type": "application/x-www-form-urlencoded"}},
            400,
            "WrongShapeError",
        ),
        ({"body": b"", "headers": TEXT}, 400, "BlankTextError"),
        ({}, 400, "BlankTextError"),
        ({"body": " \n\t\u2003", "headers": TEXT}, 400, "BlankTextError"),
        ({"json": {"text": ""}}, 400, "BlankTextError"),
        ({"json": ["a", " "]}, 400, "BlankTextError"),
        ({"body": "a" * 20_001, "headers": TEXT}, 413, "TooLargeError"),
        ({"body": "a" * 100_000, "headers": TEXT}, 413, "TooLargeError"),
        ({"json": {"text": "✈" * 20_001}}, 413, "TooLargeError"),
        ({"json": ["a"] * 1_001}, 413, "TooLargeError"),
        ({"json": ["a" * 20_000] * 11}, 413, "TooLargeError"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_every_documented_error(ask: Client, options: dict[str, Any], status: int, kind: str) -> None:
    response = ask(**options)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["code"], body["type"]) == (status, kind)
    assert set(body) == {"code", "type", "message"}


def test_a_body_over_the_doors_limit_is_413(ask: Client) -> None:
    """The door may close the connection while the client is still sending the body."""
    with contextlib.suppress(requests.ConnectionError):
        response = ask(b"a" * 2_600_000, TEXT)
        assert (response.status_code, response.json()["type"]) == (413, "TooLargeError")
    assert ask("still there", TEXT).status_code == 200


def test_a_body_at_the_handlers_limit_reaches_the_handler(ask: Client) -> None:
    """A body of 200,000 characters of 12 bytes each is answered; with one more character, the handler refuses it."""
    longest = json.dumps(["\U0001f600" * 20_000] * 10)
    assert len(longest) > 2_400_000
    assert len(ask(longest, JSON).json()) == 10
    refused = ask(longest.replace('["', '["a', 1), JSON)
    assert (refused.status_code, refused.json()["type"]) == (413, "TooLargeError")


def test_the_error_for_get_lists_the_allowed_methods(ask: Client) -> None:
    response = ask.session.get(ask.url, timeout=60)
    assert (response.status_code, response.json()["type"]) == (405, "MethodNotAllowedException")
    assert response.headers["Allow"] == "POST, PUT"


def test_bad_requests_do_not_affect_the_rest_of_their_batch(
    server: Server, session: requests.Session, expected: Expected
) -> None:
    """TorchServe waits for a full batch, so all these requests are in one batch."""
    ask = Client(server, session, "batched")
    bad: list[tuple[bytes, dict[str, str], int]] = [
        (b"\xff", TEXT, 400),
        (b"{", JSON, 400),
        (b"  ", TEXT, 400),
        (b"a" * 100_000, TEXT, 413),
    ]
    good = ["late again", "thank you 😀", "xxpad", "what time does it leave?"]
    with ThreadPoolExecutor(BATCH) as pool:
        bad_replies = [pool.submit(ask, body, headers) for body, headers, _ in bad]
        good_replies = [pool.submit(ask, text, TEXT) for text in good]
    assert [reply.result().status_code for reply in bad_replies] == [status for _, _, status in bad]
    for text, reply in zip(good, good_replies, strict=True):
        assert reply.result().status_code == 200, reply.result().text
        assert reply.result().json()["scores"] == pytest.approx(expected(text), abs=TOLERANCE)


def test_a_batch_over_its_limit_refuses_the_excess_and_answers_the_rest(
    server: Server, session: requests.Session
) -> None:
    """A batch of the test server may have 30,000 characters, so only one of several long texts is answered.

    The door retries the refused requests once, and TorchServe puts them into one batch again.
    """
    ask = Client(server, session, "batched")
    texts = ["late again " * 1_800] * (BATCH - 2) + ["thank you"] * 2
    with ThreadPoolExecutor(BATCH) as pool:
        replies = list(pool.map(lambda text: ask(text, TEXT), texts))
    assert {reply.status_code for reply in replies[:-2]} == {200, 503}
    assert {reply.status_code for reply in replies[-2:]} == {200}
    for refused in (reply for reply in replies if reply.status_code == 503):
        assert refused.json()["type"] == "OverloadedError"
        assert refused.headers["Retry-After"] == "1"


def test_texts_that_slow_the_tokenizer_down_do_not_affect_other_requests(ask: Client, expected: Expected) -> None:
    """Each attack has as many characters as a request may have.

    With spaCy's own tokenizer, two requests of the first kind occupied a worker for 27 s, and TorchServe killed it.
    """
    symbols = json.dumps(["😀$—" * 2_660 + "".join(chr(0x20000 + index) for index in range(12_020))] * 10)
    brackets = json.dumps(["()" * 10_000] * 10)
    with ThreadPoolExecutor(12) as pool:
        attacks = [pool.submit(ask, body, JSON) for body in [symbols, brackets] * 2]
        neighbours = [pool.submit(ask.scores, "late again") for _ in range(8)]
    for attack in attacks:
        reply = attack.result()
        assert (reply.status_code, reply.json()["type"]) in ((413, "TooLargeError"), (503, "OverloadedError"))
    for neighbour in neighbours:
        assert neighbour.result() == pytest.approx(expected("late again"), abs=TOLERANCE)
    assert ask("()" * 10_000, TEXT).status_code == 200


def test_64_concurrent_requests_get_the_same_scores_as_single_ones(ask: Client) -> None:
    texts = [*AWKWARD.values(), *read_tweets(TOY_TWEETS)["text"]]
    texts = [text for text in texts if len(text) < 500]
    texts = (texts * 3)[:64]
    alone = [ask.scores(text) for text in texts]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask.scores, texts))
    for text, first, second in zip(texts, alone, together, strict=True):
        assert second == pytest.approx(first, abs=TOLERANCE), text


def test_an_explanation_has_tokens_and_scores(ask: Client, served: TextClassifier) -> None:
    url = ask.url.replace("/predictions/", "/explanations/")
    body = ask.session.post(url, data="great flight", headers=TEXT, timeout=60).json()
    assert [token["token"] for token in body["tokens"]] == served.tokens("great flight")
    assert body["scores"] == pytest.approx(ask.scores("great flight"), abs=TOLERANCE)


def test_the_management_api_returns_the_models_card(server: Server, served: TextClassifier) -> None:
    url = f"{server.project.management}/models/sentiment?customized=true"
    [description] = requests.get(url, timeout=60).json()
    card = description["customizedMetadata"]
    machine = card.pop("machine")
    assert card == served.card
    assert (machine["cores"], machine["memory_bytes"]) == (cores.available(), memory.available())
    assert 2**23 < machine["worker_bytes"] < machine["memory_bytes"]


# An example may be slow, and the fixtures last for the whole session.
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=st.text(), headers=st.sampled_from([TEXT, JSON, {}]))
def test_any_string_gets_an_answer_or_a_documented_error(ask: Client, text: str, headers: dict[str, str]) -> None:
    response = ask(text.encode("utf-8", "surrogatepass"), headers)
    assert response.status_code in (200, 400, 413), response.text
    assert response.json()


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1).filter(str.strip))
def test_any_text_gets_the_models_own_scores(ask: Client, expected: Expected, text: str) -> None:
    response = ask(json={"text": text})
    assert response.status_code == 200, response.text
    assert response.json()["scores"] == pytest.approx(expected(text), abs=TOLERANCE)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(body=st.binary(), headers=st.sampled_from([TEXT, JSON, {}]))
def test_any_bytes_get_an_answer_or_a_documented_error(ask: Client, body: bytes, headers: dict[str, str]) -> None:
    assert ask(body, headers).status_code in (200, 400, 413)


@pytest.mark.parametrize("field", ["data", "text"])
def test_grpc_accepts_every_form_of_body(server: Server, expected: Expected, field: str) -> None:
    for body in ("late again", '{"text": "late again"}', '["late again"]', '{"instances": ["late again"]}'):
        reply = json.loads(grpc_calls.predictions(server.project.grpc, "sentiment", **{field: body.encode()}))
        if "[" in body:
            [reply] = reply["predictions"] if isinstance(reply, dict) else reply
        assert reply["scores"] == pytest.approx(expected("late again"), abs=TOLERANCE), body


def test_grpc_errors_have_the_same_json(server: Server) -> None:
    """TorchServe's gRPC API has no status for a single request of a batch, so the reply contains the error."""
    error = json.loads(grpc_calls.predictions(server.project.grpc, "sentiment", data=b"\xff"))
    assert (error["code"], error["type"]) == (400, "NotUtf8Error")


def test_no_request_content_is_logged(server: Server, ask: Client) -> None:
    """The log also contains no text of the tests above, so this test is among the last ones."""
    marks = ["zebrastripe", "zebracrossing", "zebrafish", "zebrafinch"]
    ask(marks[0], TEXT)
    ask(f'{{"text": "{marks[1]}', JSON)
    ask.session.post(f"{ask.url}?text={marks[2]}", data=b"\xff", timeout=60)
    ask.session.post(ask.url, data=marks[0].encode() + b"\xff", headers=TEXT, timeout=60)
    multipart = FORM | {"content-type": f"multipart/form-data; boundary={marks[3]}"}
    for body, headers in ((f"text=100% {marks[3]}", FORM), (f"--{marks[3]}\r\n{marks[0]}\r\n\r\n", multipart)):
        form = ask.session.post(ask.url, data=body, headers=headers, timeout=60)
        assert form.json()["type"] == "WrongShapeError"
    infer = f"{server.project.inference}/v2/models/sentiment/infer"
    for tensors in (f'{{"inputs": "{marks[1]}"}}', f"{{{marks[2]}"):
        assert ask.session.post(infer, data=tensors, timeout=60).status_code == 400
    log = server.log + "".join(
        path.read_text(errors="replace") for path in server.project.folder.rglob("*.log") if path.is_file()
    )
    assert [mark for mark in marks if mark in log] == []
    assert "late again" not in log


def test_the_servers_scores_equal_the_models(ask: Client, served: TextClassifier) -> None:
    texts = list(read_tweets(TOY_TWEETS)["text"])
    scores = np.array([list(prediction["scores"].values()) for prediction in ask(json=texts).json()])
    np.testing.assert_allclose(scores, served.predict(texts), rtol=0, atol=TOLERANCE)
