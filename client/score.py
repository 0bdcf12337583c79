"""Classify the texts of a file: every row is asked once, and its result is kept at once.

Results go into a journal beside the output as they arrive. When all are there, the rows and their results are written
to the output. If a run ends early, the same command continues from the journal, and gives the same file.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from client.errors import InputError, RefusedError
from client.inference import InferenceClient, Prediction, split
from client.journal import Journal, Result, sync
from client.tables import Table, open_table

REQUESTS_AHEAD = 2
"""Requests per connection that are sent, or whose results wait to be written. One slow request stops no other."""


@dataclass(frozen=True)
class Summary:
    rows: int
    errors: int
    """Rows that have an error in the place of a label."""

    model_versions: tuple[str, ...]
    """The versions that answered. There are several if the default changed during the run."""


def score(
    source: Path,
    output: Path,
    text_column: str,
    client: InferenceClient,
    server: str,
    *,
    overwrite: bool,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> Summary:
    """Write a copy of `source` with the columns `label`, `score` and `error`.

    Args:
        client: it is closed if the run fails.
        server: which server and model `client` asks; a journal of another is refused.
        progress: called with the rows that are done and all rows.

    Raises:
        InputError: the input does not have its format, the output exists, or there is a journal of another run.
        ClientError: a request failed for another reason than its text. The journal is kept.
        OSError: a file cannot be read or written. The journal is kept.
    """
    table = open_table(source, text_column)
    if output.is_dir():
        raise InputError(f"{output} is a folder. Expected the name of a file.")
    if output.suffix != source.suffix:
        raise InputError(f"The output has the input's format: name it *{source.suffix}, not {output.name}.")
    if output.exists() and (not overwrite or output.samefile(source)):
        raise InputError(f"{output} exists already. --overwrite replaces it, unless it is the input.")
    header = _header(source, text_column, server)
    rows = table.check()
    with Journal(output.with_name(f"{output.name}.journal"), header) as journal:
        if journal.rows:
            say(f"Continuing after {journal.rows:,} of {rows:,} rows.")
        try:
            _ask(table, client, journal, lambda: progress(journal.rows, rows))
        except BaseException:
            if journal.rows:
                kept = f"{journal.rows:,} of {rows:,} rows are done, and kept in {journal.path}."
                say(f"{kept} The same command continues from there.")
            else:
                say(f"None of {rows:,} rows is done.")
            raise
        if _header(source, text_column, server) != header:
            raise InputError(f"{source} has changed meanwhile. Delete {journal.path} to begin anew.")
        partial = output.with_name(f"{output.name}.partial")
        try:
            table.write(partial, journal.results())
            sync(partial)
            partial.replace(output)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        summary = _summary(journal)
        journal.remove()
    return summary


def _header(source: Path, text_column: str, server: str) -> dict[str, object]:
    status = source.stat()
    return {
        "input": source.name,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "text column": text_column,
        "server": server,
    }


def _ask(table: Table, client: InferenceClient, journal: Journal, progress: Callable[[], None]) -> None:
    """Ask for the rows that the journal does not have yet, with concurrent requests. Results are kept in order."""
    progress()
    requests = split(islice(table.texts(), journal.rows, None))
    under_way: deque[Future[list[Prediction | RefusedError]]] = deque()
    with ThreadPoolExecutor(client.connections) as pool:
        try:
            for texts in requests:
                under_way.append(pool.submit(client.predict_each, texts))
                if len(under_way) == client.connections * REQUESTS_AHEAD:
                    _keep(under_way.popleft().result(), journal, progress)
            while under_way:
                _keep(under_way.popleft().result(), journal, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()  # or the end of this run waits for all answers that are under way
            raise


def _keep(answers: Sequence[Prediction | RefusedError], journal: Journal, progress: Callable[[], None]) -> None:
    journal.append(_result(answer) for answer in answers)
    progress()


def _result(answer: Prediction | RefusedError) -> Result:
    if isinstance(answer, RefusedError):
        return Result(None, None, str(answer), None)
    return Result(answer.label, answer.score, None, answer.model_version)


def _summary(journal: Journal) -> Summary:
    errors = 0
    versions: set[str] = set()
    for result in journal.results():
        errors += result.error is not None
        versions |= {result.model_version} if result.model_version is not None else set()
    return Summary(journal.rows, errors, tuple(sorted(versions)))
