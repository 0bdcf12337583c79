"""Classify the texts of a file.

Each text is sent once. The results are appended to a journal beside the output as they arrive. After the last result,
the rows and their results are written to the output. If a run is interrupted, the same command continues from the
journal, and writes the same output. For standard input or output, see `sentiment.stream`.
"""

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

from sentiment.columns import added
from sentiment.errors import InputError, RefusedError
from sentiment.inference import MAX_TEXTS, InferenceClient, Prediction, split
from sentiment.journal import Journal, Result, sync
from sentiment.tables import Source, Table, check_added, check_copy, open_table

TEXTS_BESIDE_LIVE_TRAFFIC = 8
"""Default number of texts in a request, small so that other requests to the server stay fast.

Latency of a single request beside a run, relative to an idle server: 1.6 times (median) beside one connection with 8
texts; 2.4 times (median) and 5 times (99th percentile) beside one connection with 64 texts; 60 times and more beside 8
connections with 64 texts. The throughput with 8 texts is 90 % of the throughput with 64 texts."""
REQUESTS_AHEAD = 2
"""Requests per connection that are pending or wait to be written: a slow request does not block the others."""


@dataclass(frozen=True)
class Summary:
    """Summary of a run."""

    rows: int
    errors: int
    """Number of rows that have an error instead of a prediction."""

    model_versions: tuple[str, ...]
    """The versions that answered: several if the default version changed during the run."""


@dataclass(frozen=True)
class Run:
    """Settings of a run: input, server, and how the results are reported and stored."""

    source: Source
    client: InferenceClient
    """The client that sends the texts. It is closed if the run fails."""

    server: str
    """Identifies the server and the model. A journal of another server or model is refused."""

    progress: Callable[[int, int | None], None]
    """Function called with the number of rows done and the number of all rows, or None if the latter is unknown."""

    say: Callable[[str], None]
    """Function that shows a message to the user."""

    scores: bool = False
    """Whether to add a column with the probability of each label."""

    prefix: str = ""
    """Prefix of the names of the added columns."""

    max_texts: int = MAX_TEXTS
    """Maximum number of texts in one request."""

    journal: Path | None = None
    """The journal's file; None for the default: beside the output, where a later run continues from it."""


def score(run: Run, output: Path, *, overwrite: bool) -> Summary:
    """Write a copy of a file with the columns of `sentiment.columns`.

    Args:
        run: the settings of the run.
        output: the file to write.
        overwrite: replace the output if it exists.

    Raises:
        InputError: the input is not valid in its format, the output exists, or the journal belongs to another run.
        ClientError: a request failed, and not because of its texts. The journal is kept.
        OSError: a file cannot be read or written. The journal is kept.
    """
    source = run.source
    table = open_table(source)
    compress = check_output(source, output, overwrite=overwrite)
    header = _header(run)
    rows = table.check()
    with Journal(run.journal or output.with_name(f"{output.name}.journal"), header) as journal:
        if journal.rows:
            run.say(f"Continuing after {journal.rows:,} of {rows:,} rows.")
        try:
            _ask(run, table, journal, rows)
        except BaseException:
            if journal.rows and run.journal is None:
                stored = f"{journal.rows:,} of {rows:,} rows are done and stored in {journal.path}."
                run.say(f"{stored} Run the same command again to continue.")
            elif journal.rows:
                run.say(
                    f"{journal.rows:,} of {rows:,} rows were done; their results are lost, because - has no journal."
                )
            else:
                run.say(f"0 of {rows:,} rows are done.")
            raise
        if _header(run) != header:
            raise InputError(f"{source.name} changed during the run. Delete {journal.path} to start again.")
        partial = output.with_name(f"{output.name}.partial")
        columns = added(journal.results(), run.prefix)
        check_added(source, table.names, columns)
        try:
            table.write(partial, columns, journal.results(), compress=compress)
            sync(partial)
            partial.replace(output)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        journal.remove()
    return Summary(columns.rows, columns.errors, columns.model_versions)


def check_output(source: Source, output: Path, *, overwrite: bool) -> bool:
    """Check that the output may be written; returns whether it is compressed by gzip.

    Args:
        source: the input.
        output: the file to write.
        overwrite: allow the output to exist, unless it is the input.

    Raises:
        InputError: the output is a folder, its ending is that of another format than the input's, or it exists.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder. Expected a file name.")
    compress = check_copy(source, output.name)
    if output.exists() and (not overwrite or (source.stream is None and output.samefile(source.path))):
        raise InputError(f"{output} already exists. To replace it, use --overwrite; the input cannot be replaced.")
    return compress


def score_whole_streams(
    run: Run, stdin: IO[bytes] | None, output: Path | None, stdout: IO[bytes], *, overwrite: bool
) -> Summary:
    """`score` for Parquet on standard input or output. Parquet can only be read and written as a whole file.

    Args:
        run: the settings of the run.
        stdin: the input stream; None to read the source's path.
        output: the file to write; None to write to `stdout`.
        stdout: the output stream.
        overwrite: replace the output if it exists.

    Raises:
        InputError, ClientError, OSError: see `score`.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = run.source
        if stdin is not None:
            source = replace(source, path=Path(folder, "input.parquet"))
            with source.path.open("wb") as file:
                shutil.copyfileobj(stdin, file)
        run = replace(run, source=source, journal=Path(folder, "journal"))
        target = output or Path(folder, "output.parquet")
        summary = score(run, target, overwrite=overwrite)
        if output is None:
            with target.open("rb") as file:
                shutil.copyfileobj(file, stdout)
            stdout.flush()
    return summary


def _header(run: Run) -> dict[str, object]:
    source = run.source
    status = source.path.stat()
    return {
        "input": source.path.name,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "text column": source.text_column,
        "server": run.server,
        "format": " ".join(map(repr, vars(source.format).values())),
        "scores": run.scores,
    }


def _ask(run: Run, table: Table, journal: Journal, rows: int) -> None:
    """Send the rows that are not in the journal, in concurrent requests. Append the results in the rows' order."""
    client = run.client
    checked = False

    def store(answers: Sequence[Prediction | RefusedError]) -> None:
        nonlocal checked
        results = [result_of(answer, run.scores) for answer in answers]
        if not checked and any(result.prediction for result in results):
            check_added(run.source, table.names, added(results, run.prefix))
            checked = True
        journal.append(results)
        run.progress(journal.rows, rows)

    run.progress(journal.rows, rows)
    requests = split(islice(table.texts(), journal.rows, None), run.max_texts)
    under_way: deque[Future[list[Prediction | RefusedError]]] = deque()
    with ThreadPoolExecutor(client.connections) as pool:
        try:
            for texts in requests:
                under_way.append(pool.submit(client.predict_each, texts))
                if len(under_way) == client.connections * REQUESTS_AHEAD:
                    store(under_way.popleft().result())
            while under_way:
                store(under_way.popleft().result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # otherwise this run ends only after all pending requests
            raise


def result_of(answer: Prediction | RefusedError, scores: bool) -> Result:
    """The result of a row.

    Args:
        answer: the prediction or the error for the row's text.
        scores: whether to keep the probability of each class.
    """
    if isinstance(answer, RefusedError):
        return Result(None, str(answer))
    return Result(answer if scores else replace(answer, scores={}), None)
