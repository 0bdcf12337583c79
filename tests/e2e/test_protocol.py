"""Tests of isolation: no request over HTTP or gRPC kills a worker or changes the response to another request."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from safetensors.numpy import save_file

from handler.classifier import TextClassifier
from handler.limits import Limits
from tests.door.stub import Client, request
from tests.e2e import grpc_calls
from tests.e2e.server_process import BATCH, Server
from tests.paths import MODEL
from training.export.archive import archive

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
LABELS = [f"label {number:019}" for number in range(400)]
NEIGHBOUR = "Thank you for the great flight!"


@contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """Check that the same workers run afterwards, and answer."""
    before = {worker.pid for worker in server.workers()}
    yield
    assert ask(server, NEIGHBOUR).json()["label"] == "positive"
    assert {worker.pid for worker in server.workers()} == before, server.log[-3_000:]


def ask(
    server: Server, text: str, headers: dict[str, str] | None = None, model: str = "sentiment"
) -> requests.Response:
    url = f"{server.project.inference}/predictions/{model}"
    return requests.post(url, data=text.encode(), headers=TEXT | (headers or {}), timeout=60)


def test_stream_predictions_get_one_reply_and_do_not_affect_other_requests(
    server: Server, served: TextClassifier
) -> None:
    """The streams share batches with requests over HTTP."""
    expected = served.labels[int(served.predict([NEIGHBOUR])[0].argmax())]
    address = server.project.grpc
    with unharmed(server), ThreadPoolExecutor(BATCH) as pool:
        streams = [
            pool.submit(grpc_calls.stream_predictions, address, "batched", data=b"late") for _ in range(BATCH // 2)
        ]
        neighbours = [pool.submit(ask, server, NEIGHBOUR, None, "batched") for _ in range(BATCH // 2)]
        for stream in streams:
            [reply] = stream.result()
            assert json.loads(reply)["label"] == "negative"
        for neighbour in neighbours:
            assert (neighbour.result().status_code, neighbour.result().json()["label"]) == (200, expected)
    [error] = grpc_calls.stream_predictions(address, "sentiment", data=b"\xff")
    assert json.loads(error)["type"] == "NotUtf8Error"


def test_stream_predictions_2_do_not_affect_other_requests(server: Server) -> None:
    """This method is for models that TorchServe calls stateful. For other models it fails, without further effect."""
    with_id = grpc_calls.prediction_request("sentiment", {"data": b"late"}, sequence_id="1")
    without_id = grpc_calls.prediction_request("sentiment", {"data": b"late"})
    with unharmed(server):
        for sent in ([with_id], [without_id], [with_id] * 3, []):
            call = partial(grpc_calls.stream_predictions_2, server.project.grpc, sent)
            assert grpc_calls.outcome(call) in ("OK", "UNKNOWN")


GRPC_METHODS = {
    grpc_calls.INFERENCE: ("Ping", "Predictions", "StreamPredictions", "StreamPredictions2", "None"),
    grpc_calls.MANAGEMENT: (
        *("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel", "None"),
    ),
}


@pytest.mark.parametrize("service", GRPC_METHODS, ids=lambda service: service.rpartition(".")[2])
def test_no_grpc_message_affects_other_requests(server: Server, service: str) -> None:
    """Empty messages, malformed messages, and a message without input."""
    port = server.project.grpc if service == grpc_calls.INFERENCE else server.project.grpc_management
    bodies = [
        b"",
        b"\xff",
        b"\x0a\xff",
        grpc_calls.prediction_request("", {}),
        grpc_calls.prediction_request("none", {}),
    ]
    if service == grpc_calls.INFERENCE:
        bodies.append(grpc_calls.prediction_request("sentiment", {}))
    with unharmed(server), grpc_calls.channel(port) as channel:
        for method in GRPC_METHODS[service]:
            call = channel.unary_unary(f"{service}/{method}")
            for body in bodies:
                assert grpc_calls.outcome(partial(call, body, timeout=30)) != "DEADLINE_EXCEEDED"


def test_grpc_describes_the_model(server: Server, served: TextClassifier) -> None:
    described = b"\x0a\x09sentiment\x18\x01"  # DescribeModelRequest(model_name="sentiment", customized=True)
    with unharmed(server), grpc_calls.channel(server.project.grpc_management) as channel:
        reply = channel.unary_unary(f"{grpc_calls.MANAGEMENT}/DescribeModel")(described, timeout=30)
    assert json.dumps(served.card["exported"]["commit"]).encode() in reply


PATHS = (
    "/predictions/sentiment",
    "/predictions/sentiment/1.0",
    "/predictions/sentiment?text=early&body=early",
    "/explanations/sentiment",
    "/v1/models/sentiment:predict",
    "/v1/models/sentiment:explain",
    "/invocations?model_name=sentiment",
)
"""The paths at which the door accepts a body for a model in one of the API's own forms."""

