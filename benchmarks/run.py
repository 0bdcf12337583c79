"""Measures all servers in turn, with the same client, tweets and cores, in several rounds."""

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import measure
from benchmarks.client import Load, load
from benchmarks.learner import write_learner
from benchmarks.report import DIRECT, FLASK, FLASK_ALL, OURS, RESULTS, UNBATCHED, write_report
from benchmarks.sides import CONFIG, ROOT, BenchmarkError, Side, running, sides, torchserve, usable_cores
from benchmarks.tweets import rare_words, with_new_words
from handler import exported
from handler.classifier import TextClassifier
from handler.service import MODEL_FOLDER
from training.data import labelled, read_tweets
from training.errors import TrainingError
from training.export.archive import archive

MODEL = ROOT / "model_store" / "sentiment"
ARCHIVE = MODEL.with_suffix(".mar")
CONNECTIONS = 32
EQUAL_LOAD_CONNECTIONS = 96
"""The number of connections at a fixed rate, below the length of TorchServe's queue, which refuses excess requests. If
the machine is busy for a moment, requests wait at the client, and their latency counts from when they were due."""

WARM_UP_S = 12
"""The time before each measurement, in which Java compiles the code that it executes often."""

ASKED_TEXTS = 100_000
"""The number of texts, more than are sent to one server, so that no text is sent twice."""

ALONE_TEXTS = 15_000
CHECKED_TEXTS = 200
LABEL_MARGIN = 0.06
"""The float32 network's margin between its two best labels below which int8 may choose the other label: twice 0.03."""

LIGHT_SHARE = 0.7
"""The light equal load, as a share of the throughput of the slowest server with this engine."""

HEAVY_SHARE = 0.9
"""The heavy equal load, as a share of the throughput of the fastest other server."""

PACKAGES = (
    "torchserve",
    "onnxruntime",
    "spacy",
    "torch",
    "fastai",
    "flask",
    "gunicorn",
    "fastapi",
    "uvicorn",
    "litserve",
    "bentoml",
)


def main() -> int:
    """Run all measurements and write the results; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this server and other servers with the same client, tweets and cores. The results are "
        "written to benchmarks/results.json and to the pages that quote them.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="CSV", help="Kaggle's Tweets.csv")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8, help="length of a measurement (default: %(default)s)")
    parser.add_argument(
        "--requests",
        type=int,
        default=200_000,
        help="number of requests with new words in the measurement of memory growth (default: %(default)s)",
    )
    parser.add_argument(
        "--product",
        type=Path,
        default=ROOT / ".venv",
        metavar="FOLDER",
        help="virtual environment of this server (default: %(default)s)",
    )
    options = parser.parse_args()
    try:
        tweets = read_tweets(options.data)
        texts = list(labelled(tweets, "validation")["text"])
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as workspace:
            asked = with_new_words(texts, rare_words(tweets["text"]), ASKED_TEXTS)
            results = run(texts, asked, options, Path(workspace))
    except (TrainingError, BenchmarkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(results)
    print(f"The results are in {RESULTS.relative_to(ROOT)} and in the pages that quote them.")
    return 0


def run(texts: list[str], asked: list[str], options: argparse.Namespace, workspace: Path) -> dict[str, Any]:
    """Run all measurements; returns the content of `results.json`.

    Args:
        texts: the tweets.
        asked: the texts to send: the tweets repeatedly, with new words.
        options: the options of the command line.
        workspace: a folder for temporary files.
    """
    log = Path(tempfile.gettempdir(), "benchmarks.log")
    print(f"The servers write their output to {log}", file=sys.stderr)
    workers = usable_cores()
    unpacked = _unpacked(ARCHIVE, workspace / "sentiment")
    learner = workspace / "learner.pkl"
    model = exported.read(MODEL)
    write_learner(model, learner)
    classifier, reference = TextClassifier.load_archived(unpacked, threads=1), TextClassifier.load(MODEL)
    classifier.warm_up()
    unbatched = _config(workspace / "unbatched.properties", ROOT / "model_store", batch_size=1)
    all_sides = sides(options.product, unbatched, unpacked, learner, workers)
    compared = [side for side in all_sides if side.name not in (DIRECT, FLASK, FLASK_ALL, UNBATCHED)]

    figures: dict[str, dict[str, list[Any]]] = {side.name: {} for side in all_sides}
    alone: dict[str, list[Any]] = {}
    with _progress(options.rounds * (len(all_sides) + len(compared) + 2) + 4) as done:
        for _ in range(options.rounds):
            for side in all_sides:
                _closed_loop(side, asked, options.seconds, log, figures[side.name])
                done(side.name)
            _alone(unpacked, asked, workers, options.seconds / 2, alone)
            done("the engine alone")
        checked = texts[:CHECKED_TEXTS]
        labels = {side.name: _label_check(side, checked, classifier, reference, log) for side in all_sides}
        capacity = {side.name: statistics.median(figures[side.name]["throughput"]) for side in compared}
        rates = {
            "light": LIGHT_SHARE * min(capacity.values()),
            "heavy": HEAVY_SHARE * max(value for name, value in capacity.items() if name != OURS),
        }
        for _ in range(options.rounds):
            for side in compared:
                _equal_load(side, asked, rates, options.seconds, log, figures[side.name])
                done(f"{side.name} at equal load")
        sample = asked[-len(texts) :]
        ids = [classifier.ids(text) for text in sample]
        plain = measure.plain_engine(unpacked, model.config.network, workspace)
        steps = measure.steps(classifier, sample)
        without_server: dict[str, Any] = {
            "alone": _medians(alone),
            "steps_ms": steps,
            "roofline": measure.roofline(model, ids, steps["engine"]),
        }
        done("steps")
        without_server |= {
            "lengths": measure.lengths(classifier),
            "batches": measure.batches(classifier, plain, ids),
            "threads": measure.by_threads(unpacked, ids, min(workers, 4)),
            "int8": measure.largest_differences(classifier, reference, texts),
        }
        done("lengths and batches")
        larger = _larger(model, options, asked, workers, workspace, log, done)
        memory = _memory(all_sides[0], texts, options.requests, log)
        done("memory")
        profile = _profile(all_sides[0], asked, options.seconds, log)
        done("profile")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"make bench (rounds: {options.rounds}, seconds: {options.seconds:g})",
        "machine": _machine(workers),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "texts": {"description": "validation split, rare words changed each time", "n": len(texts)},
        "rates": {name: round(rate, 1) for name, rate in rates.items()},
        "sides": {
            side.name: {
                "description": side.description,
                **_medians(figures[side.name]),
                "label_differences": labels[side.name],
            }
            for side in all_sides
        },
        "engine": _rounded(without_server),
        "larger_network": larger,
        "archive_megabytes": round(ARCHIVE.stat().st_size / 1e6, 2),
        "fp32_weights_megabytes": round(4 * sum(value.size for value in model.weights.values()) / 1e6, 2),
        "memory": memory,
        "profile": profile,
    }


def _closed_loop(side: Side, asked: Sequence[str], seconds: float, log: Path, rounds: dict[str, list[Any]]) -> None:
    """Measure a server's start, latency on one connection, and throughput on many; append the figures to `rounds`."""
    requests = side.requests(asked)
    with running(side, log) as server:
        load(side.url, requests, CONNECTIONS, WARM_UP_S)
        one = _all_answered(load(side.url, requests, 1, seconds), side)
        many = _all_answered(load(side.url, requests, CONNECTIONS, seconds), side)
        figures = {
            "start_s": server.start_s,
            "p50_ms": one.percentile(50),
            "p99_ms": one.percentile(99),
            "throughput": many.throughput,
            "loaded_p50_ms": many.percentile(50),
            "loaded_p99_ms": many.percentile(99),
            "worker_megabytes": server.worker_megabytes(),
        }
    _add(figures, rounds)


