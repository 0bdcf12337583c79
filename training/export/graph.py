"""The exported model's network as an ONNX graph, which an archive contains and `handler.engine` runs.

The network is an AWD-LSTM encoder, a pooling head and an activation (`handler.network.TextNetwork`), in three
precisions.

**int8.** Embeddings and LSTM matrices are 8-bit integers with a scale: one scale for all embeddings, one for each gate
of each unit. The LSTMs are ONNX Runtime's `DynamicQuantizeLSTM`. This operator also quantizes its inputs to 8 bits,
between the minimum and the maximum of all values that it gets: over all texts in a batch and, for the states, in each
step. The prediction for a text would therefore depend on the other texts in the batch.

To prevent this, each vector gets two more entries, which have no weights and always hold the bounds of the other
entries: for an embedding the bounds of the whole table, for a state -1 and 1. In an LSTM, these entries are two
additional units, whose cells start far from 0 and stay there. All scales are then constants, and a text has the same
prediction in any batch and alone.

**int8-fine** is for networks that lose too much accuracy in int8, mostly by quantizing embeddings and states. Each
embedding has its own scale, and embeddings and states are quantized to 14 bits: two digits of 7 bits, each of which is
multiplied with the same 8-bit matrix. ONNX Runtime has no such LSTM, so a step consists of several operators in a
`Scan`. All scales are constants or belong to one token, and sums of integers are exact, so the prediction does not
depend on the batch either.

**float32** is the reference. The head, a thousandth of the computation, is in float32 in all precisions.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from handler.engine import IDS, LENGTHS, PROBABILITIES, STARTS
from handler.exported import ExportedModel, NetworkConfig
from handler.task import Task
from training.settings import Precision

LSTM_BITS: Final = 7
"""Bits of the LSTM matrices in int8.

With 8 bits, the sums overflow on processors without VNNI instructions, which add pairs of 8-bit products in 16 bits.
With 7 bits, the sums are the same on every processor.
"""

DIGIT: Final = 128
"""Base of the two digits of `int8-fine`.

