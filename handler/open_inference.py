"""The Open Inference Protocol, version 2, over HTTP: reads tensors of texts, and writes predictions as tensors.

KServe defines the protocol (github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`).
Triton defines the extension for binary tensors (github.com/triton-inference-server/server,
`docs/protocol/extension_binary_data.md`). An optional member with the value null counts as absent, because some clients
send it.

| tensor          | datatype | shape              | content                                                  |
|-----------------|----------|--------------------|----------------------------------------------------------|
| input `text`    | BYTES    | [N] or [N, 1]      | N texts in UTF-8                                         |
| output `label`  | BYTES    | [N]                | the most probable label of each text                     |
| output `scores` | FP32     | [N, C]             | the probabilities of the C labels, in the model's order  |
| output `value`  | FP32     | [N]                | the value of each text                                   |

A single-label model has the outputs `label` and `scores`, a multi-label model has `scores`, a regression has `value`.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from handler.body import SCORE_DIGITS, Pairs, decoded, parsed, rounded_value, to_json
from handler.errors import NotUtf8Error, RequestError, TooLargeError, WrongShapeError
from handler.exported import is_unicode
from handler.headers import only
from handler.prediction import Prediction
from handler.task import Task, TaskName

HEADER: Final = "x-open-inference"
"""The header in which the door (`door/haproxy.cfg`) passes on the operation of a request of this protocol."""

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""The header with the length of the JSON before binary tensors, in bytes."""

PLATFORM: Final = "onnx_onnxv1"
"""The protocol's name for a model that is an ONNX graph."""

MAX_ID_CHARACTERS: Final = 1_000
"""Maximum length of a request's `id`, which the reply repeats."""

INPUT: Final = "text"
LABEL, SCORES, VALUE = "label", "scores", "value"
OUTPUTS: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "single-label": (LABEL, SCORES),
    "multi-label": (SCORES,),
    "regression": (VALUE,),
}

_EXPECTED: Final = (
    'Expected {"inputs": [{"name": "text", "shape": [N], "datatype": "BYTES", "data": [N strings]}]}, or '
    '"parameters": {"binary_data_size": ...} in place of "data".'
)
_LENGTH: Final = struct.Struct("<I")
_ENVELOPE_BYTES: Final = 4_096
"""Upper bound of a reply's bytes without its `id` and without the content of its tensors."""
_LONGEST_SCORE: Final = len("0.123456, ")
_LONGEST_VALUE: Final = len("-3.4028235e+38, ")


class Operation(Enum):
    """The operation of a request of this protocol: the values of `HEADER`."""

    INFER = "infer"
    METADATA = "metadata"