OTHER_PATHS = (
    "/",
    "//",
    "/ping",
    "/api-description",
    "/predictions",
    "/predictions/sentiment/1.0/any/path",
    "/predictions/%00",
    "/predictions/none",
    "/explanations/sentiment/2.0",
    "/v1/models/:predict",
    "/v2/models/sentiment/infer",
    "/v2/models/none/infer",
    "/wfpredict/x",
    "/invocations",
    "/models/sentiment/invoke?text=early&body=early",
    "/models/%00",
    "/sentiment/predict",
)
METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "ANY")


def test_every_method_and_path_gets_a_response_and_affects_no_other_request(server: Server) -> None:
    with unharmed(server), requests.Session() as session:
        for path in (*PATHS, *OTHER_PATHS):
            for method in METHODS:
                url = server.project.inference + path
                response = session.request(method, url, data=b'["late"]', headers=JSON, timeout=30)
                if path in PATHS and method in ("POST", "PUT"):
                    [prediction] = response.json()
                    assert prediction["label"] == "negative", path
                    continue
                assert response.status_code in (400, 404, 405), (method, path, response.text)
                if method != "HEAD":
                    assert_contract(response)


def assert_contract(response: requests.Response) -> None:
    """Check that an error has one of the API's two forms."""
    error = response.json()
    assert set(error) in ({"code", "type", "message"}, {"error"}), error
    assert error.get("code", response.status_code) == response.status_code


HEADERS = {
    "explain": "True",
    "Explain": "True",
    "describe": "True",
    "customized": "true",
    "ts_stream_next": "true",
    "ts_request_sequence_id": "1",
    "ts_request_sequence_start": "true",
    "ts_request_sequence_end": "true",
    "url_path": "../..",
    "X-Request-Id": "1",
    "X-Model-Version": "2.0",
    "body": "early",
    "text": "early",
    "data": "early",
    "Expect": "100-continue",
    "Content-Language": "é",
}


@pytest.mark.parametrize("model", ["sentiment", "batched"])
def test_no_client_header_changes_a_prediction(server: Server, model: str) -> None:
    """No header changes the response to its own request or to another request of the batch."""
    expected = ask(server, NEIGHBOUR).json()
    with unharmed(server), ThreadPoolExecutor(BATCH) as pool:
        sent = [{name: value} for name, value in HEADERS.items()] + [HEADERS]
        sent += [{}] * (-len(sent) % BATCH)
        replies = pool.map(lambda headers: ask(server, NEIGHBOUR, headers, model), sent)
        for headers, reply in zip(sent, replies, strict=True):
            assert reply.status_code == 200, (headers, reply.text)
            assert reply.json()["scores"] == pytest.approx(expected["scores"], abs=1e-5), headers
            assert set(reply.json()) == set(expected), headers


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_the_error_for_a_large_body_states_the_limit(server: Server, chunked: bool) -> None:
    """If a body comes in chunks, TorchServe refuses it once it is too large, and the door adds the reason."""
    body = b"x" * 8_000_000
    data = (body[start : start + 100_000] for start in range(0, len(body), 100_000)) if chunked else body
    with unharmed(server):
        response = requests.post(server.project.predictions, data=data, headers=TEXT, timeout=60)
        assert (response.status_code, response.json()["type"]) == (413, "TooLargeError")
        assert "2,500,000 bytes" in response.json()["message"]


