"""`make bench`: all servers with the same client, tweets and cores, in turn, several rounds of them."""

import argparse
import json
import os
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
from benchmarks.sides import CONFIG, ROOT, Side, running, sides, torchserve
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
"""Fewer than TorchServe's queue holds, which refuses what is over: after a moment in which the machine did something
else, a request waits at the client, and its latency counts from when it was due."""

WARM_UP_S = 12
"""Java compiles what is used often, and goes on for a while."""

ASKED_TEXTS = 100_000
"""More than are sent to one server, so that none is sent twice."""

ALONE_TEXTS = 15_000
CHECKED_TEXTS = 200
LABEL_MARGIN = 0.06
"""The fp32 network's distance between its two best labels under which int8 may choose the other: twice 0.03."""

LIGHT_SHARE = 0.7
"""The light equal load, as a share of what the slowest server with this engine can take."""

HEAVY_SHARE = 0.9
"""The heavy one, as a share of what the fastest of the others can take."""

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
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="CSV", help="Kaggle's Tweets.csv")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=200_000, help="with ever new words, for memory (default: %(default)s)"
    )
    parser.add_argument(
        "--product", type=Path, default=ROOT / ".venv", metavar="FOLDER", help="its environment (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        tweets = read_tweets(options.data)
        texts = list(labelled(tweets, "validation")["text"])
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as workspace:
        asked = with_new_words(texts, rare_words(tweets["text"]), ASKED_TEXTS)
        results = run(texts, asked, options, Path(workspace))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(results)
    print(f"Results in {RESULTS.relative_to(ROOT)}; README.md and benchmarks/README.md quote them.")
    return 0


def run(texts: list[str], asked: list[str], options: argparse.Namespace, workspace: Path) -> dict[str, Any]:
    """All measurements, as `results.json` has them.

    Args:
        texts: the tweets as they are.
        asked: them over and over again, with new words.
    """
    log = Path(tempfile.gettempdir(), "benchmarks.log")
    print(f"The servers' output is in {log}", file=sys.stderr)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    unpacked = _unpacked(ARCHIVE, workspace / "sentiment")
    learner = workspace / "learner.pkl"
    model = exported.read(MODEL)
    write_learner(model, learner)
    classifier, reference = TextClassifier.load_archived(unpacked, threads=1), TextClassifier.load(MODEL)
    classifier.warm_up()
    unbatched = _config(workspace / "unbatched.properties", ROOT / "model_store", batch_size=1)
    all_sides = sides(options.product, unbatched, unpacked, learner, workers)
    compared = [side for side in all_sides if side.name not in (DIRECT, FLASK, FLASK_ALL, UNBATCHED)]

    found: dict[str, dict[str, list[Any]]] = {side.name: {} for side in all_sides}
    alone: dict[str, list[Any]] = {}
    with _progress(options.rounds * (len(all_sides) + len(compared) + 2) + 4) as done:
        for _ in range(options.rounds):
            for side in all_sides:
                _closed_loop(side, asked, options.seconds, log, found[side.name])
                done(side.name)
            _alone(unpacked, asked, workers, options.seconds / 2, alone)
            done("the engine alone")
        checked = texts[:CHECKED_TEXTS]
        labels = {side.name: _label_check(side, checked, classifier, reference, log) for side in all_sides}
        capacity = {side.name: statistics.median(found[side.name]["throughput"]) for side in compared}
        rates = {
            "light": LIGHT_SHARE * min(capacity.values()),
            "heavy": HEAVY_SHARE * max(value for name, value in capacity.items() if name != OURS),
        }
        for _ in range(options.rounds):
            for side in compared:
                _equal_load(side, asked, rates, options.seconds, log, found[side.name])
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
        "texts": {"what": "validation split, rare words changed each time", "n": len(texts)},
        "rates": {name: round(rate, 1) for name, rate in rates.items()},
        "sides": {
            side.name: {"what": side.what, **_medians(found[side.name]), "label_differences": labels[side.name]}
            for side in all_sides
        },
        "engine": _rounded(without_server),
        "larger_network": larger,
        "archive_megabytes": round(ARCHIVE.stat().st_size / 1e6, 2),
        "fp32_weights_megabytes": round(4 * sum(value.size for value in model.weights.values()) / 1e6, 2),
        "memory": memory,
        "profile": profile,
    }


def _closed_loop(side: Side, asked: Sequence[str], seconds: float, log: Path, found: dict[str, list[Any]]) -> None:
    """One start, one connection, many connections."""
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
    _add(figures, found)


def _equal_load(
    side: Side, asked: Sequence[str], rates: Mapping[str, float], seconds: float, log: Path, found: dict[str, list[Any]]
) -> None:
    requests = side.requests(asked)
    with running(side, log):
        load(side.url, requests, CONNECTIONS, WARM_UP_S)
        for name, rate in rates.items():
            # Before it counts: batching that learns from the load learns from this one.
            load(side.url, requests, EQUAL_LOAD_CONNECTIONS, 2, rate)
            result = _all_answered(load(side.url, requests, EQUAL_LOAD_CONNECTIONS, seconds, rate), side)
            _add({f"{name}_p50_ms": result.percentile(50), f"{name}_p99_ms": result.percentile(99)}, found)


