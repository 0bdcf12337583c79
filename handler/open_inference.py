"""The Open Inference Protocol, version 2, over HTTP: tensors to texts, and predictions to tensors.

The protocol is KServe's (github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`), with
the extension for binary tensors that Triton defined (github.com/triton-inference-server/server,
`docs/protocol/extension_binary_data.md`). An optional member that is null counts as absent, as clients send it.

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

from handler.body import Pairs, decoded, parsed, to_json
from handler.errors import NotUtf8Error, RequestError, TooLargeError, WrongShapeError
from handler.exported import is_unicode
from handler.headers import only
from handler.task import Task, TaskName

HEADER: Final = "x-open-inference"
"""The header in which the door (`door/haproxy.cfg`) says what a request of this protocol asks for."""

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""The header with the length of the JSON before binary tensors, in bytes."""

PLATFORM: Final = "onnx_onnxv1"
"""The protocol's name for what the engine computes: an ONNX graph."""

MAX_ID_CHARACTERS: Final = 1_000
"""Of a request's `id`, which is part of its reply."""

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
"""Upper bound of a reply's bytes without its `id` and what its tensors hold."""
_LONGEST_SCORE: Final = len("0.123456, ")
_LONGEST_VALUE: Final = len("-3.4028235e+38, ")


class Ask(Enum):
    """What a request of this protocol asks for: the values of `HEADER`."""

    INFER = "infer"
    METADATA = "metadata"


@dataclass(frozen=True)
class Output:
    """A tensor that the client wants in the reply."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class Outputs:
    """The form of a reply in this protocol."""

    id: str | None
    tensors: tuple[Output, ...]


def ask(headers: Mapping[str, object]) -> Ask | None:
    """What a request asks for, None if it is not of this protocol."""
    values = {value for name, value in headers.items() if name.lower() == HEADER}
    return next((ask for ask in Ask if ask.value in values), None)


def read(body: bytes, headers: Mapping[str, object], max_texts: int, task: TaskName) -> tuple[tuple[str, ...], Outputs]:
    """The texts of a request for inference, and the form of its reply.

    Args:
        body: JSON, and binary tensors behind it.
        headers: the HTTP headers, any case.
        max_texts: more than these are not read.
        task: of the model, which decides its outputs.

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
    results: Sequence[Mapping[str, Any]], outputs: Outputs, task: Task, model_name: str, model_version: str
) -> tuple[bytes, dict[str, str]]:
    """The body of a reply, and its HTTP headers.

    Args:
        results: for each text its prediction, as `handler.reply.prediction` makes it.
        outputs: as `read` returns them.
        task: of the model.
    """
    tensors, binary = [], []
    for output in outputs.tensors:
        tensor, values = _tensor(output.name, results, task.labels)
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
    """The body of an error."""
    return to_json({"error": str(problem)})


def metadata(task: Task, notes: str, model_name: str, model_version: str) -> bytes:
    """The model's inputs and outputs. `properties`, whose values are strings, has what `_properties` says, and the
    notes of the model's card if it has any."""
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
    """The labels as a list in JSON. A multi-label model's thresholds, too, in the labels' order. The task, unless it is
    single-label."""
    properties = {} if task.name == "regression" else {"labels": json.dumps(list(task.labels), ensure_ascii=False)}
    if task.name == "multi-label":
        properties["thresholds"] = json.dumps(list(task.thresholds))
    return properties if task.name == "single-label" else {"task": task.name} | properties


def max_bytes(texts: int, task: Task, outputs: Outputs) -> int:
    """Upper bound of the length in bytes of a reply to a number of texts. Binary tensors are shorter than JSON."""
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
    """A JSON object. RFC 8259, section 4: what a repeated name means differs from parser to parser."""
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
        raise TooLargeError(f"`id` has {len(value)} characters; at most {MAX_ID_CHARACTERS} are read.")
    if not is_unicode(value):
        raise NotUtf8Error("`id` has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text.")
    return value


