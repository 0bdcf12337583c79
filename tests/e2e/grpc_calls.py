"""Calls of TorchServe's gRPC APIs.

TorchServe's package has no stubs, so this module declares the messages of `inference.proto`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
TIMEOUT_S = 60


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as opened:
        yield opened


def prediction_request(model: str, inputs: dict[str, bytes], sequence_id: str = "") -> bytes:
    """An encoded `PredictionsRequest`."""
    message = _message("PredictionsRequest")(model_name=model, input=inputs, sequence_id=sequence_id)
    encoded: bytes = message.SerializeToString()
    return encoded


def predictions(address: str, model: str, **inputs: bytes) -> bytes:
    """The field `prediction` in the reply to `Predictions`."""
    with channel(address) as opened:
        call = opened.unary_unary(f"{INFERENCE}/Predictions", response_deserializer=_prediction)
        reply: bytes = call(prediction_request(model, inputs), timeout=TIMEOUT_S)
    return reply


def stream_predictions(address: str, model: str, **inputs: bytes) -> list[bytes]:
    """The field `prediction` in every reply to `StreamPredictions`."""
    with channel(address) as opened:
        call = opened.unary_stream(f"{INFERENCE}/StreamPredictions", response_deserializer=_prediction)
        return list(call(prediction_request(model, inputs), timeout=TIMEOUT_S))


def stream_predictions_2(address: str, requests: Iterable[bytes]) -> list[bytes]:
    """The field `prediction` in every reply to `StreamPredictions2`."""
    with channel(address) as opened:
        call = opened.stream_stream(f"{INFERENCE}/StreamPredictions2", response_deserializer=_prediction)
        return list(call(iter(requests), timeout=TIMEOUT_S))


def outcome(call: Callable[[], object]) -> str:
    """The name of the gRPC status with which a call ends, such as `OK`."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _prediction(encoded: bytes) -> bytes:
    prediction: bytes = _message("PredictionResponse").FromString(encoded).prediction
    return prediction


def _message(name: str) -> Any:
    return _MESSAGES[f"inference.{name}"]


def _declared() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=9, label=1)
    request.field.add(name="model_version", number=2, type=9, label=1)
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=12, label=1)
    request.field.add(name="input", number=3, type=11, label=3, type_name=".inference.PredictionsRequest.InputEntry")
    request.field.add(name="sequence_id", number=4, type=9, label=1)
    file.message_type.add(name="PredictionResponse").field.add(name="prediction", number=1, type=12, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    messages: dict[str, Any] = message_factory.GetMessageClassesForFiles(["inference.proto"], pool)
    return messages


_MESSAGES = _declared()
