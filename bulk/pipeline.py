"""The pipeline: input files are divided into shards, and each shard becomes an output file.

    Files ── Split ──> Shard ── Read ──> Rows ── RunInference ──> ScoredRows ── Write

`Reshuffle` after `Files` and after `Split` spreads files and shards over the workers. The other steps need no shuffle:
a runner fuses them, so that a worker holds the rows of one shard at a time. An element is a whole shard, because Beam
takes CPU time for each element of each step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import RunInference

from bulk.archive import Archive
from bulk.columns import Cells, Columns, error_type
from bulk.files import delete_file, exists, opened, read_file, write_file
from bulk.model import NAMESPACE, Model
from bulk.shards import Rows, ScoredRows, Shard, Source
from bulk.tables import TABLES, Settings, Table
from handler.errors import RequestError
from handler.limits import Limits
from handler.request import Form, Request, checked

ERRORS: Final = ".errors"
"""Added to the output's prefix in the names of the files with the rows that have errors."""


@dataclass(frozen=True)
class Job:
    """All that the workers need to know of a run."""

    sources: Sequence[Source]
    output: str
    """Prefix of the output files' paths."""

    archive: Archive
    settings: Settings
    limits: Limits

    def table(self, source: Source) -> Table:
        """Return the table of a file's format."""
        return TABLES[source.kind](self.settings)

    @property
    def columns(self) -> Columns:
        """The columns of the results."""
        return self.settings.columns


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Add the steps of a job to a pipeline."""
    model = Model(job.archive, job.columns, job.limits)
    _ = (
        pipeline
        | "Files" >> beam.Create(job.sources)
        | "Spread files" >> beam.Reshuffle()
        | "Split" >> beam.ParDo(Split(job))
        | "Spread shards" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(Read(job))
        | "RunInference" >> RunInference(model.with_no_batching())
        | "Write" >> beam.ParDo(Write(job))
    )


class Split(beam.DoFn):
    """Divides a file into shards."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, source: Source) -> Iterator[Shard]:
        """Yield the shards of a file."""
        with opened(source.path) as file:
            yield from self._job.table(source).split(source, file)


class Read(beam.DoFn):
    """Reads and validates the rows of a shard, so that only valid texts reach the model.

    An exception in `RunInference` would end the run. A shard that an earlier run has
    written is only counted.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, shard: Shard) -> Iterator[list[Rows]]:
        """Yield a batch with the rows of the shard; nothing if its output exists."""
        table = self._job.table(shard.source)
        output = shard.output(self._job.output, table.ending)
        if exists(output):
            cells = list(table.cells(read_file(output)))
            _inc("rows", len(cells))
            _inc("earlier_shards", 1)
            _count(cells, self._job.columns)
            return
        with opened(shard.source.path) as file:
            rows = table.read(shard, file)
        _inc("rows", len(rows.texts))
        yield [Rows(shard, rows.rows, [_checked(text, self._job.limits) for text in rows.texts], rows.layout)]


class Write(beam.DoFn):
    """Writes the output file of a shard, and a further file with the rows that have errors."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, scored: ScoredRows) -> None:
        """Write the files. The file with all rows comes last: if it exists, the shard is done."""
        rows, cells = scored.rows, scored.cells
        table = self._job.table(rows.shard.source)
        errors_path = rows.shard.output(self._job.output + ERRORS, table.ending)
        if errors := [index for index, row in enumerate(cells) if error_type(row)]:
            write_file(errors_path, table.written(rows, cells, errors))
        elif exists(errors_path):  # from a run of an earlier version of the input, which did not get further
            delete_file(errors_path)
        content = table.written(rows, cells, range(len(cells)))
        write_file(rows.shard.output(self._job.output, table.ending), content)
        _count(cells, self._job.columns)


def _checked(text: str | RequestError, limits: Limits) -> str | RequestError:
    """Return a text without its byte-order marks, or its error, as for a request with this text."""
    if isinstance(text, RequestError):
        return text
    try:
        return checked(Request((text,), Form.SINGLE), limits).texts[0]
    except RequestError as error:
        return error.with_traceback(None)


def _count(cells: Sequence[Cells], columns: Columns) -> None:
    """Count the rows of a shard by Beam's metrics."""
    errors: dict[str, int] = {}
    labels: dict[str, int] = {}
    for row in cells:
        if kind := error_type(row):
            errors[kind] = errors.get(kind, 0) + 1
        for label in columns.labels_of(row):
            labels[label] = labels.get(label, 0) + 1
    _inc("shards", 1)
    _inc("errors", sum(errors.values()))
    _inc("scored", len(cells) - sum(errors.values()))
    for names, prefix in ((errors, "error"), (labels, "label")):
        for name, count in names.items():
            _inc(f"{prefix}:{name}", count)


def _inc(name: str, count: int) -> None:
    Metrics.counter(NAMESPACE, name).inc(count)