def _all_answered(result: Load, side: Side) -> Load:
    if set(result.statuses) != {200}:
        raise RuntimeError(f"{side.name} answered {dict(result.statuses)}")
    return result


def _label_check(
    side: Side, texts: Sequence[str], classifier: TextClassifier, reference: TextClassifier, log: Path
) -> int:
    """How many labels are not the fp32 reference's.

    Raises:
        RuntimeError: one differs without being a close call, or a server with the engine does not answer as it does.
    """
    expected = reference.predict(texts)
    ordered = np.sort(expected, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    of_engine = classifier.predict(texts).argmax(1)
    with running(side, log):
        found = [classifier.labels.index(side.ask(text)) for text in texts]
    differences = [index for index, label in enumerate(found) if label != expected[index].argmax()]
    if any(margins[index] > LABEL_MARGIN for index in differences):
        raise RuntimeError(f"{side.name} gives other labels than the fp32 network.")
    if side.name not in (FLASK, FLASK_ALL) and found != of_engine.tolist():
        raise RuntimeError(f"{side.name} gives other labels than the engine.")
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
    """The engine's and a server's throughput with a 400/1152/3 network, in turns."""
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
    found = _medians(served)
    return {
        "engine_texts_a_second": _medians(alone)["engine_in_batches"],
        "throughput": found["throughput"],
        "p50_ms": found["p50_ms"],
    }


def _alone(model: Path, asked: Sequence[str], workers: int, seconds: float, found: dict[str, list[Any]]) -> None:
    _add(measure.engine_alone(model, asked[:ALONE_TEXTS], workers, seconds), found)


def _memory(side: Side, texts: Sequence[str], count: int, log: Path) -> dict[str, Any]:
    """Resident memory after a thousand and after very many requests, each with words that no request had before."""
    with running(side, log) as server:
        sent = 0
        found: dict[str, Any] = {}
        for target in (1_000, count // 2, count):
            found[f"megabytes_after_{target}"] = round(_after(server, side, texts, range(sent, target)), 1)
            sent = target
    return {"requests": count, **found}


def _after(server: Any, side: Side, texts: Sequence[str], numbers: range) -> float:
    """The largest worker's memory, in megabytes, after requests with the words of these numbers."""
    step = 5_000
    for begin in range(numbers.start, numbers.stop, step):
        part = range(begin, min(begin + step, numbers.stop))
        more = [
            f"{text} flight{number} qz{number}x #new{number}" for text, number in zip(cycle(texts), part, strict=False)
        ]
        _all_answered(load(side.url, side.requests(more), CONNECTIONS, limit=len(more)), side)
    return float(server.worker_megabytes())


def _profile(side: Side, asked: Sequence[str], seconds: float, log: Path) -> dict[str, Any]:
    """Processor milliseconds a request, of Java, of HAProxy and of the workers, alone and loaded."""
    requests = side.requests(asked)
    found = {}
    with running(side, log) as server:
        load(side.url, requests, CONNECTIONS, 2 * WARM_UP_S)
        for name, connections in (("one_connection", 1), ("loaded", CONNECTIONS)):
            before = server.processor_seconds()
            result = _all_answered(load(side.url, requests, connections, seconds), side)
            after = server.processor_seconds()
            count = len(result.latencies)
            found[name] = {kind: round(1000 * (after[kind] - before[kind]) / count, 3) for kind in before}
            found[name]["p50_ms"] = round(result.percentile(50), 2)
    return found


def _config(path: Path, model_store: Path, batch_size: int) -> Path:
    """The product's configuration with another model store and size of batches."""
    text = CONFIG.read_text(encoding="utf-8")
    changes = {
        "model_store=model_store": f"model_store={model_store}",
        "metrics_config=metrics.yaml": f"metrics_config={ROOT / 'metrics.yaml'}",
    }
    changes[f'"batchSize": {measure.SERVED_BATCH}'] = f'"batchSize": {batch_size}'
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ValueError(f"{CONFIG} has {text.count(old)} places for {old!r}.")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def _unpacked(mar: Path, folder: Path) -> Path:
    shutil.unpack_archive(mar, folder, "zip")
    return folder / MODEL_FOLDER


def _add(figures: Mapping[str, Any], found: dict[str, list[Any]]) -> None:
    """A round's figures to those of the rounds before."""
    for name, value in figures.items():
        found.setdefault(name, []).append(value)


def _medians(found: dict[str, list[float]]) -> dict[str, Any]:
    return {name: round(statistics.median(values), 2) for name, values in found.items()} | {
        "rounds": {name: [round(value, 2) for value in values] for name, values in found.items()}
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

        def done(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        yield done


if __name__ == "__main__":
    sys.exit(main())
