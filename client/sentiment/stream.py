"""Classify the texts of a stream: each row is written once its result and the results of all earlier rows have arrived.

There is no journal. Only a few rows are in memory at a time, so the stream may be endless.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing
from queue import SimpleQueue
from typing import IO, Any

from sentiment.columns import Added, added
from sentiment.errors import ClientError, RefusedError
from sentiment.inference import MAX_CHARACTERS, InferenceClient, Prediction
from sentiment.journal import Result
from sentiment.score import REQUESTS_AHEAD, Run, Summary, result_of
from sentiment.tables import TextTable, check_added

PROBE = "a text"
"""Text to classify if no row has a prediction yet: the columns depend on the kind of the model."""

Row = tuple[Any, str]
"""A row in its table's own form, and the row's text."""

Answers = list[Prediction | RefusedError]


def score_stream(
    run: Run,
    table: TextTable,
    rows: int | None,
    output: Callable[[], AbstractContextManager[IO[bytes]]],
    *,
    compress: bool,
) -> Summary:
    """Write the rows of a table with the columns of `sentiment.columns`, while they are read.

    Args:
        run: the settings of the run.
        table: the input.
        rows: the number of rows; None if unknown.
        output: opens the output; called when the first results have arrived.
        compress: whether to compress the output by gzip.

    Raises:
        InputError: the input is not valid in its format. All rows before the error are written.
        ClientError: a request failed, and not because of its texts. All rows before the error are written.
        OSError: the input cannot be read, or the output cannot be written; `BrokenPipeError` if the reader of the
            output closed it.
    """
    done = errors = 0
    versions: set[str] = set()
    copy: _Copy | None = None
    with ExitStack() as opened, closing(answered(run.client, table.rows(), run.max_texts)) as parts:
        try:
            for part, answers in parts:
                results = [result_of(answer, run.scores) for answer in answers]
                copy = copy or _Copy(run, table, _columns(run, results), opened, output, compress=compress)
                copy.write([row for row, _ in part], results)
                done += len(part)
                part_summary = added(results)
                errors += part_summary.errors
                versions |= set(part_summary.model_versions)
                run.progress(done, rows)
            if copy is None:  # the input has no rows
                _Copy(run, table, added([], run.prefix), opened, output, compress=compress)
        except BrokenPipeError:
            raise
        except BaseException:
            if done:
                run.say(f"{done:,} rows are done and written.")
            raise
    return Summary(done, errors, tuple(sorted(versions)))


class _Copy:
    """The output: its header is written at once, its rows by `write`."""

    def __init__(
        self,
        run: Run,
        table: TextTable,
        columns: Added,
        opened: ExitStack,
        output: Callable[[], AbstractContextManager[IO[bytes]]],
        *,
        compress: bool,
    ) -> None:
        check_added(run.source, table.names, columns)
        self._prefix = run.prefix
        self._names = {column.name for column in columns.columns}
        self._file = opened.enter_context(output())
        self._compress = compress
        self._write = table.writer(opened.enter_context(table.encoded(self._file, compress=compress)), columns)

    def write(self, rows: Sequence[Any], results: Sequence[Result]) -> None:
        """Write rows with their results.

        Raises:
            ClientError: the results need a column that the header lacks.
        """
        predicted = [result for result in results if result.prediction is not None]
        needed = [column.name for column in added(predicted, self._prefix).columns] if predicted else []
        if missing := [name for name in needed if name not in self._names]:
            raise ClientError(
                f"The server's model changed during the run. The new model's results need the column {missing[0]!r}, "
                "which the header lacks. Start another run with the remaining rows."
            )
        for row, result in zip(rows, results, strict=True):
            self._write(row, result)
        if not self._compress:  # flushing would make the compression worse
            self._file.flush()


def _columns(run: Run, results: Sequence[Result]) -> Added:
    if all(result.prediction is None for result in results):
        results = [*results, result_of(run.client.predict(PROBE), run.scores)]
    return added(results, run.prefix)


def answered(
    client: InferenceClient, rows: Iterator[Row], max_texts: int
) -> Generator[tuple[list[Row], Answers], None, None]:
    """Rows with their answers, in the rows' order.

    If a connection is free, a row is sent at once. Otherwise, the rows that arrive share the next request. Therefore
    neither a slow input nor a slow server delays results that have arrived.

    Args:
        client: sends the texts.
        rows: the input.
        max_texts: maximum number of texts in one request.

    Raises:
        ClientError: see `InferenceClient.predict_each`; the client is closed.
        Exception: the exceptions that `rows` raises, after the answers for all earlier rows.
    """
    waiting = _Waiting(max_texts * client.connections * REQUESTS_AHEAD)
    room = threading.Semaphore(client.connections * REQUESTS_AHEAD)
    taking = threading.Lock()
    asked: SimpleQueue[tuple[list[Row], Future[Answers]]] = SimpleQueue()

    def ask() -> None:
        while True:
            future: Future[Answers] = Future()
            room.acquire()
            with taking:  # keeps the parts in order
                part = waiting.take(max_texts)
                asked.put((part, future))
            if not part:
                return
            try:
                future.set_result(client.predict_each([text for _, text in part]))
            except BaseException as error:
                future.set_exception(error)

    # Daemon threads: a thread that waits for a stream without end must not keep the program from ending.
    for work in (lambda: waiting.fill(rows), *[ask] * client.connections):
        threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            part, future = asked.get()
            if not part:
                break
            yield part, future.result()
            room.release()
        if waiting.error is not None:
            raise waiting.error
    except BaseException:
        client.close()  # cancels requests whose answers are not needed any more
        raise
    finally:
        waiting.close()
        room.release(client.connections * REQUESTS_AHEAD)


class _Waiting:
    """Rows that have been read and not yet been sent."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: deque[Row] = deque()
        self._ended = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def fill(self, rows: Iterator[Row]) -> None:
        """Read all rows. An exception is stored in `error`."""
        try:
            for row in rows:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._rows) < self._most or self._ended)
                    if self._ended:
                        return
                    self._rows.append(row)
                    self._changed.notify_all()
        except BaseException as error:
            self.error = error
        self.close()

    def close(self) -> None:
        """Mark the end: no more rows follow."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, most: int) -> list[Row]:
        """The next rows, as many as fit into one request. Waits for the first; no rows mean the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._ended)
            part: list[Row] = []
            characters = 0
            while self._rows and len(part) < most:
                characters += len(self._rows[0][1])
                if part and characters > MAX_CHARACTERS:
                    break
                part.append(self._rows.popleft())
            self._changed.notify_all()
            return part
