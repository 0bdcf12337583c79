"""Classify the texts of a stream: each row is written as soon as its result and those of all rows before it are there.

There is no journal. Few rows are in memory at a time, so the stream may be without an end.
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
"""Asked where no row has a prediction yet: the kind of the model decides which columns there are."""

Row = tuple[Any, str]
"""What a table makes of a row, and the text in it."""

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
        rows: how many there are, if that is known.
        output: opens what is written to, when the first results are there.

    Raises:
        InputError: the input does not have its format. All rows before are written.
        ClientError: a request failed for another reason than its text. All rows before are written.
        OSError: the input cannot be read, or the output not be written; `BrokenPipeError` if its reader has gone.
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
                of_part = added(results)
                errors += of_part.errors
                versions |= set(of_part.model_versions)
                run.progress(done, rows)
            if copy is None:  # there are no rows
                _Copy(run, table, added([], run.prefix), opened, output, compress=compress)
        except BrokenPipeError:
            raise
        except BaseException:
            if done:
                run.say(f"{done:,} rows are done, and written.")
            raise
    return Summary(done, errors, tuple(sorted(versions)))


class _Copy:
    """The output, from its header on."""

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
        """
        Raises:
            ClientError: the results do not fit into the columns.
        """
        predicted = [result for result in results if result.prediction is not None]
        needed = [column.name for column in added(predicted, self._prefix).columns] if predicted else []
        if missing := [name for name in needed if name not in self._names]:
            raise ClientError(
                f"The server has another kind of model now, or one with other labels: its results need the column "
                f"{missing[0]!r}, and the header is written. Begin anew with the rows that are left."
            )
        for row, result in zip(rows, results, strict=True):
            self._write(row, result)
        if not self._compress:  # gzip's blocks are better not cut short
            self._file.flush()


def _columns(run: Run, results: Sequence[Result]) -> Added:
    if all(result.prediction is None for result in results):
        results = [*results, result_of(run.client.predict(PROBE), run.scores)]
    return added(results, run.prefix)


def answered(
    client: InferenceClient, rows: Iterator[Row], max_texts: int
) -> Generator[tuple[list[Row], Answers], None, None]:
    """Rows with their answers, in order.

    A row that arrives while a connection is free is asked for at once. Rows that arrive while all are busy share the
    next request. So neither a slow input nor a slow server holds back results that are there.

    Raises:
        ClientError: see `InferenceClient.predict_each`; the client is closed.
        Exception: what `rows` raises, after the rows before it.
    """
    waiting = _Waiting(max_texts * client.connections * REQUESTS_AHEAD)
    room = threading.Semaphore(client.connections * REQUESTS_AHEAD)
    taking = threading.Lock()
    asked: SimpleQueue[tuple[list[Row], Future[Answers]]] = SimpleQueue()

    def ask() -> None:
        while True:
            future: Future[Answers] = Future()
            room.acquire()
            with taking:  # so that parts are in order
                part = waiting.take(max_texts)
                asked.put((part, future))
            if not part:
                return
            try:
                future.set_result(client.predict_each([text for _, text in part]))
            except BaseException as error:
                future.set_exception(error)

    # Daemons: whoever reads a stream may wait for it for ever, and must not hold up the end of the program.
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
        client.close()  # or requests that nobody waits for would go on
        raise
    finally:
        waiting.close()
        room.release(client.connections * REQUESTS_AHEAD)


class _Waiting:
    """Rows that have been read, and not yet been asked for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: deque[Row] = deque()
        self._ended = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def fill(self, rows: Iterator[Row]) -> None:
        """Read rows to their end. An error is kept."""
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
        """No row comes after those that are here."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, most: int) -> list[Row]:
        """The rows that are here, as many as fit into a request; none, if there are no more."""
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
