"""Classify the texts of a file: every row is asked once, and its result is kept at once.

Results go into a journal beside the output as they arrive. When all are there, the rows and their results are written
to the output. If a run ends early, the same command continues from the journal, and gives the same file.
`sentiment.stream` classifies what comes from standard input, or goes to standard output.
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
"""Texts in a request of a run that leaves room for other requests. Beside one connection with so many, a lone request
took 1.6 times as long as on an idle server (median); with 64 texts 2.4 times, and one in a hundred 5 times; beside 8
connections with 64 texts 60 times and more. In a second it does nine tenths of the rows that it does with 64 texts."""
REQUESTS_AHEAD = 2
"""Requests per connection that are sent, or whose results wait to be written. One slow request stops no other."""


@dataclass(frozen=True)
class Summary:
    rows: int
    errors: int
    """Rows that have an error in the place of a prediction."""

    model_versions: tuple[str, ...]
    """The versions that answered. There are several if the default changed during the run."""


@dataclass(frozen=True)
class Run:
    """What is asked, of whom, and what becomes of the results."""

    source: Source
    client: InferenceClient
    """It is closed if the run fails."""

    server: str
    """Which server and model `client` asks; a journal of another is refused."""

    progress: Callable[[int, int | None], None]
    """Called with the rows that are done and all rows; None if nobody knows how many there are."""

    say: Callable[[str], None]
    scores: bool = False
    """Whether there is a column for the probability of each class."""

    prefix: str = ""
    """Of the results' columns."""

    max_texts: int = MAX_TEXTS
    """In one request."""

    journal: Path | None = None
    """Where results are kept until all are there; None: beside the output, where a later run continues from them."""


def score(run: Run, output: Path, *, overwrite: bool) -> Summary:
    """Write a copy of a file with the columns of `sentiment.columns`.

    Raises:
        InputError: the input does not have its format, the output exists, or there is a journal of another run.
        ClientError: a request failed for another reason than its text. The journal is kept.
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
                kept = f"{journal.rows:,} of {rows:,} rows are done, and kept in {journal.path}."
                run.say(f"{kept} The same command continues from there.")
            elif journal.rows:
                run.say(f"{journal.rows:,} of {rows:,} rows were done, and are not kept: that needs a file, not -.")
            else:
                run.say(f"None of {rows:,} rows is done.")
            raise
        if _header(run) != header:
            raise InputError(f"{source.name} has changed meanwhile. Delete {journal.path} to begin anew.")
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
    """Returns whether the output is compressed by gzip.

    Raises:
        InputError: it is a folder, its ending says another format than the input's, or it exists.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder. Expected the name of a file.")
    compress = check_copy(source, output.name)
    if output.exists() and (not overwrite or (source.stream is None and output.samefile(source.path))):
        raise InputError(f"{output} exists already. --overwrite replaces it, unless it is the input.")
    return compress


def score_whole_streams(
    run: Run, stdin: IO[bytes] | None, output: Path | None, stdout: IO[bytes], *, overwrite: bool
) -> Summary:
    """`score` of Parquet from standard input, to standard output, or both. It can only be read and written as a whole.

    Args:
        stdin: read instead of the source's path, if not None.
        output: None for `stdout`.

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
    """Ask for the rows that the journal does not have yet, with concurrent requests. Results are kept in order."""
    client = run.client
    checked = False

    def keep(answers: Sequence[Prediction | RefusedError]) -> None:
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
                    keep(under_way.popleft().result())
            while under_way:
                keep(under_way.popleft().result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # or the end of this run waits for all answers that are under way
            raise


def result_of(answer: Prediction | RefusedError, scores: bool) -> Result:
    """The result of a row.

    Args:
        scores: keep the probability of each class.
    """
    if isinstance(answer, RefusedError):
        return Result(None, str(answer))
    return Result(answer if scores else replace(answer, scores={}), None)
