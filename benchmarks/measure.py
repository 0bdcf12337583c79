"""Measurements without a server: the engine, the other steps of a worker, and the machine's limits."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from handler.body import to_json
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE, Engine, open_session
from handler.exported import ExportedModel, NetworkConfig
from handler.limits import Limits
from handler.prediction import Prediction
from handler.reply import prediction_json
from handler.request import read_request
from training.export.graph import IR_VERSION, OPSET

LENGTHS = (10, 30, 100, 300, 1_000, 3_000, 5_000)
ROUNDS = 15
SERVED_BATCH = 16
"""The batch size in `config.properties` (`batchSize`)."""

ALONE_TIMEOUT_S = 300
BATCHES = (1, 2, 4, 8, 16, 32, 1_000)


def milliseconds(function: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """The mean duration of a function's calls, one for each argument."""
    started = time.perf_counter()
    for argument in arguments:
        function(argument)
    return 1000 * (time.perf_counter() - started) / len(arguments)


def steps(classifier: TextClassifier, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds per text for each step of a worker, after a warm-up."""
    headers, limits = {"content-type": "text/plain"}, Limits()
    ids = [classifier.ids(text) for text in texts]
    rows = list(classifier.probabilities(ids))
    return {
        "request": milliseconds(lambda text: read_request({"body": text.encode()}, headers, limits), texts),
        "tokenizer": milliseconds(classifier.ids, texts),
        "engine": milliseconds(lambda row: classifier.probabilities([row]), ids),
        "json": milliseconds(
            lambda row: to_json(prediction_json(Prediction.from_outputs(row, classifier.task), classifier.task)), rows
        ),
    }


def engine_alone(model: Path, texts: Sequence[str], workers: int, seconds: float) -> dict[str, float]:
    """Texts per second of concurrent processes without a server, summed over the processes.

    Measured are the engine with one text at a time, the engine with batches of TorchServe's size, and tokenizer and
    engine with such batches.

    Args:
        model: an archive's model, unpacked.
        texts: the texts.
        workers: the number of processes.
        seconds: the length of each measurement.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers, timeout=ALONE_TIMEOUT_S), context.Queue()
    arguments = (model, list(texts), seconds, barrier, results)
    processes = [context.Process(target=_engine_alone, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    rates = [results.get(timeout=ALONE_TIMEOUT_S) for _ in processes]
    for process in processes:
        process.join()
    return {name: sum(process_rates[name] for process_rates in rates) for name in rates[0]}


def _engine_alone(model: Path, texts: list[str], seconds: float, barrier: Barrier, results: Any) -> None:
    classifier = TextClassifier.load_archived(model, threads=1)
    classifier.warm_up()
    ids = [classifier.ids(text) for text in texts]
    rates = {}
    begins = range(0, len(texts) - SERVED_BATCH + 1, SERVED_BATCH)
    runs: list[tuple[str, Callable[[int], object], Sequence[int]]] = [
        ("engine", lambda index: classifier.probabilities(ids[index : index + 1]), range(len(ids))),
        ("engine_in_batches", lambda index: classifier.probabilities(ids[index : index + SERVED_BATCH]), begins),
        (
            "tokenizer_and_engine_in_batches",
            lambda index: classifier.predict(texts[index : index + SERVED_BATCH]),
            begins,
        ),
    ]
    for name, function, arguments in runs:
        for argument in arguments[:50]:
            function(argument)
        barrier.wait()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            function(arguments[done % len(arguments)])
            done += 1
        size = 1 if name == "engine" else SERVED_BATCH
        rates[name] = size * done / (time.perf_counter() - started)
    results.put(rates)


def lengths(classifier: TextClassifier) -> list[dict[str, float]]:
    """Milliseconds for a text of each length in `LENGTHS`, the fastest of several rounds.

    The fastest time is taken because other programs on the machine can only add to it.
    """
    words = ["to", "the", "on", "my", "a", "in", "is", "no", "it", "so"]
    texts = [
        " ".join(words[index % len(words)] for index in range(tokens - 1))  # xxbos is a token, too
        for tokens in LENGTHS
    ]
    assert [len(classifier.ids(text)) for text in texts] == list(LENGTHS)
    rounds = [[milliseconds(classifier.predict, [[text]]) for text in texts] for _ in range(ROUNDS)]
    fastest = np.min(rounds, axis=0).tolist()
    return [
        {"tokens": tokens, "milliseconds": round(time_ms, 3)} for tokens, time_ms in zip(LENGTHS, fastest, strict=True)
    ]


def batches(classifier: TextClassifier, plain: Engine, ids: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """Milliseconds per text and the largest difference from a single text's probabilities, by batch size.

    Args:
        classifier: the classifier with this engine.
        plain: the same network with ordinary dynamic quantization, whose scales depend on the batch.
        ids: the token ids of the texts.
    """
    rows: list[dict[str, float]] = [{"texts": size} for size in BATCHES]
    for prefix, network in (("", classifier), ("plain_", plain)):
        single = np.concatenate([network.probabilities([text_ids]) for text_ids in ids])
        for row, size in zip(rows, BATCHES, strict=True):
            parts = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
            batched = np.concatenate([network.probabilities(part) for part in parts])
            time_ms = milliseconds(network.probabilities, parts) * len(parts) / len(ids)
            row[f"{prefix}milliseconds"] = round(time_ms, 3)
            row[f"{prefix}largest_difference"] = float(np.abs(batched - single).max())
    return rows


def plain_engine(model: Path, config: NetworkConfig, folder: Path) -> Engine:
    """An engine with an archive's network in ordinary dynamic quantization.

    The constants that fix the scales are set to zero (see `training.export.graph`).

    Args:
        model: an archive's model, unpacked.
        config: the sizes of its network.
        folder: the folder for the changed graph.
    """
    graph = onnx.load(model / GRAPH_FILE)
    for constant in graph.graph.initializer:
        value = onnx.numpy_helper.to_array(constant).copy()
        if constant.name == "embedding":
            value[:, -2:] = 0
        elif constant.name.endswith((".hidden", ".cell")):
            value[:] = 0
        else:
            continue
        constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))
    onnx.save(graph, folder / GRAPH_FILE)
    return Engine(folder / GRAPH_FILE, config, threads=1)


def by_threads(model: Path, ids: Sequence[Sequence[int]], most: int) -> list[dict[str, float]]:
    """Median milliseconds for a single text, by number of threads from 1 to `most`."""
    rows = []
    for threads in range(1, most + 1):
        classifier = TextClassifier.load_archived(model, threads)
        times = [milliseconds(classifier.probabilities, [[text_ids]]) for text_ids in ids]
        rows.append({"threads": threads, "milliseconds": round(float(np.median(times)), 3)})
    return rows


def roofline(model: ExportedModel, ids: Sequence[Sequence[int]], engine_ms: float) -> dict[str, float]:
    """The limits of one core in int8 arithmetic and in reading weights from its caches, and the engine's need of both.

    Returns:
        Rates in 10^9 multiply-accumulates per second (GMAC/s) and in GB/s, and times in milliseconds per text.
    """
    matrices = [value for name, value in model.weights.items() if name.startswith("lstm") and value.ndim == 2]
    macs = sum(value.size for value in matrices)  # a token
    tokens = float(np.mean([len(row) for row in ids]))
    arithmetic = _multiply_rate()
    reading = _read_rate(sum(value.size for value in matrices))
    # The input products of all tokens are computed at once; only the recurrent matrices are read for every token.
    recurrent = sum(v.size for n, v in model.weights.items() if n.endswith("weight_hh_l0"))
    inputs = macs - recurrent
    return {
        "tokens": round(tokens, 1),
        "million_macs": round(tokens * macs / 1e6, 1),
        "megabytes_read": round((tokens * recurrent + inputs) / 1e6, 1),
        "machine_gmacs": round(arithmetic, 1),
        "machine_gigabytes": round(reading, 1),
        "bound_by_arithmetic_ms": round(tokens * macs / arithmetic / 1e6, 3),
        "bound_by_reading_ms": round((tokens * recurrent + inputs) / reading / 1e6, 3),
        "engine_ms": round(engine_ms, 3),
        "engine_gmacs": round(tokens * macs / engine_ms / 1e6, 1),
    }


def _multiply_rate() -> float:
    """The rate of ONNX Runtime's int8 product of large matrices in cache, on one thread, in GMAC/s."""
    m, k, n = 512, 600, 2400
    generator = np.random.default_rng(0)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    b = onnx.numpy_helper.from_array(generator.integers(-63, 63, (k, n), dtype=np.int8), "b")
    graph = helper.make_graph(
        [node],
        "measured",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [m, k])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [m, n])],
        [b],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = open_session(model.SerializeToString(), threads=1)
    a = generator.integers(0, 255, (m, k), dtype=np.uint8)
    times = [milliseconds(lambda _: session.run(None, {"a": a}), range(5)) for _ in range(5)]
    return m * k * n / min(times) / 1e6


