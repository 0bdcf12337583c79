"""Measures bulk scoring: `python -m benchmarks.bulk --data Tweets.csv`.

The same texts are classified by a loop around the model, by `python -m bulk`, and by `sentiment score` with one server.
Each uses all cores. The results are written to `bulk.json`, and to the table of the guide.
"""

import argparse
import csv
import json
import multiprocessing
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.report import with_text_between
from benchmarks.sides import CONFIG, ROOT, BenchmarkError, running, torchserve, usable_cores
from benchmarks.tweets import rare_words, with_new_words
from handler.classifier import TextClassifier
from handler.memory import give_freed_memory_back
from handler.service import HEAP_END_MIB, LARGE_BLOCK_MIB, MODEL_FOLDER

RESULTS: Final = Path(__file__).with_name("bulk.json")
PAGE: Final = ROOT / "docs" / "guides" / "bulk.md"
BEGIN, END = "<!-- table of benchmarks/bulk.json: begin -->", "<!-- table of benchmarks/bulk.json: end -->"

GOAL: Final = 0.85
"""Texts a second of bulk scoring, as a share of those of the loop around the engine."""

BATCH_TEXTS: Final = 1_000
"""Number of texts in a batch of the loop: as many as bulk scoring has."""

LOOP_TEXTS: Final = 100_000
"""Maximum number of texts of the loop, whose rate does not depend on their number."""

ROUNDS: Final = 3
"""Number of runs of bulk scoring with at most `LOOP_TEXTS` texts. A run with more texts takes minutes: there is one."""

CONNECTIONS: Final = 8
SAMPLE_S: Final = 1.0
"""Interval between two measurements of memory, in seconds."""

CHECK_S: Final = 1.0
"""Interval between two checks for a lost process of the loop, in seconds."""

TIMEOUT_S: Final = 3_600
"""Maximum time until all processes of the loop have loaded the model."""


def main() -> int:
    """Run all measurements and write the results; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description="Measure bulk scoring.")
    parser.add_argument("--data", type=Path, required=True, metavar="CSV", help="Kaggle's Tweets.csv")
    parser.add_argument(
        "--texts",
        type=int,
        nargs="+",
        default=[100_000, 1_000_000],
        metavar="N",
        help="numbers of texts to measure (default: 100,000 and 1,000,000)",
    )
    parser.add_argument("--archive", type=Path, default=ROOT / "model_store" / "sentiment.mar", metavar="FILE.mar")
    parser.add_argument("--no-server", action="store_true", help="do not measure `sentiment score`")
    parser.add_argument("--print", action="store_true", help="print the results, and write no file")
    options = parser.parse_args()
    try:
        results = measure(options.data, options.texts, options.archive, with_server=not options.no_server)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.print:
        print(json.dumps(results, indent=1), table(results), sep="\n")
        return 0
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


def measure(data: Path, counts: Sequence[int], archive: Path, *, with_server: bool) -> dict[str, Any]:
    """Run all measurements; returns the content of `bulk.json`.

    Args:
        data: Kaggle's Tweets.csv.
        counts: numbers of texts.
        archive: the model archive.
        with_server: whether to measure `sentiment score`.

    Raises:
        BenchmarkError: the data have no texts, or one of the measured programs fails.
    """
    cores = usable_cores()
    tweets = _texts(data)
    sizes = []
    with tempfile.TemporaryDirectory(prefix="bulk-") as workspace:
        folder = Path(workspace)
        shutil.unpack_archive(archive, folder / "archive", "zip")
        for count in counts:
            path = folder / f"tweets-{count}.csv"
            _write(path, with_new_words(tweets, rare_words(tweets), count))
            loops, runs = [loop(folder / "archive" / MODEL_FOLDER, path, cores)], []
            # The speed of a machine changes with time, so a loop precedes and follows each run.
            for _ in range(ROUNDS if count <= LOOP_TEXTS else 1):
                runs.append(bulk(path, folder / "out" / "scored", archive))
                shutil.rmtree(folder / "out")
                loops.append(loop(folder / "archive" / MODEL_FOLDER, path, cores))
            figures = {
                "texts": count,
                "megabytes": round(path.stat().st_size / 1e6, 1),
                "loop": {name: round(median(times[name] for times in loops), 1) for name in loops[0]},
                "bulk": sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2],
            }
            if with_server:
                figures["score"] = score(path, folder / "score.csv", cores)
            sizes.append(figures)
            path.unlink()
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "cores": cores, "sizes": sizes}


def _texts(data: Path) -> list[str]:
    try:
        with data.open(newline="", encoding="utf-8") as file:
            texts = [row["text"] for row in csv.DictReader(file, restval="")]
    except KeyError as error:
        raise BenchmarkError(f"{data} has no column 'text'. Expected Kaggle's Tweets.csv.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{data} is not CSV in UTF-8: {error}.") from error
    if not texts:
        raise BenchmarkError(f"{data} has no rows. Expected Kaggle's Tweets.csv.")
    return texts


def _write(path: Path, texts: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


def loop(model: Path, path: Path, processes: int) -> dict[str, float]:
    """Classify the texts of a file in concurrent processes, each of which has the model and nothing else.

    Args:
        model: an archive's model, unpacked.
        path: the file.
        processes: the number of processes.

    Returns:
        Microseconds of each process for a text, in the tokenizer and in the engine.

    Raises:
        BenchmarkError: a process has failed, or it was killed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes, timeout=TIMEOUT_S), context.Queue()
    started = [
        context.Process(target=_loop, args=(model, path, processes, i, barrier, results)) for i in range(processes)
    ]
    try:
        for process in started:
            process.start()
        times = [_result(results, started) for _ in started]
    finally:
        # After an error or Ctrl-C, the processes would wait for each other.
        for child in multiprocessing.active_children():
            child.terminate()
            child.join()
    texts = sum(count for count, _, _ in times)
    return {
        "tokenizer_us": round(1e6 * sum(tokenizer_s for _, tokenizer_s, _ in times) / texts, 1),
        "engine_us": round(1e6 * sum(engine_s for _, _, engine_s in times) / texts, 1),
    }


