"""Measurements without a server: the engine and the steps around it, and what the machine could do."""

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
from handler.reply import prediction
from handler.request import read_request
from training.export.graph import IR_VERSION, OPSET

LENGTHS = (10, 30, 100, 300, 1_000, 3_000, 5_000)
ROUNDS = 15
SERVED_BATCH = 16
"""`batchSize` in `config.properties`."""

ALONE_TIMEOUT_S = 300
BATCHES = (1, 2, 4, 8, 16, 32, 1_000)


def milliseconds(function: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """The mean over the arguments."""
    started = time.perf_counter()
    for argument in arguments:
        function(argument)
    return 1000 * (time.perf_counter() - started) / len(arguments)


def steps(classifier: TextClassifier, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds a text of each step of a worker, all of them warm."""
    headers, limits = {"content-type": "text/plain"}, Limits()
    ids = [classifier.ids(text) for text in texts]
    rows = list(classifier.probabilities(ids))
    return {
        "request": milliseconds(lambda text: read_request({"body": text.encode()}, headers, limits), texts),
        "tokenizer": milliseconds(classifier.ids, texts),
        "engine": milliseconds(lambda row: classifier.probabilities([row]), ids),
        "json": milliseconds(lambda row: to_json(prediction(row, classifier.task)), rows),
    }


def engine_alone(model: Path, texts: Sequence[str], workers: int, seconds: float) -> dict[str, float]:
    """Texts a second of as many processes as workers, at the same time: of the engine, given ids, one text at a time
    and in batches as large as TorchServe's; and of tokenizer and engine, given such batches."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(workers, timeout=ALONE_TIMEOUT_S), context.Queue()
    arguments = (model, list(texts), seconds, together, results)
    processes = [context.Process(target=_engine_alone, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [results.get(timeout=ALONE_TIMEOUT_S) for _ in processes]
    for process in processes:
        process.join()
    return {name: sum(one[name] for one in found) for name in found[0]}


def _engine_alone(model: Path, texts: list[str], seconds: float, together: Barrier, results: Any) -> None:
    classifier = TextClassifier.load_archived(model, threads=1)
    classifier.warm_up()
    ids = [classifier.ids(text) for text in texts]
    found = {}
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
        together.wait()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            function(arguments[done % len(arguments)])
            done += 1
        size = 1 if name == "engine" else SERVED_BATCH
        found[name] = size * done / (time.perf_counter() - started)
    results.put(found)


def lengths(classifier: TextClassifier) -> list[dict[str, float]]:
    """Milliseconds of texts of many lengths, the fastest of some rounds through all of them: other programs, and other
    users of the machine, only ever add to what a text costs."""
    words = ["to", "the", "on", "my", "a", "in", "is", "no", "it", "so"]
    texts = [
        " ".join(words[index % len(words)] for index in range(tokens - 1))  # the beginning is a token
        for tokens in LENGTHS
    ]
    assert [len(classifier.ids(text)) for text in texts] == list(LENGTHS)
    rounds = [[milliseconds(lambda one: classifier.predict([one]), [text]) for text in texts] for _ in range(ROUNDS)]
    fastest = np.min(rounds, axis=0).tolist()
    return [{"tokens": tokens, "milliseconds": round(took, 3)} for tokens, took in zip(LENGTHS, fastest, strict=True)]


def batches(classifier: TextClassifier, plain: Engine, ids: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """What is gained from texts that arrive together, and how far their answers are from those alone: of the engine,
    and of the same with scales that move with the batch."""
    found: list[dict[str, float]] = [{"texts": size} for size in BATCHES]
    for prefix, network in (("", classifier), ("plain_", plain)):
        alone = np.concatenate([network.probabilities([row]) for row in ids])
        for of_size, size in zip(found, BATCHES, strict=True):
            parts = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
            answers = np.concatenate([network.probabilities(part) for part in parts])
            took = milliseconds(network.probabilities, parts) * len(parts) / len(ids)
            of_size[f"{prefix}milliseconds"] = round(took, 3)
            of_size[f"{prefix}largest_difference"] = float(np.abs(answers - alone).max())
    return found


def plain_engine(model: Path, config: NetworkConfig, folder: Path) -> Engine:
    """An archive's network without what fixes its scales (`training.export.graph`): ordinary dynamic quantization."""
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
    """Median milliseconds of a text alone by threads."""
    found = []
    for threads in range(1, most + 1):
        classifier = TextClassifier.load_archived(model, threads)
        times = [milliseconds(classifier.probabilities, [[row]]) for row in ids]
        found.append({"threads": threads, "milliseconds": round(float(np.median(times)), 3)})
    return found


def roofline(model: ExportedModel, ids: Sequence[Sequence[int]], engine_ms: float) -> dict[str, float]:
    """What one core gives in int8 arithmetic and in reading weights from its caches, against what the engine needs.

    Returns:
        in thousand million multiplications with addition a second (GMAC/s), GB/s and milliseconds a text.
    """
    matrices = [value for name, value in model.weights.items() if name.startswith("lstm") and value.ndim == 2]
    macs = sum(value.size for value in matrices)  # a token
    tokens = float(np.mean([len(row) for row in ids]))
    arithmetic = _multiply_rate()
    reading = _read_rate(sum(value.size for value in matrices))
    # A step's input products are computed for all of a text's tokens at once; only the recurrent matrices are read anew
    # for every token.
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
    """GMAC/s of ONNX Runtime's own int8 product of large matrices, on one thread: the same instructions, all in cache,
    nothing waited for."""
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
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = open_session(made.SerializeToString(), threads=1)
    a = generator.integers(0, 255, (m, k), dtype=np.uint8)
    times = [milliseconds(lambda _: session.run(None, {"a": a}), range(5)) for _ in range(5)]
    return m * k * n / min(times) / 1e6


def _read_rate(size: int) -> float:
    """GB/s of reading as many bytes as the matrices have, over and over, on one thread."""
    numbers = np.ones(size // 8, dtype=np.int64)
    times = [milliseconds(lambda _: numbers.max(), range(50)) for _ in range(5)]
    return numbers.nbytes / min(times) / 1e6


def largest_differences(classifier: TextClassifier, reference: TextClassifier, texts: Sequence[str]) -> dict[str, Any]:
    """Of the engine's answers against the reference's."""
    found, expected = classifier.predict(texts), reference.predict(texts)
    return {
        "texts": len(texts),
        "largest_difference": round(float(np.abs(found - expected).max()), 4),
        "labels_changed": int((found.argmax(1) != expected.argmax(1)).sum()),
    }


def larger_model(model: ExportedModel) -> ExportedModel:
    """A 400/1152/3 network of random weights, for its cost."""
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