Digits from -64 to 64 are stored as 0 to 128, so that the sum of two products with 8-bit numbers, 2 x 128 x 127, fits
into 16 bits (see `LSTM_BITS`).
"""

FINE: Final = 63 * DIGIT + 63
"""Largest number with two digits."""

FAR: Final = 30.0
"""Value of a cell and bias of a gate at which tanh and sigmoid are 1 in float32."""

ALIGNMENT: Final = 16
"""Vectors are padded with zeros to a multiple of this length, which is faster to compute with."""

OPSET: Final = 18
IR_VERSION: Final = 9
MICROSOFT: Final = "com.microsoft"

Array = npt.NDArray[Any]


def to_onnx(model: ExportedModel, precision: Precision) -> onnx.ModelProto:
    """Build the graph of a model.

    The inputs are `ids` (T, B), `lengths` (B,) and `starts` (B,), the output is `probabilities` (B, C); see
    `handler.engine.Engine`.

    Args:
        model: the exported model, or a member of an ensemble.
        precision: precision of the embeddings and the LSTMs.
    """
    network = model.config.network
    weights = {name: value.astype(np.float32) for name, value in model.weights.items()}
    graph = Graph()
    lstms = {"int8": _int8_lstms, "int8-fine": _fine_lstms, "float32": _float32_lstms}[precision]
    x = _pooled(graph, lstms(graph, network, weights))
    blocks = len(network.head_sizes) - 1
    for index in range(blocks):
        # BatchNorm with fixed statistics is a factor and a shift, which are merged into the linear layer.
        mean, variance, scale, shift, weight = (
            weights[f"head.{index}.{name}"].astype(np.float64)
            for name in ("mean", "variance", "scale", "shift", "weight")
        )
        factor = scale / np.sqrt(variance + network.normalization_epsilon)
        x = graph.add(
            "Gemm",
            x,
            graph.constant(f"head.{index}.weight", (weight * factor).astype(np.float32)),
            graph.constant(f"head.{index}.bias", (weight @ (shift - mean * factor)).astype(np.float32)),
            transB=1,
        )
        if index < blocks - 1:
            x = graph.add("Relu", x)
    _activated(graph, x, model.config.predicts)
    return graph.model(model.config.predicts.outputs)


def _activated(graph: "Graph", x: str, task: Task) -> None:
    """Add the activation that turns the last layer's outputs into the task's predictions; see `TextNetwork`."""
    match task.name:
        case "single-label":
            graph.add("Softmax", x, axis=1, output=PROBABILITIES)
        case "multi-label":
            graph.add("Sigmoid", x, output=PROBABILITIES)
        case "regression" if task.value_range:
            low, high = task.value_range
            x = graph.add("Mul", graph.add("Sigmoid", x), graph.constant("value.range", np.float32(high - low)))
            graph.add("Add", x, graph.constant("value.low", np.float32(low)), output=PROBABILITIES)
        case "regression":
            graph.add("Identity", x, output=PROBABILITIES)


def _float32_lstms(graph: "Graph", network: NetworkConfig, weights: dict[str, Array]) -> str:
    """Add the layers from the ids to the last LSTM's outputs, (T, B, E)."""
    x = graph.add("Gather", graph.constant("embedding", weights["embedding.weight"]), IDS)
    for index, (_, outputs) in enumerate(network.lstm_sizes):
        prefix = f"lstm.{index}"
        bias = np.concatenate([_onnx_gates(weights[f"{prefix}.bias_{part}_l0"]) for part in ("ih", "hh")])
        x = graph.add(
            "LSTM",
            x,
            graph.constant(f"{prefix}.W", _onnx_gates(weights[f"{prefix}.weight_ih_l0"])[None]),
            graph.constant(f"{prefix}.R", _onnx_gates(weights[f"{prefix}.weight_hh_l0"])[None]),
            graph.constant(f"{prefix}.bias", bias[None]),
            hidden_size=outputs,
        )  # (T, 1, B, H), with the direction as the second dimension
        x = graph.add("Squeeze", x, graph.integers(1))
    return x


def _int8_lstms(graph: "Graph", network: NetworkConfig, weights: dict[str, Array]) -> str:
    """Add the layers from the ids to the last LSTM's outputs, (T, B, E)."""
    numbers, scale = _int8_embedding(weights["embedding.weight"])
    x = graph.add("Cast", graph.add("Gather", graph.constant("embedding", numbers), IDS), to=TensorProto.FLOAT)
    x = graph.add("Mul", x, graph.constant("embedding.scale", scale))
    texts = graph.add("Shape", IDS, start=1)
    width = numbers.shape[1]
    for index, (_, outputs) in enumerate(network.lstm_sizes):
        x = _int8_lstm(graph, f"lstm.{index}", weights, (width, outputs), x, texts)
        width = _widened(outputs)
    return graph.add("Slice", x, graph.integers(0), graph.integers(network.embedding_size), graph.integers(2))