def _equal_load(
    side: Side,
    asked: Sequence[str],
    rates: Mapping[str, float],
    seconds: float,
    log: Path,
    rounds: dict[str, list[Any]],
) -> None:
    """Measure a server's latency at fixed rates; append the figures to `rounds`."""
    requests = side.requests(asked)
    with running(side, log):
        load(side.url, requests, CONNECTIONS, WARM_UP_S)
        for name, rate in rates.items():
            # An unmeasured load first, from which adaptive batching learns.
            load(side.url, requests, EQUAL_LOAD_CONNECTIONS, 2, rate)
            result = _all_answered(load(side.url, requests, EQUAL_LOAD_CONNECTIONS, seconds, rate), side)
            _add({f"{name}_p50_ms": result.percentile(50), f"{name}_p99_ms": result.percentile(99)}, rounds)


def _all_answered(result: Load, side: Side) -> Load:
    if set(result.statuses) != {200}:
        raise BenchmarkError(f"{side.name} answered {dict(result.statuses)}")
    return result


def _label_check(
    side: Side, texts: Sequence[str], classifier: TextClassifier, reference: TextClassifier, log: Path
) -> int:
    """The number of labels that differ from those of the float32 reference.

    Raises:
        BenchmarkError: a label differs although the reference's margin is large, or a server with this engine does
            not return the engine's labels.
    """
    expected = reference.predict(texts)
    ordered = np.sort(expected, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    engine_labels = classifier.predict(texts).argmax(1)
    with running(side, log):
        labels = [classifier.labels.index(side.ask(text)) for text in texts]
    differences = [index for index, label in enumerate(labels) if label != expected[index].argmax()]
    if any(margins[index] > LABEL_MARGIN for index in differences):
        raise BenchmarkError(f"The labels of {side.name} differ from those of the float32 network.")
    if side.name not in (FLASK, FLASK_ALL) and labels != engine_labels.tolist():
        raise BenchmarkError(f"The labels of {side.name} differ from those of the engine.")
    return len(differences)


def _larger(
    model: exported.ExportedModel,
    options: argparse.Namespace,
    asked: Sequence[str],
    workers: int,
    workspace: Path,
    log: Path,
    done: Callable[[str], None],
) -> dict[str, float]:
    """The throughput of the engine and of a server with a 400/1152/3 network, measured in turn."""
    folder, store = workspace / "larger", workspace / "store"
    exported.write(measure.larger_model(model), folder)
    store.mkdir()
    archive(folder, store / ARCHIVE.name, "1.0", "int8")
    larger = _unpacked(store / ARCHIVE.name, workspace / "larger-archive")
    config = _config(workspace / "larger.properties", store, measure.SERVED_BATCH)
    side = torchserve(options.product, config, workers)
    alone: dict[str, list[Any]] = {}
    served: dict[str, list[Any]] = {}
    for _ in range(options.rounds):
        _alone(larger, asked, workers, options.seconds / 2, alone)
        _closed_loop(side, asked, options.seconds, log, served)
        done("the larger network")
    medians = _medians(served)
    return {
        "engine_texts_a_second": _medians(alone)["engine_in_batches"],
        "throughput": medians["throughput"],
        "p50_ms": medians["p50_ms"],
    }


def _alone(model: Path, asked: Sequence[str], workers: int, seconds: float, rounds: dict[str, list[Any]]) -> None:
    """Measure the engine's throughput without a server; append the figures to `rounds`."""
    _add(measure.engine_alone(model, asked[:ALONE_TEXTS], workers, seconds), rounds)


def _memory(side: Side, texts: Sequence[str], count: int, log: Path) -> dict[str, Any]:
    """Resident memory after 1,000 requests, after half of the requests and after all; each request has new words."""
    with running(side, log) as server:
        sent = 0
        megabytes: dict[str, Any] = {}
        for target in (1_000, count // 2, count):
            megabytes[f"megabytes_after_{target}"] = round(_after(server, side, texts, range(sent, target)), 1)
            sent = target
    return {"requests": count, **megabytes}


def _after(server: Any, side: Side, texts: Sequence[str], numbers: range) -> float:
    """The largest worker's memory in MB after one request for each number, which makes the request's words new."""
    step = 5_000
    for begin in range(numbers.start, numbers.stop, step):
        part = range(begin, min(begin + step, numbers.stop))
        new_texts = [
            f"{text} flight{number} qz{number}x #new{number}" for text, number in zip(cycle(texts), part, strict=False)
        ]
        _all_answered(load(side.url, side.requests(new_texts), CONNECTIONS, limit=len(new_texts)), side)
    return float(server.worker_megabytes())


def _profile(side: Side, asked: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """Processor milliseconds per request of Java, HAProxy and the workers, on one connection and under load."""
    requests = side.requests(asked)
    profile = {}
    with running(side, log) as server:
        load(side.url, requests, CONNECTIONS, 2 * WARM_UP_S)
        for name, connections in (("one_connection", 1), ("loaded", CONNECTIONS)):
            before = server.processor_seconds()
            result = _all_answered(load(side.url, requests, connections, seconds), side)
            after = server.processor_seconds()
            count = len(result.latencies)
            profile[name] = {kind: round(1000 * (after[kind] - before[kind]) / count, 3) for kind in before}
            profile[name]["p50_ms"] = round(result.percentile(50), 2)
    return profile


def _config(path: Path, model_store: Path, batch_size: int) -> Path:
    """Write this server's configuration with another model store and batch size; returns the path."""
    text = CONFIG.read_text(encoding="utf-8")
    changes = {
        "model_store=model_store": f"model_store={model_store}",
        "metrics_config=metrics.yaml": f"metrics_config={ROOT / 'metrics.yaml'}",
    }
    changes[f'"batchSize": {measure.SERVED_BATCH}'] = f'"batchSize": {batch_size}'
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ValueError(f"{CONFIG} contains {old!r} {text.count(old)} times; expected once.")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def _unpacked(mar: Path, folder: Path) -> Path:
    shutil.unpack_archive(mar, folder, "zip")
    return folder / MODEL_FOLDER


def _add(figures: Mapping[str, Any], rounds: dict[str, list[Any]]) -> None:
    """Append the figures of a round to those of the rounds before."""
    for name, value in figures.items():
        rounds.setdefault(name, []).append(value)


def _medians(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """The median of each figure, and the figures of all rounds."""
    return {name: round(statistics.median(values), 2) for name, values in rounds.items()} | {
        "rounds": {name: [round(value, 2) for value in values] for name, values in rounds.items()}
    }


def _rounded(value: Any) -> Any:
    match value:
        case dict():
            return {name: _rounded(item) for name, item in value.items()}
        case float():
            return round(value, 4)
        case _:
            return value


def _machine(workers: int) -> dict[str, Any]:
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    instructions = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if f" {name} " in described]
    return {
        "processor": next(iter(names), platform.processor()),
        "instructions": ", ".join(instructions),
        "cores": workers,
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
    }


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    with tqdm(total=total, unit="measurement", disable=None) as bar:

        def done(measurement: str) -> None:
            bar.set_postfix_str(measurement)
            bar.update()

        yield done
