"""A run: finds the input files, compares them with an earlier run, runs the pipeline, and counts its results."""

import argparse
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import apache_beam as beam
import grpc
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.runner import PipelineRunner, create_runner

from bulk.archive import read_archive
from bulk.columns import Columns
from bulk.errors import BulkError, bulk_error_in
from bulk.files import (
    PARTIAL,
    check_name,
    delete_file,
    escaped,
    exists,
    is_local,
    matching,
    opened,
    read_file,
    whole_path,
    write_file,
)
from bulk.local import OnLostWorker, local_connections, local_runner
from bulk.local_files import File
from bulk.model import NAMESPACE
from bulk.pipeline import ERRORS, Job, build
from bulk.shards import Shard, Source, shard_count
from bulk.tables import ENDINGS, OUTPUT_ENDINGS, TABLES, Settings
from bulk.workers import LocalOptions, Workers
from handler.limits import Limits

RECORD: Final = ".run.json"
"""Ending of the name of the record, which has the input files and options that determine a run's output."""

CHECKS_AT_ONCE: Final = 16
PROGRESS_INTERVAL_S, REMOTE_PROGRESS_INTERVAL_S = 1.0, 30.0
JOB_SERVER_NOTICE_S: Final = 10.0
"""Time after which a message says that the command waits for a job server."""

_WILDCARD: Final = re.compile(r"[*?\[]")
_ENDINGS: Final = "|".join(map(re.escape, sorted(OUTPUT_ENDINGS)))
_SHARD: Final = re.compile(rf"(.+)-\d{{5,}}-of-\d{{5,}}(?:{_ENDINGS})", re.DOTALL)
"""File name of a shard without the output's prefix, see `Shard.output`. The group is the name of the input file."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Summary:
    """The result of a run, from Beam's counters."""

    rows: int
    """Number of rows read: the sum of `scored` and `errors`."""

    scored: int
    errors: int
    errors_by_type: Mapping[str, int]
    labels: Mapping[str, int]
    shards: int
    earlier_shards: int
    """Number of shards that an earlier run had written. Their rows are counted, too."""

    tokens: int
    engine_ms: int
    tokenizer_ms: int


def prepare(
    pattern: str,
    output: str,
    archive: str,
    kind: str | None,
    text_column: str,
    scores: bool,
    prefix: str,
    is_here: bool,
    say: Say,
) -> Job:
    """Check the archive, the input files and an earlier run's output.

    Args:
        pattern: pattern of the input files' paths.
        output: prefix of the output files' paths.
        archive: path of the archive.
        kind: format of the input files; None for the formats of their endings.
        text_column: column with the texts.
        scores: whether to add a column for the probability of each label.
        prefix: prefix of the names of the added columns.
        is_here: whether the workers are on this machine, where they check the archive at once. On other machines, they
            start after minutes, so the archive is checked before.
        say: shows a message to the user.

    Raises:
        BulkError: a file or a limit is missing or invalid, or the output belongs to another run.
    """
    try:
        limits = Limits.from_environment()
    except ValueError as error:
        raise BulkError(str(error)) from error
    if not output or output.endswith("/") or (is_local(output) and os.path.isdir(output)):
        raise BulkError(f"--output {output!r} is a folder. Expected the beginning of file names, such as out/scored.")
    model, is_this_code = read_archive(archive, with_check=not is_here)
    if not is_this_code:
        say(
            f"warning: {archive} was built with other code than this handler/. A server with this archive may give "
            "other predictions. `make archive` builds it again."
        )
    settings = Settings(text_column, Columns(model.task, scores, prefix))
    if is_local(pattern):
        pattern = re.sub("/+", "/", pattern)  # as in the paths of the files that it matches
    earlier = _earlier(output)
    files = _inputs(pattern, output, earlier["files"])
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        sources = list(pool.map(lambda file: _source(file, pattern, kind, settings), files))
    job = Job(sources, output, model, settings, limits)
    _record(job, files, earlier)
    return job