def _read_rate(size: int) -> float:
    """The rate of reading `size` bytes repeatedly, on one thread, in GB/s."""
    numbers = np.ones(size // 8, dtype=np.int64)
    times = [milliseconds(lambda _: numbers.max(), range(50)) for _ in range(5)]
    return numbers.nbytes / min(times) / 1e6


def largest_differences(classifier: TextClassifier, reference: TextClassifier, texts: Sequence[str]) -> dict[str, Any]:
    """The largest difference of the engine's probabilities from the reference's, and the number of changed labels."""
    probabilities, expected = classifier.predict(texts), reference.predict(texts)
    return {
        "texts": len(texts),
        "largest_difference": round(float(np.abs(probabilities - expected).max()), 4),
        "labels_changed": int((probabilities.argmax(1) != expected.argmax(1)).sum()),
    }


def larger_model(model: ExportedModel) -> ExportedModel:
    """A 400/1152/3 network with random weights, for measurements of its cost."""
    old = model.config.network
    network = replace(old, embedding_size=400, hidden_size=1152, layers=3, head_sizes=(1200, *old.head_sizes[1:]))
    generator = np.random.default_rng(0)
    weights = {
        name: np.ones(shape, np.float32)
        if name.endswith("variance")
        else generator.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in network.tensor_shapes().items()
    }
    return ExportedModel(replace(model.config, network=network), model.vocabulary, {}, weights)
