"""The exported model's network as an ONNX graph for one text: what an archive holds and `handler.engine` runs.

In int8, the embeddings and the LSTMs' matrices are whole numbers with a scale for each row (each word, each gate of
each unit), and the LSTMs are ONNX Runtime's `DynamicQuantizeLSTM`, which rounds their inputs too, to 8 bits over what
it is given: one text's inputs, and one step's state. The head, a thousandth of the work, stays in float32.
"""

from itertools import pairwise
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from handler.engine import IDS, PROBABILITIES, START
from handler.exported import ExportedModel

Precision = Literal["int8", "float32"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

EMBEDDING_BITS: Final = 8
LSTM_BITS: Final = 7
"""Not 8: processors without VNNI instructions add products of 8-bit numbers in pairs in 16 bits, which overflow. With
7 bits the sums are the same on every processor."""

OPSET: Final = 18
IR_VERSION: Final = 9
MICROSOFT: Final = "com.microsoft"

Array = npt.NDArray[Any]


def to_onnx(model: ExportedModel, precision: Precision) -> onnx.ModelProto:
    """The graph: `ids`, (T,), and `start`, (1,), the first pooled position, to `probabilities`, (1, C)."""
    network = model.config.network
    weights = {name: value.astype(np.float32) for name, value in model.weights.items()}
    graph = Graph()
    first, last, end, once = (graph.constant(f"{n}", np.array([n])) for n in (0, -1, np.iinfo(np.int64).max, 1))
    x = _embedding(graph, weights["embedding.weight"], precision)  # (T, E)
    for index in range(network.layers):
        prefix = f"lstm.{index}"
        x = graph.add("Unsqueeze", x, once)  # (T, 1, E), a batch of one
        x = lstm(graph, prefix, weights, x, precision)  # (T, 1, 1, H): directions before the batch
        x = graph.add("Squeeze", x, graph.constant(f"{prefix}.axes", np.array([1, 2])))  # (T, H); (T, E) after the last
    pooled = graph.add("Slice", x, START, end, first)
    x = graph.add(
        "Concat",
        graph.add("Slice", x, last, end, first),
        graph.add("ReduceMax", pooled, first, keepdims=1),
        graph.add("ReduceMean", pooled, first, keepdims=1),
        axis=1,
    )  # (1, 3 E)
    blocks = len(list(pairwise(network.head_sizes)))
    for index in range(blocks):
        # BatchNorm with fixed statistics is a factor and a shift, which the linear layer takes in.
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
    graph.add("Softmax", x, axis=1, output=PROBABILITIES)
    return graph.model(len(model.config.labels))


def _embedding(graph: "Graph", weight: Array, precision: Precision) -> str:
    if precision == "float32":
        return graph.add("Gather", graph.constant("embedding", weight), IDS)
    numbers, scales = _quantized(weight, EMBEDDING_BITS)
    rows = graph.add("Gather", graph.constant("embedding", numbers), IDS)
    rows = graph.add("Cast", rows, to=TensorProto.FLOAT)
    return graph.add("Mul", rows, graph.add("Gather", graph.constant("embedding.scales", scales), IDS))


def lstm(graph: "Graph", prefix: str, weights: dict[str, Array], x: str, precision: Precision) -> str:
    """Add the LSTM whose tensors are named `prefix`: (T, B, inputs) to (T, 1, B, outputs)."""
    matrices = [_onnx_gates(weights[f"{prefix}.weight_{part}_l0"]) for part in ("ih", "hh")]
    biases = [_onnx_gates(weights[f"{prefix}.bias_{part}_l0"]) for part in ("ih", "hh")]
    bias = graph.constant(f"{prefix}.bias", np.concatenate(biases)[None])
    hidden_size = matrices[1].shape[1]
    if precision == "float32":
        constants = [
            graph.constant(f"{prefix}.{part}", matrix[None]) for part, matrix in zip("WR", matrices, strict=True)
        ]
        return graph.add("LSTM", x, *constants, bias, hidden_size=hidden_size)
    numbers, scales = zip(*(_quantized(matrix, LSTM_BITS) for matrix in matrices), strict=True)
    constants = [graph.constant(f"{prefix}.{part}", matrix.T[None]) for part, matrix in zip("WR", numbers, strict=True)]
    zero = graph.constant(f"{prefix}.zero", np.zeros((1, 4 * hidden_size), np.int8))
    quantization = [
        name
        for part, scale in zip("WR", scales, strict=True)
        for name in (graph.constant(f"{prefix}.{part}.scales", scale.T), zero)
    ]
    no_lengths_nor_states_nor_peepholes = [""] * 4
    return graph.add(
        "DynamicQuantizeLSTM",
        *(x, *constants, bias, *no_lengths_nor_states_nor_peepholes, *quantization),
        hidden_size=hidden_size,
        domain=MICROSOFT,
    )


def _onnx_gates(rows: Array) -> Array:
    """PyTorch's order of gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    i, f, c, o = np.split(rows, 4)
    return np.concatenate([i, o, f, c])


def _quantized(weight: Array, bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Whole numbers, (rows, columns), and a scale for each row, (rows, 1), whose product is near the weight."""
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(weight).max(axis=1, keepdims=True) / largest
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


class Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        output = output or f"{operator}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def model(self, labels: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "network",
            [
                helper.make_tensor_value_info(IDS, TensorProto.INT64, ["T"]),
                helper.make_tensor_value_info(START, TensorProto.INT64, [1]),
            ],
            [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [1, labels])],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