def run(
    job: Job,
    flags: Sequence[str],
    local: LocalOptions | None,
    workers: Workers,
    progress: Callable[[int, int], None],
    on_lost_worker: OnLostWorker,
    say: Say,
) -> Summary:
    """Run the pipeline of a job, and wait for its end.

    Args:
        job: the job.
        flags: the command line's part for Beam.
        local: the part of `flags` for a run on this machine; None for a run on other machines.
        workers: the worker processes on this machine.
        progress: called with the number of written shards, and of all shards.
        on_lost_worker: see `OnLostWorker`.
        say: shows a message to the user.

    Raises:
        BulkError: an input or an option of Beam is invalid, a file cannot be read or written, or the counts do not
            agree.
    """
    options = PipelineOptions([*flags])
    shards = sum(source.shards for source in job.sources)
    runner: Any = options.view_as(StandardOptions).runner
    if runner == "DataflowRunner" and (paths := [path for path in _paths(job) if is_local(path)]):
        raise BulkError(f"{paths[0]}: the workers of Dataflow cannot reach it. Expected a path such as gs://BUCKET/...")
    if local:
        runner = local_runner(options, local, shards, workers, on_lost_worker)
    pipeline = _pipeline(runner, options)
    build(pipeline, job)
    interval_s = PROGRESS_INTERVAL_S if local else REMOTE_PROGRESS_INTERVAL_S
    try:
        with local_connections() if local else nullcontext(), _progress(job, shards, interval_s, progress):
            result = pipeline.run() if local else _submitted(pipeline, options, say)
            result.wait_until_finish()
        progress(shards, shards)
    except Exception as error:
        if (known := bulk_error_in(error)) is not None:
            raise known from error
        raise
    summary = _summary(result)
    if summary.rows != summary.scored + summary.errors or summary.shards != shards:
        raise BulkError(
            f"The counts do not agree: {summary.rows:,} rows were read, {summary.scored:,} scored, {summary.errors:,} "
            f"have errors; {summary.shards:,} of {shards:,} shards were written. Delete the output files, and run the "
            "command again."
        )
    return summary


def flag_error(flags: Sequence[str]) -> str | None:
    """Return what is wrong with the first invalid option of Beam; None if Beam can read all of them.

    Beam itself would ignore an option that it does not know, and print all its options if a value is invalid.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)  # Beam's only list of its options
    try:
        _, unknown = parser.parse_known_args([*flags])
    except argparse.ArgumentError as error:
        return str(error)
    except Exception as error:  # some of Beam's options check their values themselves, with errors of any type
        names = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
        return f"Beam cannot read the value of {' or '.join(names)}: {error}"
    return f"neither this command nor Beam has the option {unknown[0]}" if unknown else None


def hide_messages(*, is_here: bool) -> None:
    """Hide Beam's messages, except those about a job on other machines."""
    logging.getLogger().setLevel(logging.CRITICAL if is_here else logging.INFO)


def _pipeline(runner: Any, options: PipelineOptions) -> beam.Pipeline:
    """Return an empty pipeline for a runner, or for the name of a runner."""
    if isinstance(runner, str):
        name = runner
        try:
            runner = create_runner(name)
        except Exception as error:  # the name can be that of any class of any package
            raise BulkError(f"--runner {name}: {error}") from error
        if not isinstance(runner, PipelineRunner):
            raise BulkError(f"--runner {name} is no runner of Beam. Expected a name such as DataflowRunner.")
    try:
        return beam.Pipeline(runner=runner, options=options)
    except ValueError as error:  # has a line for each invalid option
        raise BulkError(" ".join(str(error).split())) from error


def _submitted(pipeline: beam.Pipeline, options: PipelineOptions, say: Say) -> Any:
    """Start a job on other machines; return Beam's result.

    Raises:
        BulkError: no job server answers, or the job cannot be started.
    """
    runner = options.view_as(StandardOptions).runner
    portable = options.view_as(PortableOptions)
    endpoint, timeout_s = portable.job_endpoint, portable.job_server_timeout
    notice = f"Waiting for the job server {endpoint} (--job_endpoint), {timeout_s} s at most (--job_server_timeout)."
    timer = threading.Timer(JOB_SERVER_NOTICE_S, say, [notice])
    timer.daemon = True
    if endpoint:
        timer.start()
    try:
        return pipeline.run()
    except grpc.FutureTimeoutError as error:
        raise BulkError(f"--job_endpoint {endpoint}: no job server answers within {timeout_s} s.") from error
    except Exception as error:  # of any type: of Java's installation, of Google's clients, of the job server
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise bulk_error_in(error) or BulkError(f"--runner {runner}: the job cannot be started: {reason}") from error
    finally:
        timer.cancel()


def _paths(job: Job) -> Iterator[str]:
    yield from (job.archive.path, job.output)
    yield from (source.path for source in job.sources)


def _earlier(output: str) -> dict[str, Any]:
    """Return the record of the earlier run with this output; without such a run, a record without input files.

    Raises:
        BulkError: the file is not a record.
    """
    path = output + RECORD
    if not exists(path):
        return {"files": {}}
    try:
        record = json.loads(read_file(path))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise BulkError(f"{path} is not the record of a run. Choose another --output.")
    return record


def _inputs(pattern: str, output: str, names: Collection[str]) -> list[File]:
    """Return the files of a pattern, without those that the earlier run with this output has written.

    Args:
        pattern: the pattern.
        output: prefix of the output files' paths.
        names: names of the earlier run's input files.
    """
    folder = _folder(output)
    files = [
        file
        for file in matching(pattern)
        if not (_is_written(file.path, output, names) and _folder(file.path) == folder)
    ]
    if not files:
        raise BulkError(
            f"No file matches {pattern}. Expected a path, or a pattern such as 'in/*.csv', of files to classify."
        )
    return files