def test_pipelined_requests_get_their_own_predictions(server: Server) -> None:
    """Without the door, TorchServe would mix up the responses."""
    texts = [f"{number} hours late" for number in range(40)]
    expected = [ask(server, text).json() for text in texts]
    sent = b"".join(request(text.encode(), headers="Content-Type: text/plain\r\n") for text in texts)
    with unharmed(server), Client(urlsplit(server.project.inference).port or 0, sent) as client:
        assert [json.loads(client.reply().body) for _ in texts] == expected


def test_half_sent_bodies_do_not_delay_other_requests(server: Server) -> None:
    """The clients send as many large bodies as the door accepts and hundreds of small ones; none reaches Java."""
    port = urlsplit(server.project.inference).port or 0
    large, small = request(b"x" * 2_400_000)[:-1], request(b"x" * 10_000)[:-1]
    with contextlib.ExitStack() as stack, unharmed(server):
        clients = [stack.enter_context(Client(port, sent)) for sent in [large] * 30 + [small] * 500]
        for _ in range(20):
            assert ask(server, NEIGHBOUR).json()["label"] == "positive"
        assert {client.reply().status for client in clients} == {408}


def write_model(folder: Path, labels: list[str]) -> None:
    """Write an exported model with these labels, all equally probable, and the embedded model's vocabulary."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    size, hidden, words = 4, 8, config["network"]["vocabulary_size"]
    config["labels"] = labels
    config["network"] |= {"embedding_size": size, "layers": 1, "head_sizes": [3 * size, hidden, len(labels)]}
    (folder / "config.json").write_text(json.dumps(config))
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({name: value for name, value in card.items() if name != "reference"}))
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (words, size),
        **{f"lstm.0.weight_{kind}_l0": (4 * size, size) for kind in ("ih", "hh")},
        **{f"lstm.0.bias_{kind}_l0": (4 * size,) for kind in ("ih", "hh")},
        "head.0.weight": (hidden, 3 * size),
        "head.1.weight": (len(labels), hidden),
    }
    weights = {name: np.full(shape, 0.1, np.float16) for name, shape in shapes.items()}
    for statistic in ("mean", "scale", "shift", "variance"):
        weights[f"head.0.{statistic}"] = np.full(3 * size, 0.1, np.float32)
        weights[f"head.1.{statistic}"] = np.full(hidden, 0.1, np.float32)
    save_file(weights, folder / "weights.safetensors")


@pytest.fixture(scope="module")
def many_labels(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of 400 labels, with one worker; TorchServe waits for full batches."""
    folder = tmp_path_factory.mktemp("many")
    write_model(folder / "model", LABELS)
    archive(folder / "model", server.project.folder / "model_store" / "many.mar", "1.0", "float32")
    parameters = {
        "url": "many.mar",
        "initial_workers": 1,
        "batch_size": BATCH,
        "max_batch_delay": 3_000,
        "synchronous": "true",
    }
    management = server.project.management
    requests.post(f"{management}/models", params=parameters, timeout=120).raise_for_status()  # type: ignore[arg-type]
    yield "many"
    requests.delete(f"{management}/models/many", timeout=60).raise_for_status()


def test_a_reply_that_is_too_large_for_torchserve_is_413(server: Server, many_labels: str) -> None:
    with unharmed(server):
        response = ask(server, json.dumps(["late"] * 1_000), JSON, many_labels)
        assert (response.status_code, response.json()["type"]) == (413, "TooLargeError")
        assert "400 labels" in response.json()["message"]


def test_a_batch_of_large_replies_does_not_affect_other_requests(server: Server, many_labels: str) -> None:
    """All replies but one have the maximum size, so they are too large for one batch."""
    with unharmed(server), ThreadPoolExecutor(BATCH) as pool:
        large = [pool.submit(ask, server, json.dumps(["late"] * 390), JSON, many_labels) for _ in range(BATCH - 1)]
        small = pool.submit(ask, server, "late", None, many_labels)
        statuses = [future.result().status_code for future in large]
        assert 200 in statuses
        assert set(statuses) <= {200, 503}
        assert small.result().status_code in (200, 503)
        for response in (future.result() for future in large):
            if response.status_code == 200:
                assert 5_000_000 < len(response.content) <= Limits().max_batch_reply_bytes
                assert len(response.json()) == 390
            else:
                assert response.json()["type"] == "OverloadedError"