def _outputs(request: Mapping[str, object], names: tuple[str, ...]) -> tuple[Output, ...]:
    is_binary = _flag(_parameters(request, "The request"), "binary_data_output", default=False)
    items = [] if request.get("outputs") is None else request["outputs"]
    if not isinstance(items, list):
        objects = ", ".join(f'{{"name": "{name}"}}' for name in names)
        raise WrongShapeError(f"`outputs` is not a list. Expected [{objects}]{_ONE_OF_TWO[len(names) > 1]}.")
    outputs = [_output(item, f"Output {index}", is_binary, names) for index, item in enumerate(items[:3])]
    if len({output.name for output in outputs}) < len(items):
        raise WrongShapeError(f"`outputs` has an output more than once. Expected {_named(names, 'each of ')} once.")
    return tuple(outputs) or tuple(Output(name, is_binary) for name in names)


_ONE_OF_TWO: Final = {True: " or one of the two", False: ""}


def _named(names: tuple[str, ...], of_several: str) -> str:
    return (of_several if len(names) > 1 else "") + " and ".join(f"`{name}`" for name in names)


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
            raise WrongShapeError(f"{where} asks for the extension `{extension}`, which this server does not have.")
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
        raise WrongShapeError(f"The input has another name than `text`, the model's one input. {_EXPECTED}")
    if tensor.get("datatype") != "BYTES":
        raise WrongShapeError(f"The input `text` has another datatype than BYTES. {_EXPECTED}")
    return tensor


def _texts(tensor: Mapping[str, object], binary: bytes, max_texts: int) -> tuple[str, ...]:
    shape = tensor.get("shape")
    count = _count(shape)
    if count > max_texts:
        raise TooLargeError(f"The input has more than {max_texts} texts, the most that are read at once.")
    parameters = _parameters(tensor, "The input")
    if ("data" in tensor) == ("binary_data_size" in parameters):
        raise WrongShapeError(f"The input has both `data` and `binary_data_size`, or neither. {_EXPECTED}")
    size = parameters.get("binary_data_size", 0)
    if type(size) is not int or size != len(binary):
        raise WrongShapeError(
            f"The body has {len(binary)} bytes behind its JSON, but `binary_data_size` names another number. "
            f"{JSON_LENGTH_HEADER} gives the length of the JSON."
        )
    return _unpacked(binary, count) if "binary_data_size" in parameters else _strings(tensor["data"], shape, count)


def _count(shape: object) -> int:
    """The number of texts."""
    match shape:
        case [count] | [count, 1] if type(count) is int and count >= 0 and type(shape[-1]) is int:
            return count
        case _:
            raise WrongShapeError(f"The input `text` has another shape than [N] or [N, 1]. {_EXPECTED}")


def _strings(data: object, shape: object, count: int) -> tuple[str, ...]:
    """The elements of a tensor in JSON: flat, or nested as its shape is."""
    if not isinstance(data, list) or len(data) != count:
        raise WrongShapeError(f"`data` is not a list of {count} strings, as `shape` says. {_EXPECTED}")
    if shape == [count, 1] and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    for index, element in enumerate(data):
        if not isinstance(element, str):
            raise WrongShapeError(f"Item {index} of `data` is not a string. {_EXPECTED}")
    return tuple(data)


def _unpacked(binary: bytes, count: int) -> tuple[str, ...]:
    """The elements of a binary tensor: for each its length, as four bytes in little-endian order, and its bytes."""
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
        raise WrongShapeError(f"{where} has `parameters` that are not an object.")
    return parameters


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise WrongShapeError(f"The parameter `{name}` is not true or false.")
    return value


def _tensor(name: str, results: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> tuple[dict[str, Any], list[Any]]:
    """A tensor without its values, and these in row-major order."""
    if name == LABEL:
        return {"name": name, "shape": [len(results)], "datatype": "BYTES"}, [result["label"] for result in results]
    if name == VALUE:
        return {"name": name, "shape": [len(results)], "datatype": "FP32"}, [result["value"] for result in results]
    tensor = {"name": name, "shape": [len(results), len(labels)], "datatype": "FP32"}
    return tensor, [result["scores"][label] for result in results for label in labels]


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    """The values of a tensor in binary form."""
    if datatype == "FP32":
        return struct.pack(f"<{len(values)}f", *values)
    return b"".join(_LENGTH.pack(len(label)) + label for label in map(str.encode, values))