def _int8_embedding(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize the embeddings to int8 (rows, columns with the two bounds) with one scale.

    The scale is the one with which the first LSTM quantizes its inputs, so they are not rounded a second time.
    """
    scale = np.float32(np.abs(weight).max() / 127.5 or 1)
    numbers = np.zeros((len(weight), _widened(weight.shape[1])), np.int8)
    numbers[:, : weight.shape[1]] = np.clip(np.rint(weight / scale), -128, 127)
    numbers[:, -2:] = -128, 127
    return numbers, np.array(scale)


def _int8_lstm(
    graph: "Graph", prefix: str, weights: dict[str, Array], sizes: tuple[int, int], x: str, texts: str
) -> str:
    """Add an LSTM from inputs (T, B, width) to outputs (T, B, width): H entries, zeros, and the bounds -1 and 1."""
    inputs, outputs = sizes
    width = _widened(outputs)
    bias = sum(_filled(_onnx_gates(weights[f"{prefix}.bias_{part}_l0"]), width) for part in ("ih", "hh"))
    bias = np.reshape(bias, (4, width)).astype(np.float32)
    bias[1:3, -2:] = FAR  # output and forget gates are 1; the candidate is tanh(0) = 0, so the cell keeps its value
    quantization, constants = [], []
    for part, name, columns in (("W", "weight_ih_l0", inputs), ("R", "weight_hh_l0", width)):
        matrix = _filled(_onnx_gates(weights[f"{prefix}.{name}"]), width)
        matrix = np.pad(matrix, [(0, 0), (0, columns - matrix.shape[1])])
        numbers, scales = _quantized(matrix, LSTM_BITS)
        constants.append(graph.constant(f"{prefix}.{part}", numbers.T[None]))
        zero = graph.constant(f"{prefix}.{part}.zero", np.zeros((1, 4 * width), np.int8))
        quantization += [graph.constant(f"{prefix}.{part}.scales", scales.T), zero]
    state = np.zeros((1, 1, width), np.float32)
    state[..., -2:] = -1, 1
    shape = graph.add("Concat", graph.integers(1), texts, graph.integers(width), axis=0)
    hidden = graph.add("Expand", graph.constant(f"{prefix}.hidden", state), shape)
    cell = graph.add("Expand", graph.constant(f"{prefix}.cell", FAR * state), shape)
    no_bias_for_r = np.zeros_like(bias)
    both = graph.constant(f"{prefix}.bias", np.concatenate([bias, no_bias_for_r]).reshape(1, -1))
    x = graph.add(
        "DynamicQuantizeLSTM",
        *(x, *constants, both, "", hidden, cell, "", *quantization),  # without lengths and peepholes
        hidden_size=width,
        domain=MICROSOFT,
    )
    return graph.add("Squeeze", x, graph.integers(1))


def _fine_lstms(graph: "Graph", network: NetworkConfig, weights: dict[str, Array]) -> str:
    """Add the layers from the ids to the last LSTM's outputs, (T, B, E)."""
    embedding = weights["embedding.weight"]
    scales = _row_scales(embedding, FINE)
    numbers = graph.constant("embedding", np.rint(embedding / scales).astype(np.int16))
    x = graph.add("Cast", graph.add("Gather", numbers, IDS), to=TensorProto.FLOAT)
    scale = graph.add("Gather", graph.constant("embedding.scales", scales), IDS)  # (T, B, 1)
    texts = graph.add("Shape", IDS, start=1)
    for index, (_, outputs) in enumerate(network.lstm_sizes):
        prefix = f"lstm.{index}"
        matrix = _onnx_gates(weights[f"{prefix}.weight_ih_l0"])
        bias = sum(_onnx_gates(weights[f"{prefix}.bias_{part}_l0"]) for part in ("ih", "hh"))
        high, low = _digits(graph, x)
        if index == 0:
            gates = _fine_product(graph, f"{prefix}.W", matrix, high, low, scale=1)
            gates = graph.add("Mul", gates, scale)
        else:
            gates = _fine_product(graph, f"{prefix}.W", matrix, high, low, scale=1 / FINE)
        gates = graph.add("Add", gates, graph.constant(f"{prefix}.bias", np.asarray(bias, np.float32)))
        state = graph.add("ConstantOfShape", graph.add("Concat", texts, graph.integers(outputs), axis=0))
        step = _fine_step(prefix, _onnx_gates(weights[f"{prefix}.weight_hh_l0"]))
        x = graph.scan(step, state, state, gates)
        if index < network.layers - 1:
            x = graph.add("Mul", x, graph.constant("fine", np.float32(FINE)))
    return x


def _fine_step(prefix: str, matrix: Array) -> onnx.GraphProto:
    """Build the graph of one LSTM step.

    The inputs are the state (B, H), the cell (B, H) and the inputs' part of the gates (B, 4 H). The outputs are the
    next state, the next cell, and the state again as the step's output.
    """
    step = Graph(f"{prefix}.")
    outputs = matrix.shape[1]
    numbers, scales = _quantized(matrix, 8)
    high, low = _digits(step, step.add("Mul", "state", step.constant("fine", np.float32(FINE))))
    # Both digits in one product: for a single text, most of the time is spent on reading the matrix.
    both = step.add("Concat", high, low, axis=0)
    sums = _times(step, both, step.constant("R", numbers.T), step.constant("R.scales", scales[:, 0] / np.float32(FINE)))
    high, low = step.split(sums, axis=0, num_outputs=2)
    z = step.add("Add", step.add("Mul", high, step.constant("digit", np.float32(DIGIT))), low)
    z = step.add("Add", z, "gates")
    gates, candidate = step.split(z, step.constant("three", np.array([3 * outputs, outputs])), axis=1)
    i, o, f = step.split(step.add("Sigmoid", gates), axis=1, num_outputs=3)
    kept, new = step.add("Mul", f, "cell"), step.add("Mul", i, step.add("Tanh", candidate))
    cell = step.add("Add", kept, new)
    state = step.add("Mul", o, step.add("Tanh", cell))
    return step.body(prefix, ["state", "cell", "gates"], [state, cell, step.add("Identity", state)])


def _fine_product(graph: "Graph", name: str, matrix: Array, high: str, low: str, scale: float) -> str:
    """Multiply inputs in two digits, each (T, B, K), with a matrix (N, K) and a scale: (T, B, N)."""
    numbers, scales = _quantized(matrix, 8)
    constant = graph.constant(name, numbers.T)
    products = [
        _times(graph, digit, constant, graph.constant(f"{name}.scales.{unit}", scales[:, 0] * np.float32(unit * scale)))
        for digit, unit in ((high, DIGIT), (low, 1))
    ]
    return graph.add("Add", *products)


def _times(graph: "Graph", digits: str, matrix: str, scales: str) -> str:
    """Multiply digits (..., K) with a matrix (K, N) and a scale for each column, in float32."""
    unit, zero = graph.constant("one", np.float32(1)), graph.constant("digit.zero", np.uint8(DIGIT // 2))
    return graph.add("MatMulIntegerToFloat", digits, matrix, unit, scales, zero, domain=MICROSOFT)


def _digits(graph: "Graph", x: str) -> tuple[str, str]:
    """Split numbers of at most `FINE` into two digits: x is about `DIGIT` times the first plus the second."""
    unit, zero = graph.constant("one", np.float32(1)), graph.constant("digit.zero", np.uint8(DIGIT // 2))
    digit = graph.constant("digit", np.float32(DIGIT))
    high = graph.add("QuantizeLinear", x, digit, zero)
    remainder = graph.add("Sub", x, graph.add("DequantizeLinear", high, digit, zero))
    return high, graph.add("QuantizeLinear", remainder, unit, zero)


def _pooled(graph: "Graph", x: str) -> str:
    """Pool each text's outputs, (T, B, E) to (B, 3 E): the last output, and the maximum and mean of the pooled ones."""
    zero, axis, last_axis = graph.integers(0), graph.integers(0), graph.integers(2)
    tokens = graph.add("Squeeze", graph.add("Shape", IDS, end=1))
    position = graph.add("Range", graph.integer(0), tokens, graph.integer(1))
    position = graph.add("Unsqueeze", position, graph.integers(1))  # (T, 1)
    pooled = graph.add(
        "And", graph.add("GreaterOrEqual", position, STARTS), graph.add("Less", position, LENGTHS)
    )  # (T, B)
    pooled = graph.add("Unsqueeze", pooled, last_axis)
    count = graph.add("Cast", graph.add("Sub", LENGTHS, STARTS), to=TensorProto.FLOAT)
    end = graph.add("Equal", graph.add("Add", position, graph.integers(1)), LENGTHS)
    end = graph.add("Unsqueeze", end, last_axis)
    nothing, least = graph.constant("nothing", np.float32(0)), graph.constant("least", np.float32(-np.inf))
    total = graph.add("ReduceSum", graph.add("Where", pooled, x, nothing), axis, keepdims=0)
    return graph.add(
        "Concat",
        graph.add("ReduceSum", graph.add("Where", end, x, nothing), zero, keepdims=0),
        graph.add("ReduceMax", graph.add("Where", pooled, x, least), axis, keepdims=0),
        graph.add("Div", total, graph.add("Unsqueeze", count, graph.integers(1))),
        axis=1,
    )


def _widened(size: int) -> int:
    """Return the length of a vector with the two bounds and padding."""
    return -(-(size + 2) // ALIGNMENT) * ALIGNMENT


def _filled(gates: Array, width: int) -> Array:
    """Pad the rows of four gates (4 H, ...) with zeros for the additional units: (4 width, ...)."""
    gates = gates.reshape(4, -1, *gates.shape[1:])
    added = [(0, 0), (0, width - gates.shape[1]), *[(0, 0)] * (gates.ndim - 2)]
    return np.pad(gates, added).reshape(4 * width, *gates.shape[2:])


def _onnx_gates(rows: Array) -> Array:
    """Reorder gates from PyTorch's order (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    i, f, c, o = np.split(rows, 4)
    return np.concatenate([i, o, f, c])


def _quantized(weight: Array, bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a weight to integers (rows, columns) with a scale for each row (rows, 1)."""
    scales = _row_scales(weight, 2 ** (bits - 1) - 1)
    return np.rint(weight / scales).astype(np.int8), scales


def _row_scales(weight: Array, largest: int) -> npt.NDArray[np.float32]:
    """Compute scales (rows, 1) with which each row's integers are at most `largest`."""
    scales = np.abs(weight).max(axis=1, keepdims=True) / largest
    return np.where(scales == 0, 1, scales).astype(np.float32)


class Graph:
    """Builder of an ONNX graph, to which nodes and constants are added one after the other."""

    def __init__(self, prefix: str = "") -> None:
        """Make an empty graph; the names of its nodes start with `prefix`, which a graph within another one needs."""
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array | np.generic) -> str:
        """Add a constant; return its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        return name

    def integer(self, value: int) -> str:
        """Add a scalar integer constant; return its name."""
        return self.constant(f"integer.{value}", np.int64(value))

    def integers(self, value: int) -> str:
        """Add a constant list with one integer; return its name."""
        return self.constant(f"integers.{value}", np.array([value]))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        output = output or self._name(operator)
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def split(self, *inputs: str, **attributes: Any) -> list[str]:
        """Add a Split into `num_outputs` parts, by default two; return their names."""
        outputs = [f"{self._name('Split')}.{part}" for part in range(attributes.get("num_outputs", 2))]
        self._nodes.append(helper.make_node("Split", inputs, outputs, **attributes))
        return outputs

    def scan(self, step: onnx.GraphProto, *inputs: str) -> str:
        """Add a Scan over the last input, with initial values of two states before it; return the outputs' name."""
        name = self._name("Scan")
        outputs = [f"{name}.state", f"{name}.cell", name]
        self._nodes.append(helper.make_node("Scan", inputs, outputs, body=step, num_scan_inputs=1))
        return name

    def _name(self, operator: str) -> str:
        return f"{self._prefix}{operator}.{len(self._nodes)}"

    def body(self, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.GraphProto:
        """Return the graph as the body of a Scan, which infers the types of the outputs."""
        ins, outs = (
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in values]
            for values in (inputs, outputs)
        )
        return helper.make_graph(self._nodes, name, ins, outs, list(self._constants.values()))

    def model(self, labels: int) -> onnx.ModelProto:
        """Return the graph as a model with the inputs and outputs of `to_onnx`."""
        graph = helper.make_graph(
            self._nodes,
            "network",
            [
                helper.make_tensor_value_info(IDS, TensorProto.INT64, ["T", "B"]),
                helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["B"]),
                helper.make_tensor_value_info(STARTS, TensorProto.INT64, ["B"]),
            ],
            [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["B", labels])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
