"""Tests of the Open Inference Protocol over HTTP, with Triton's client."""

import asyncio
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from tests.e2e.server_process import BATCH, Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of gevent, which the client uses
    import tritonclient.http as triton
    import tritonclient.http.aio as triton_aio
    from tritonclient.utils import InferenceServerException

TEXTS = ["late again ✈", "Thank you for the great flight!", "\ufeffwhich gate?", "null\x00", '{"text": "late"}']
CONNECTIONS = 16


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    address = urlsplit(server.project.inference).netloc
    with triton.InferenceServerClient(address, concurrency=CONNECTIONS) as opened:
        yield opened


def tensor(texts: list[str], is_binary: bool = True, **changes: Any) -> triton.InferInput:
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    infer_input = triton.InferInput(changes.get("name", "text"), list(values.shape), "BYTES")
    infer_input.set_data_from_numpy(values, binary_data=is_binary)
    infer_input.set_shape(changes.get("shape", list(values.shape)))
    return infer_input


def outputs(*names: str, is_binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=is_binary) for name in names]


def expected(served: TextClassifier, texts: list[str]) -> tuple[list[str], npt.NDArray[np.float32]]:
    scores = served.predict([text.lstrip("\ufeff") for text in texts])
    return [served.labels[index] for index in scores.argmax(axis=1)], scores


def labels_of(result: triton.InferResult) -> list[str]:
    """The predicted labels. In binary outputs an element is of type bytes, in JSON it is a string."""
    return [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]


def assert_predicted(result: triton.InferResult, served: TextClassifier, texts: list[str]) -> None:
    labels, scores = expected(served, texts)
    assert labels_of(result) == labels
    received = result.as_numpy("scores")
    assert (received.dtype, received.shape) == (np.float32, (len(texts), len(served.labels)))
    np.testing.assert_allclose(received, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_binary", [True, False])
@pytest.mark.parametrize("out", [None, True, False], ids=["default outputs", "binary outputs", "JSON outputs"])
def test_a_client_gets_labels_and_scores(
    client: triton.InferenceServerClient, served: TextClassifier, in_binary: bool, out: bool | None
) -> None:
    requested = None if out is None else outputs("label", "scores", is_binary=out)
    result = client.infer("sentiment", [tensor(TEXTS, in_binary)], outputs=requested, request_id="a request ✈")
    assert_predicted(result, served, TEXTS)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("sentiment", "1.0", "a request ✈")


def test_a_version_an_empty_tensor_and_selected_outputs(client: triton.InferenceServerClient) -> None:
    result = client.infer("sentiment", [tensor(["late"])], model_version="1.0", outputs=outputs("scores"))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["scores"]
    empty = client.infer("sentiment", [tensor([])])
    assert (empty.as_numpy("label").shape, empty.as_numpy("scores").shape) == ((0,), (0, 3))


def test_concurrent_requests_of_the_synchronous_client(
    client: triton.InferenceServerClient, served: TextClassifier
) -> None:
    texts = [f"flight {number} was {'late' if number % 2 else 'great'}" for number in range(64)]
    pending = [client.async_infer("sentiment", [tensor([text])], request_id=text) for text in texts]
    for text, request in zip(texts, pending, strict=True):
        result = request.get_result()
        assert result.get_response()["id"] == text
        assert_predicted(result, served, [text])


def test_concurrent_requests_of_the_asyncio_client(server: Server, served: TextClassifier) -> None:
    texts = [f"flight {number} was {'late' if number % 2 else 'great'}" for number in range(64)]

    async def ask() -> list[triton.InferResult]:
        address = urlsplit(server.project.inference).netloc
        async with triton_aio.InferenceServerClient(address) as client:
            return await asyncio.gather(*(client.infer("sentiment", [tensor([text])]) for text in texts))

    for text, result in zip(texts, asyncio.run(ask()), strict=True):
        assert_predicted(result, served, [text])


def test_requests_of_all_apis_share_batches(server: Server, served: TextClassifier) -> None:
    """The model `batched` waits for a full batch, so all these requests are in one batch."""
    root = server.project.inference
    infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["late"]}]}
    sent: list[tuple[str, Any]] = [
        ("/v2/models/batched/infer", infer),
        ("/predictions/batched", "late"),
        ("/v2/models/batched/infer", {"inputs": []}),
        ("/explanations/batched", {"text": "late"}),
        ("/v2/models/batched/versions/1.0/infer", infer | {"outputs": [{"name": "label"}]}),
        ("/predictions/batched", ["late"]),
        ("/v2/models/batched/infer", infer | {"parameters": {"binary_data_output": True}}),
        ("/predictions/batched", {}),
    ]
    assert len(sent) == BATCH
    with ThreadPoolExecutor(BATCH) as pool:
        replies = list(pool.map(lambda call: requests.post(root + call[0], json=call[1], timeout=60), sent))
    assert [reply.status_code for reply in replies] == [200, 400, 400, 200, 200, 200, 200, 400]
    assert replies[0].json()["model_name"] == "batched"
    [label, scores] = replies[0].json()["outputs"]
    np.testing.assert_allclose([scores["data"]], served.predict(["late"]), rtol=0, atol=1e-5)
    assert replies[2].json() == {"error": replies[2].json()["error"]}
    assert replies[3].json()["label"] == replies[5].json()[0]["label"] == label["data"][0] == "negative"
    assert [output["name"] for output in replies[4].json()["outputs"]] == ["label"]
    assert replies[6].headers["content-type"] == "application/octet-stream"
    assert int(replies[6].headers["inference-header-content-length"]) < len(replies[6].content)
    assert replies[7].json()["type"] == "WrongShapeError"
    assert {reply.headers["X-Model-Version"] for reply in replies} == {"1.0"}


