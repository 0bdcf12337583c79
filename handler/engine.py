"""The inference engine: ONNX Runtime computes probabilities from token ids with the archive's graph.

`training.export.graph` builds the graph. It states why the result for a text depends neither on padding nor on
the other texts of the same forward pass.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

if "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
    warnings.warn(
        "onnxruntime was imported before handler.engine and without ORT_DISABLE_TELEMETRY=1, so this process sends "
        "telemetry. Import handler.engine first, or set ORT_DISABLE_TELEMETRY=1 before Python starts.",
        stacklevel=2,
    )
# ONNX Runtime 1.32 queues its first telemetry event while it is imported, so `onnxruntime.disable_telemetry_events()`
# is too late. Therefore only this module imports ONNX Runtime (tests/privacy).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from handler.exported import ExportedModelError, NetworkConfig, Probabilities
from handler.padding import forward_passes, pad

GRAPH_FILE: Final = "network.onnx"
IDS: Final = "ids"
LENGTHS: Final = "lengths"
STARTS: Final = "starts"
PROBABILITIES: Final = "probabilities"

_ERRORS_ONLY = 3


def graph_file(member: int) -> str:
    """Return the name of a network's graph in an archive.

    The first network has `network.onnx`; further networks of an ensemble have `network-2.onnx` and so on.
    """
    return f"network-{member + 1}.onnx" if member else GRAPH_FILE


class Engine:
    """A graph with an inference session. It keeps no state between calls.

    Args:
        graph: file of a graph with the inputs `ids`, (T, B), `lengths`, (B,), and `starts`, (B,), the first pooled
            position of each text, and with the output `probabilities`, (B, C).
        config: sizes of the network.
        threads: number of threads for one forward pass.

    Raises:
        ExportedModelError: the file is missing, or it has no such graph.
    """

    def __init__(self, graph: Path, config: NetworkConfig, threads: int) -> None:
        if not graph.is_file():
            raise ExportedModelError(f"{graph} is missing; `python -m training archive` builds it.")
        try:
            self._session = open_session(graph, threads)
        except Exception as error:  # ONNX Runtime's errors have no other base class in common
            raise ExportedModelError(f"{graph}: expected a graph that ONNX Runtime reads: {error}") from error
        inputs = {value.name for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        if inputs != {IDS, LENGTHS, STARTS} or outputs != {PROBABILITIES: ["B", config.head_sizes[-1]]}:
            raise ExportedModelError(
                f"{graph}: expected inputs {IDS}, {LENGTHS}, {STARTS} and output {PROBABILITIES} "
                f"(B, {config.head_sizes[-1]}); found {inputs} and {outputs}."
            )
        self._config = config

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C), for the token ids of N texts, each with at least one id."""
        results = np.empty((len(ids), self._config.head_sizes[-1]), dtype=np.float32)
        for indexes in forward_passes([len(row) for row in ids]):
            padded, lengths = pad([ids[index] for index in indexes])
            starts = np.array([self._config.pooling_start(length) for length in lengths.tolist()])
            inputs = {IDS: np.ascontiguousarray(padded.T), LENGTHS: lengths, STARTS: starts}
            [results[indexes]] = self._session.run([PROBABILITIES], inputs)
        return results


def open_session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session.

    Args:
        graph: the graph's file or its content.
        threads: number of threads for one forward pass.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # ONNX Runtime would keep a memory plan for each length of text, and an arena as large as the longest text needs.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    # A waiting thread that spins would occupy a core that another worker needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
