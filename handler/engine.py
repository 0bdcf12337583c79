"""The third step: token ids to probabilities, by ONNX Runtime from the archive's graph, which
`training.export.graph` builds.

What is computed for a text depends neither on the texts beside it nor on padding: see there.
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
# ONNX Runtime 1.32 sends telemetry from its import on, and `onnxruntime.disable_telemetry_events()` is too late: the
# import has queued an event. So no other module imports it (tests/privacy).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from handler.exported import ExportedModelError, NetworkConfig, Probabilities
from handler.padding import batches, pad

GRAPH_FILE: Final = "network.onnx"
IDS: Final = "ids"
LENGTHS: Final = "lengths"
STARTS: Final = "starts"
PROBABILITIES: Final = "probabilities"

_ERRORS_ONLY = 3


def graph_file(member: int) -> str:
    """The name of a network's graph in an archive: `network.onnx`, of an ensemble's others `network-2.onnx` and on."""
    return f"network-{member + 1}.onnx" if member else GRAPH_FILE


class Engine:
    """A graph, ready for inference. Keeps nothing from one call to the next.

    Args:
        graph: takes `ids`, (T, B), `lengths`, (B,), and `starts`, (B,), the texts' first pooled positions; gives
            `probabilities`, (B, C).
        threads: for one batch.

    Raises:
        ExportedModelError: no such file, or not such a graph.
    """

    def __init__(self, graph: Path, config: NetworkConfig, threads: int) -> None:
        if not graph.is_file():
            raise ExportedModelError(f"{graph} is missing; `python -m training archive` makes it.")
        try:
            self._session = open_session(graph, threads)
        except Exception as error:  # ONNX Runtime's errors have no other class in common
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
        """The labels' probabilities, (N, C), of N texts given as ids, each at least one."""
        results = np.empty((len(ids), self._config.head_sizes[-1]), dtype=np.float32)
        for rows in batches([len(row) for row in ids]):
            padded, lengths = pad([ids[row] for row in rows])
            starts = np.array([self._config.pooling_start(length) for length in lengths.tolist()])
            inputs = {IDS: np.ascontiguousarray(padded.T), LENGTHS: lengths, STARTS: starts}
            [results[rows]] = self._session.run([PROBABILITIES], inputs)
        return results


def open_session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session for a graph, given as a file or as its bytes, that computes on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Texts have any length: a plan for each length's memory would be kept for ever, and so would an arena that has
    # grown to the longest text.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    # A waiting thread that spins takes the core from another worker.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