ERRORS: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "another input": (lambda: {"inputs": [tensor(["late"], name="x")]}, "400", "only input"),
    "two inputs": (lambda: {"inputs": [tensor(["late"]), tensor(["early"])]}, "400", "2 inputs"),
    "a wrong shape": (lambda: {"inputs": [tensor(["late"], shape=[2])]}, "400", "1 elements"),
    "an unknown output": (lambda: {"inputs": [tensor(["late"])], "outputs": outputs("x")}, "400", "unknown"),
    "a blank text": (lambda: {"inputs": [tensor(["late", " "])]}, "400", "Item 1 is empty"),
    "a long text": (lambda: {"inputs": [tensor(["a" * 20_001])]}, "413", "20001 characters"),
    "many texts": (lambda: {"inputs": [tensor(["late"] * 1_001)]}, "413", "more than 1000 texts"),
    "compression": (
        lambda: {"inputs": [tensor(["late"])], "request_compression_algorithm": "gzip"},
        "415",
        "not compressed",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_reaches_the_client_with_its_message(client: triton.InferenceServerClient, name: str) -> None:
    arguments, status, message = ERRORS[name]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("sentiment", **arguments())
    assert caught.value.status() == status
    assert message in caught.value.message()


def test_numbers_are_refused(client: triton.InferenceServerClient) -> None:
    numbers = triton.InferInput("text", [1], "FP32")
    numbers.set_data_from_numpy(np.array([1], dtype=np.float32))
    with pytest.raises(InferenceServerException, match="datatype of the input `text` is not BYTES"):
        client.infer("sentiment", [numbers])


def test_the_metadata_describes_inputs_and_outputs(
    client: triton.InferenceServerClient, served: TextClassifier
) -> None:
    for version in ("", "1.0"):
        metadata = client.get_model_metadata("sentiment", version)
        assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("sentiment", ["1.0"], "onnx_onnxv1")
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert [output["shape"] for output in metadata["outputs"]] == [[-1], [-1, len(served.labels)]]
        assert json.loads(metadata["properties"]["labels"]) == list(served.labels)


def test_the_server_and_the_model_are_alive_and_ready(client: triton.InferenceServerClient, server: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sentiment")
    assert client.is_model_ready("sentiment", "1.0")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("sentiment", "2.0")
    metadata = client.get_server_metadata()
    assert set(metadata) == {"name", "version", "extensions"}
    assert metadata["extensions"] == ["binary_tensor_data"]
    assert requests.get(f"{server.project.inference}/v2/", timeout=60).json() == metadata


@pytest.mark.parametrize(("model", "version"), [("other", ""), ("other", "1.0"), ("sentiment", "2.0")])
def test_an_unknown_model_or_version_is_404(client: triton.InferenceServerClient, model: str, version: str) -> None:
    with pytest.raises(InferenceServerException, match="no such model") as inferred:
        client.infer(model, [tensor(["late"])], version)
    with pytest.raises(InferenceServerException, match="no such model") as described:
        client.get_model_metadata(model, version)
    assert inferred.value.status() == described.value.status() == "404"


def test_a_request_of_the_maximum_size_is_answered_and_a_larger_one_refused(
    client: triton.InferenceServerClient, served: TextClassifier
) -> None:
    """Large requests pass through the door's second process."""
    texts = ["\U0001f600" * 200] * 1_000
    assert_predicted(client.infer("sentiment", [tensor(texts)]), served, texts)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("sentiment", [tensor(["a" * 2_600_000])])
    assert caught.value.status() == "413"
    assert caught.value.message() == "The body is too large. Expected 2,500,000 bytes at most."


@pytest.mark.parametrize("path", ["", "/ready", "/infer", "/versions/1.0/infer", "/other", "/infer/more"])
def test_errors_of_the_door_have_the_protocols_form(server: Server, path: str) -> None:
    for method in ("DELETE", "POST", "GET", "PATCH"):
        url = f"{server.project.inference}/v2/models/sentiment{path}"
        response = requests.request(method, url, data=b"{", timeout=60)
        if response.status_code != 200:
            assert list(response.json()) == ["error"], (method, response.text)
            assert response.status_code in (400, 404, 405)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text.replace("\ufeff", "").strip()),
        max_size=4,
    ),
    in_binary=st.booleans(),
    out_binary=st.booleans(),
)
def test_any_texts_get_the_models_own_scores(
    client: triton.InferenceServerClient, served: TextClassifier, texts: list[str], in_binary: bool, out_binary: bool
) -> None:
    requested = outputs("scores", "label", is_binary=out_binary)
    result = client.infer("sentiment", [tensor(texts, in_binary)], outputs=requested)
    if texts:
        assert_predicted(result, served, texts)
    else:
        assert result.as_numpy("scores").shape == (0, len(served.labels))