def _source(file: File, pattern: str, kind: str | None, settings: Settings) -> Source:
    kind = kind or ENDINGS.get(os.path.splitext(file.path.lower())[1])
    if kind is None:
        raise BulkError(
            f"The format of {file.path} is unknown. Expected the ending {', '.join(ENDINGS)}, or --format with one of "
            f"{', '.join(TABLES)}."
        )
    table = TABLES[kind](settings)
    with opened(file.path) as content:
        size = table.check(file.path, content, file.size)
    folder = _WILDCARD.split(pattern)[0].rpartition("/")[0]
    name = file.path[len(folder) :].lstrip("/").replace("%", "%25").replace("/", "%2F")
    return Source(file.path, name, kind, file.size, shard_count(size))


def _record(job: Job, files: Sequence[File], earlier: Mapping[str, Any]) -> None:
    """Write down what determines the output. Shards that exist are kept, so they must come from the same run.

    The shards of another prefix can have names that begin with this prefix. They are told apart by the names of the
    input files of this run and of the earlier run.

    Raises:
        BulkError: shards exist that come from another archive, other options, or other input files; or the names of
            shards are too long.
    """
    path = job.output + RECORD
    record: dict[str, Any] = {
        "archive": job.archive.sha256,
        "text column": job.settings.text_column,
        "set of columns": job.columns.names,
        "set of limits": asdict(job.limits),
        "files": {
            source.name: [source.kind, file.size, file.modified_s, source.shards]
            for source, file in zip(job.sources, files, strict=True)
        },
    }
    names = {*record["files"], *earlier["files"]}
    if written := set(_written(job.output, names)):
        _check_earlier(job.output, record, earlier, written)
    for file in matching(f"{escaped(job.output)}*{PARTIAL}"):
        if _is_written(file.path, job.output, names):
            delete_file(file.path)
    write_file(path, json.dumps(record, indent=1).encode())
    for source in job.sources:  # now that the folder exists
        check_name(Shard(source, source.shards - 1, 0, 0).output(job.output + ERRORS, job.table(source).ending))


def _check_earlier(
    output: str, record: Mapping[str, Any], earlier: Mapping[str, Any], written: Collection[str]
) -> None:
    """Compare a run with the record of the run that wrote the shards of some input files.

    Raises:
        BulkError: see `_record`.
    """
    changed = [f"its {name}" for name in record if name != "files" and earlier.get(name) != record[name]]
    changed += [
        f"its input file {name}" for name in sorted(written) if earlier["files"].get(name) != record["files"].get(name)
    ]
    if changed:
        raise BulkError(
            f"The output {output}-* belongs to another run: {changed[0]} is not the same. Choose another "
            "--output, or delete the files of that run."
        )


def _written(output: str, names: Collection[str]) -> list[str]:
    """Return the name of the input file of each written shard, for the shards of these input files."""
    found = [_source_name(file.path, output) for file in matching(f"{escaped(output)}-*-of-*")]
    return [name for name in found if name in names]


def _is_written(path: str, output: str, names: Collection[str]) -> bool:
    """Return whether a run with these input files writes a file of this name, or has begun to write it."""
    whole = whole_path(path)
    is_record = os.path.basename(whole) == os.path.basename(output + RECORD)
    return is_record or any(_source_name(whole, prefix) in names for prefix in (output, output + ERRORS))


def _source_name(path: str, output: str) -> str:
    """Return the name of the input file of a shard; an empty name if the path is not that of a shard.

    Only the file names are compared, because the path of a folder can be spelt in several ways.
    """
    prefix, name = f"{os.path.basename(output)}-", os.path.basename(path)
    match = _SHARD.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return match[1] if match else ""


def _folder(path: str) -> str:
    """Return the folder of a file; a folder of this machine by its absolute path, without symbolic links."""
    folder = os.path.dirname(path)
    return os.path.realpath(folder) if is_local(path) else folder


@contextmanager
def _progress(job: Job, shards: int, interval_s: float, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Report the number of shards that are written, at regular intervals. All runners write them in the same place."""
    names = {source.name for source in job.sources}
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(interval_s):
            with suppress(BulkError):  # object storage may fail to answer once
                progress(len(_written(job.output, names)), shards)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _summary(result: Any) -> Summary:
    counts: Counter[str] = Counter()
    for counter in result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        counts[counter.key.metric.name] += counter.result  # each step has counters of its own

    def named(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): counts[name] for name in sorted(counts) if name.startswith(prefix)}

    return Summary(
        rows=counts["rows"],
        scored=counts["scored"],
        errors=counts["errors"],
        errors_by_type=named("error:"),
        labels=named("label:"),
        shards=counts["shards"],
        earlier_shards=counts["earlier_shards"],
        tokens=counts["tokens"],
        engine_ms=counts["engine_us"] // 1000,
        tokenizer_ms=counts["tokenizer_us"] // 1000,
    )