@dataclass(frozen=True)
class Output:
    """A tensor that the client requests."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class Outputs:
    """The tensors that the client requests, and the `id` of its request."""

    id: str | None
    tensors: tuple[Output, ...]


def operation(headers: Mapping[str, object]) -> Operation | None:
    """Return the operation of a request, or None for a request of another protocol."""
    values = {value for name, value in headers.items() if name.lower() == HEADER}
    return next((operation for operation in Operation if operation.value in values), None)


def read(body: bytes, headers: Mapping[str, object], max_texts: int, task: TaskName) -> tuple[tuple[str, ...], Outputs]:
    """Read the texts of an inference request, and the outputs that it requests.

    Args:
        body: JSON, and the binary tensors that follow it.
        headers: the HTTP headers, with names in any case.
        max_texts: maximum number of texts.
        task: the model's task, which determines the outputs.

    Raises:
        RequestError: see `handler.errors`.
    """
    length = _json_length(headers, len(body))
    request = parsed(decoded(body[:length]), _object, _EXPECTED)
    if not isinstance(request, dict):
        raise WrongShapeError(f"The body is not a JSON object. {_EXPECTED}")
    outputs = Outputs(_id(request), _outputs(request, OUTPUTS[task]))
    return _texts(_input(request), body[length:], max_texts), outputs


def reply(
    predictions: Sequence[Prediction], outputs: Outputs, task: Task, model_name: str, model_version: str
) -> tuple[bytes, dict[str, str]]:
    """Write the body of a reply, and its HTTP headers.

    Args:
        predictions: the prediction for each text.
        outputs: the outputs that `read` returned.
        task: the model's task.
        model_name: name of the model in TorchServe.
        model_version: version of the model in TorchServe.
    """
    tensors, binary = [], []
    for output in outputs.tensors:
        tensor, values = _tensor(output.name, predictions, task)
        if output.is_binary:
            binary.append(_packed(tensor["datatype"], values))
            tensors.append(tensor | {"parameters": {"binary_data_size": len(binary[-1])}})
        else:
            tensors.append(tensor | {"data": values})
    given_id = {} if outputs.id is None else {"id": outputs.id}
    head = to_json({"model_name": model_name, "model_version": model_version} | given_id | {"outputs": tensors})
    if not binary:
        return head, {"content-type": "application/json"}
    return b"".join([head, *binary]), {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}


def error(problem: RequestError) -> bytes:
    """Write the body of an error."""
    return to_json({"error": str(problem)})


def metadata(task: Task, notes: str, model_name: str, model_version: str) -> bytes:
    """Write the model's metadata: its inputs, its outputs and its properties.

    Args:
        task: the model's task.
        notes: the notes of the model's card; empty if it has none.
        model_name: name of the model in TorchServe.
        model_version: version of the model in TorchServe.
    """
    tensors = {
        LABEL: {"datatype": "BYTES", "shape": [-1]},
        SCORES: {"datatype": "FP32", "shape": [-1, len(task.labels)]},
        VALUE: {"datatype": "FP32", "shape": [-1]},
    }
    return to_json(
        {
            "name": model_name,
            "versions": [model_version],
            "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name} | tensors[name] for name in OUTPUTS[task.name]],
            "properties": _properties(task) | ({"notes": notes} if notes else {}),
        }
    )


def _properties(task: Task) -> dict[str, str]:
    """Return the properties of a model, whose values are strings.

    `labels` and a multi-label model's `thresholds` are JSON lists in the same order. `task` is absent for a
    single-label model.
    """
    properties = {} if task.name == "regression" else {"labels": json.dumps(list(task.labels), ensure_ascii=False)}
    if task.name == "multi-label":
        properties["thresholds"] = json.dumps(list(task.thresholds))
    return properties if task.name == "single-label" else {"task": task.name} | properties


def max_bytes(texts: int, task: Task, outputs: Outputs) -> int:
    """Return an upper bound of a reply's length in bytes. Binary tensors are shorter than JSON.

    Args:
        texts: number of texts.
        task: the model's task.
        outputs: the requested outputs.
    """
    longest_label = max((len(to_json(label)) for label in task.labels), default=0) + len(", ")
    numbers = len(task.labels) * _LONGEST_SCORE or _LONGEST_VALUE
    return _ENVELOPE_BYTES + len(to_json(outputs.id)) + texts * (longest_label + numbers)


def _json_length(headers: Mapping[str, object], body_length: int) -> int:
    value = only(headers, JSON_LENGTH_HEADER.lower())
    if value is None:
        return body_length
    if not (value.isascii() and value.isdecimal() and len(value) <= len(str(body_length))):
        raise WrongShapeError(f"{JSON_LENGTH_HEADER} is not a number of bytes within the body.")
    if int(value) > body_length:
        raise WrongShapeError(f"{JSON_LENGTH_HEADER} is {value}, but the body has {body_length} bytes.")
    return int(value)


def _object(pairs: Pairs) -> dict[str, object]:
    """Return a JSON object as a dictionary.

    A repeated name is an error, because its meaning differs between parsers (RFC 8259, section 4).
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        raise WrongShapeError("A JSON object has a name more than once. Expected each name once.")
    return value


def _id(request: Mapping[str, object]) -> str | None:
    value = request.get("id")
    if value is None:
        return None
    if not isinstance(value, str):
        raise WrongShapeError("`id` is not a string.")
    if len(value) > MAX_ID_CHARACTERS:
        raise TooLargeError(f"`id` has {len(value)} characters; the limit is {MAX_ID_CHARACTERS}.")
    if not is_unicode(value):
        raise NotUtf8Error("`id` has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text.")
    return value


def _outputs(request: Mapping[str, object], names: tuple[str, ...]) -> tuple[Output, ...]:
    is_binary = _flag(_parameters(request, "The request"), "binary_data_output", default=False)
    items = [] if request.get("outputs") is None else request["outputs"]
    if not isinstance(items, list):
        objects = ", ".join(f'{{"name": "{name}"}}' for name in names)
        alternative = " or one of the two" if len(names) > 1 else ""
        raise WrongShapeError(f"`outputs` is not a list. Expected [{objects}]{alternative}.")
    outputs = [_output(item, f"Output {index}", is_binary, names) for index, item in enumerate(items[:3])]
    if len({output.name for output in outputs}) < len(items):
        raise WrongShapeError(f"`outputs` has an output more than once. Expected {_named(names, 'each of ')} once.")
    return tuple(outputs) or tuple(Output(name, is_binary) for name in names)


def _named(names: tuple[str, ...], prefix: str) -> str:
    """List names, with a prefix if there are several."""
    return (prefix if len(names) > 1 else "") + " and ".join(f"`{name}`" for name in names)


def _output(item: object, where: str, is_binary: bool, names: tuple[str, ...]) -> Output:
    if not isinstance(item, dict):
        expected = " or ".join(f'{{"name": "{name}"}}' for name in names)
        raise WrongShapeError(f"{where} is not an object. Expected {expected}.")
    name = item.get("name")
    if name not in names:
        plural = "s" if len(names) > 1 else ""
        raise WrongShapeError(f"{where} is unknown. The model has the output{plural} {_named(names, '')}.")
    parameters = _parameters(item, where)
    for extension in ("classification", "shared_memory_region"):
        if extension in parameters:
            raise WrongShapeError(f"{where} asks for the extension `{extension}`, which this server does not support.")
    return Output(name, _flag(parameters, "binary_data", is_binary))