def _result(results: Any, processes: Sequence[SpawnProcess]) -> tuple[int, float, float]:
    """Wait for the next result of `_loop`.

    Raises:
        BenchmarkError: a process has failed, or it was killed, so that the others wait for it.
    """
    while True:
        with suppress(queue.Empty):
            result: tuple[int, float, float] = results.get(timeout=CHECK_S)
            return result
        if lost := [process.exitcode for process in processes if process.exitcode]:
            raise BenchmarkError(f"A process of the loop around the model ended with {lost[0]}.")


def _loop(model: Path, path: Path, processes: int, index: int, barrier: Barrier, results: Any) -> None:
    give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
    classifier = TextClassifier.load_archived(model, threads=1)
    classifier.warm_up()
    with path.open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in islice(csv.DictReader(file), index, LOOP_TEXTS, processes)]
    tokenizer_s = engine_s = 0.0
    barrier.wait()
    for begin in range(0, len(texts), BATCH_TEXTS):
        started = time.perf_counter()
        ids = [classifier.ids(text) for text in texts[begin : begin + BATCH_TEXTS]]
        tokenized = time.perf_counter()
        classifier.probabilities(ids)
        tokenizer_s += tokenized - started
        engine_s += time.perf_counter() - tokenized
    results.put((len(texts), tokenizer_s, engine_s))


def bulk(path: Path, output: Path, archive: Path) -> dict[str, Any]:
    """Classify the texts of a file by `python -m bulk`.

    Returns:
        The seconds of the whole command, the processor seconds of all its processes, and the memory of the starting
        process and of the largest worker in MB: the maximum, and the maximum in each quarter of the run.

    Raises:
        BenchmarkError: the command has failed.
    """
    python = ROOT / ".venv-bulk" / "bin" / "python"
    files = ["--input", str(path), "--output", str(output), "--archive", str(archive)]
    command = [str(python), "-m", "bulk", *files, "--json"]
    with _timed() as figures, psutil.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        samples = _Samples(process)
        try:
            answer, _ = process.communicate()
        finally:
            if process.poll() is None:  # after Ctrl-C
                process.terminate()
            samples.end()
    if process.returncode:
        raise BenchmarkError(f"python -m bulk ended with {process.returncode}.")
    summary = json.loads(answer)
    return figures | samples.figures() | {"engine_ms": summary["engine_ms"], "tokenizer_ms": summary["tokenizer_ms"]}