def _input(request: Mapping[str, object]) -> Mapping[str, object]:
    match request.get("inputs"):
        case [dict() as tensor]:
            pass
        case list() as tensors if len(tensors) != 1:
            raise WrongShapeError(f"The request has {len(tensors)} inputs. The model has one, `text`. {_EXPECTED}")
        case _:
            raise WrongShapeError(f"`inputs` is not a list with an object. {_EXPECTED}")
    if tensor.get("name") != INPUT:
        raise WrongShapeError(f"The name of the input is not `text`, the name of the model's only input. {_EXPECTED}")
    if tensor.get("datatype") != "BYTES":
        raise WrongShapeError(f"The datatype of the input `text` is not BYTES. {_EXPECTED}")
    return tensor


def _texts(tensor: Mapping[str, object], binary: bytes, max_texts: int) -> tuple[str, ...]:
    shape = tensor.get("shape")
    count = _count(shape)
    if count > max_texts:
        raise TooLargeError(f"The input has more than {max_texts} texts, the limit of a request.")
    parameters = _parameters(tensor, "The input")
    if ("data" in tensor) == ("binary_data_size" in parameters):
        raise WrongShapeError(f"The input has both `data` and `binary_data_size`, or neither. {_EXPECTED}")
    size = parameters.get("binary_data_size", 0)
    if type(size) is not int or size != len(binary):
        raise WrongShapeError(
            f"The body has {len(binary)} bytes after its JSON, but `binary_data_size` is a different number. "
            f"{JSON_LENGTH_HEADER} gives the length of the JSON."
        )
    return _unpacked(binary, count) if "binary_data_size" in parameters else _strings(tensor["data"], shape, count)


def _count(shape: object) -> int:
    """Return the number of texts."""
    match shape:
        case [count] | [count, 1] if type(count) is int and count >= 0 and type(shape[-1]) is int:
            return count
        case _:
            raise WrongShapeError(f"The shape of the input `text` is neither [N] nor [N, 1]. {_EXPECTED}")


def _strings(data: object, shape: object, count: int) -> tuple[str, ...]:
    """Return the elements of a JSON tensor, which is a flat list or is nested according to its shape."""
    if not isinstance(data, list) or len(data) != count:
        raise WrongShapeError(f"`data` is not a list of {count} strings, as `shape` says. {_EXPECTED}")
    if shape == [count, 1] and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    for index, element in enumerate(data):
        if not isinstance(element, str):
            raise WrongShapeError(f"Item {index} of `data` is not a string. {_EXPECTED}")
    return tuple(data)


def _unpacked(binary: bytes, count: int) -> tuple[str, ...]:
    """Return the elements of a binary tensor. The length of each precedes it, as four bytes in little-endian order."""
    texts, start = [], 0
    for index in range(count):
        if start + _LENGTH.size > len(binary):
            raise WrongShapeError(f"The binary tensor has {index} elements, but `shape` says {count}.")
        [length] = _LENGTH.unpack_from(binary, start)
        start += _LENGTH.size
        if length > len(binary) - start:
            raise WrongShapeError(f"Element {index} of the binary tensor is longer than the rest of the tensor.")
        texts.append(decoded(binary[start : start + length], f"Item {index}"))
        start += length
    if start < len(binary):
        raise WrongShapeError(f"The binary tensor has more than the {count} elements that `shape` says.")
    return tuple(texts)


def _parameters(item: Mapping[str, object], where: str) -> Mapping[str, object]:
    parameters = {} if item.get("parameters") is None else item["parameters"]
    if not isinstance(parameters, dict):
        raise WrongShapeError(f"{where} has `parameters` that are not a JSON object.")
    return parameters


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise WrongShapeError(f"The parameter `{name}` is not true or false.")
    return value


def _tensor(name: str, predictions: Sequence[Prediction], task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Return a tensor without its values, and its values in row-major order."""
    count = len(predictions)
    if name == LABEL:
        return {"name": name, "shape": [count], "datatype": "BYTES"}, [each.labels[0] for each in predictions]
    outputs = [output for each in predictions for output in each.outputs]
    if name == VALUE:
        return {"name": name, "shape": [count], "datatype": "FP32"}, list(map(rounded_value, outputs))
    tensor = {"name": name, "shape": [count, len(task.labels)], "datatype": "FP32"}
    return tensor, [round(output, SCORE_DIGITS) for output in outputs]


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    """Return the values of a tensor in binary form."""
    if datatype == "FP32":
        return struct.pack(f"<{len(values)}f", *values)
    return b"".join(_LENGTH.pack(len(label)) + label for label in map(str.encode, values))