def score(path: Path, output: Path, cores: int) -> dict[str, Any]:
    """Classify the texts of a file by `sentiment score`, with a server that has a worker for each core.

    Returns:
        The seconds of the command, without the start of the server.

    Raises:
        BenchmarkError: the server does not start, or the command has failed.
    """
    log = Path(tempfile.gettempdir(), "benchmarks.log")
    command = [sys.executable, "-m", "sentiment", "score", str(path), "--output", str(output), "--overwrite"]
    with running(torchserve(ROOT / ".venv", CONFIG, cores), log), _timed() as figures:
        result = subprocess.run([*command, "--connections", str(CONNECTIONS)], cwd=ROOT / "client", check=False)
    if result.returncode:
        raise BenchmarkError(f"sentiment score ended with {result.returncode}.")
    return figures


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Measure the seconds of a block, and the processor seconds of the processes that end in it."""
    figures: dict[str, float] = {}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    yield figures
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["seconds"] = round(time.perf_counter() - started, 2)
    figures["processor_seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


class _Samples:
    """The memory of a process and of its largest child process, measured at regular intervals."""

    def __init__(self, process: psutil.Popen) -> None:
        self._process = process
        self._samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()

    def end(self) -> None:
        """End the measurements."""
        self._ended.set()
        self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Return the maxima in MB, and the maxima of the largest worker in each quarter of the run."""
        workers = [worker for _, worker in self._samples]
        quarters = [workers[len(workers) * part // 4 : len(workers) * (part + 1) // 4] for part in range(4)]
        return {
            "starter_megabytes": max((starter for starter, _ in self._samples), default=0.0),
            "worker_megabytes": max(workers, default=0.0),
            "worker_megabytes_by_quarter": [max(quarter, default=0.0) for quarter in quarters],
        }

    def _measure(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            with suppress(psutil.NoSuchProcess):
                children = [child.memory_info().rss for child in self._process.children(recursive=True)]
                starter = self._process.memory_info().rss
                self._samples.append((round(starter / 1e6, 1), round(max(children, default=0) / 1e6, 1)))


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """Return the guide's text with the table made again.

    Raises:
        ValueError: the page does not have the table's comments exactly once.
    """
    return with_text_between(page, BEGIN, END, table(results))


def table(results: Mapping[str, Any]) -> str:
    """Return the table of the results, in Markdown."""
    cores, sizes = results["cores"], results["sizes"]
    rows: list[list[str]] = [
        [f"texts per second and core, on {cores} cores", *(f"{size['texts']:,} texts" for size in sizes)],
        ["---"] * (len(sizes) + 1),
        ["a loop around the engine, tokens given", *(f"{_engine(size):,.0f}" for size in sizes)],
        ["a loop around tokenizer and engine", *(f"{_model(size):,.0f}" for size in sizes)],
        ["**`python -m bulk`**, the whole command", *(f"{_rate(size, 'bulk', cores):,.0f}" for size in sizes)],
        ["`sentiment score` with one server", *(_score(size, cores) for size in sizes)],
        [
            "bulk against the engine's loop (goal: 85 %)",
            *(_share(_rate(size, "bulk", cores) / _engine(size)) for size in sizes),
        ],
        ["bulk against tokenizer and engine", *(_share(_rate(size, "bulk", cores) / _model(size)) for size in sizes)],
        ["bulk: share of the run in the engine", *(_share(_engine_share(size, cores)) for size in sizes)],
        ["bulk: seconds, and processor seconds", *(_seconds(size["bulk"]) for size in sizes)],
        ["bulk: largest worker, MB", *(f"{size['bulk']['worker_megabytes']:.0f}" for size in sizes)],
        ["in each quarter of the run, MB", *(_quarters(size["bulk"]) for size in sizes)],
        ["bulk: starting process, MB", *(f"{size['bulk']['starter_megabytes']:.0f}" for size in sizes)],
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.append("")
    lines.append(f"{results['date']}.{_marginal(results)}")
    return "\n".join(lines)


def _engine(size: Mapping[str, Any]) -> float:
    return 1e6 / float(size["loop"]["engine_us"])


def _model(size: Mapping[str, Any]) -> float:
    return 1e6 / float(size["loop"]["engine_us"] + size["loop"]["tokenizer_us"])


def _rate(size: Mapping[str, Any], side: str, cores: int) -> float:
    return float(size["texts"] / size[side]["seconds"] / cores)


def _engine_share(size: Mapping[str, Any], cores: int) -> float:
    """Return the share of a run that its processes spend in the engine; the machine's speed does not change it."""
    return float(size["bulk"]["engine_ms"] / 1e3 / size["bulk"]["seconds"] / cores)


def _score(size: Mapping[str, Any], cores: int) -> str:
    return f"{_rate(size, 'score', cores):,.0f}" if "score" in size else "not measured"


def _share(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def _seconds(bulk_figures: Mapping[str, Any]) -> str:
    return f"{bulk_figures['seconds']:.1f}, {bulk_figures['processor_seconds']:.1f}"


def _quarters(bulk_figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{megabytes:.0f}" for megabytes in bulk_figures["worker_megabytes_by_quarter"])


def _marginal(results: Mapping[str, Any]) -> str:
    """Return a sentence about the rate between the smallest and the largest size, which excludes the start."""
    first, last = results["sizes"][0], results["sizes"][-1]
    if first is last:
        return ""
    seconds = last["bulk"]["seconds"] - first["bulk"]["seconds"]
    rate = (last["texts"] - first["texts"]) / seconds / results["cores"]
    shares = [_share(rate / of(last)) for of in (_engine, _model)]
    return (
        f" Between the two sizes, without the start of the command: {rate:,.0f} texts per second and core, {shares[0]} "
        f"of the engine's loop and {shares[1]} of the loop around tokenizer and engine."
    )


if __name__ == "__main__":
    sys.exit(main())
