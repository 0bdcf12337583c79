"""The command line `python -m bulk`: parses the options, runs, prints the summary, and reports errors in one line."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from bulk.errors import BulkError
from bulk.process import CONTINUE, FAILED, OK, ROW_ERRORS, end, say
from bulk.tables import ENDINGS, TABLES
from bulk.workers import LocalOptions, Workers

if TYPE_CHECKING:
    from bulk.run import Summary

_DESCRIPTION: Final = """\
Classify the texts of many files with a model archive, on Apache Beam.

Each input file is divided into shards. For each shard, the command writes a
copy of its rows with the columns label, score and error, as `sentiment score`
does, and a file with the rows that have errors, if there are any:

  PREFIX-FILE-00000-of-00016.csv
  PREFIX.errors-FILE-00000-of-00016.csv

If a run ends early, start it again with the same options: finished shards are
kept.
"""

_EPILOG: Final = f"""\
formats: {", ".join(ENDINGS)}

All other options are passed to Beam. Without any, the command uses all cores of
this machine. For example:
  --direct_num_workers 2 --direct_running_mode multi_processing
  --runner DataflowRunner --project P --region R --temp_location gs://BUCKET/tmp

exit codes:
  0    success
  1    error: the run has not completed, or its summary cannot be printed
  2    invalid usage
  4    completed, but some rows have errors
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: the command line's arguments; None for those of the process.

    Raises:
        SystemExit: help was requested, or the usage is invalid.
    """
    started = time.monotonic()
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    workers = Workers()
    if (local := LocalOptions.parse(flags)) is not None:
        with suppress(OSError):  # the run starts those that are missing, or reports the error
            workers.provide(local.expected_processes(options.input))
    from bulk import run  # imports Beam, which the help does not need

    if (error := run.flag_error(flags)) is not None:
        parser.error(error)
    run.hide_messages(is_here=local is not None)
    try:
        job = run.prepare(
            options.input,
            options.output,
            options.archive,
            options.format,
            options.text_column,
            options.scores,
            options.prefix,
            local is not None,
            say,
        )
        with _progress_bar() as progress:
            summary = run.run(job, flags, local, workers, progress, _end_without_worker, say)
    except BulkError as failure:
        say(f"error: {failure}")
        return FAILED
    try:
        _print(options, summary, time.monotonic() - started)
        sys.stdout.flush()
    except BrokenPipeError:  # `python -m bulk ... | head -1`
        return FAILED
    except OSError as failure:
        say(f"error: The run has completed, but its summary cannot be printed: {failure.strerror}.")
        return FAILED
    return ROW_ERRORS if summary.errors else OK


def _end_without_worker(reason: str) -> None:
    """End at once after the loss of a worker."""
    end(FAILED, f"error: A worker was lost: {reason}. {CONTINUE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bulk",
        usage="%(prog)s --input GLOB --output PREFIX --archive FILE.mar [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", required=True, metavar="GLOB", help="input files: paths, or gs://BUCKET/...")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="beginning of the output files' paths")
    parser.add_argument("--archive", required=True, metavar="FILE.mar", help="model archive that `make archive` builds")
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column with the texts; default: %(default)s"
    )
    parser.add_argument("--scores", action="store_true", help="add a column for the probability of each label")
    parser.add_argument("--prefix", default="", metavar="P", help="prefix of the names of the added columns")
    parser.add_argument("--format", choices=TABLES, help="format of the input files; default: by their endings")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    with tqdm(unit=" shards", disable=not sys.stderr.isatty()) as bar:

        def progress(written: int, shards: int) -> None:
            bar.total = shards
            bar.update(written - bar.n)

        yield progress


def _print(options: Any, summary: "Summary", seconds: float) -> None:
    """Print the summary of a run."""
    if options.json:
        print(json.dumps({"output": options.output, "seconds": round(seconds, 2)} | asdict(summary)))
        return
    print(f"{summary.rows:,} rows = {summary.scored:,} scored + {summary.errors:,} with errors, in {seconds:.1f} s")
    for title, counts in (("errors", summary.errors_by_type), ("labels", summary.labels)):
        if counts:
            print(f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if summary.earlier_shards:
        print(f"{summary.earlier_shards:,} of {summary.shards:,} shards were written by an earlier run.")
    print(
        f"{summary.tokens:,} tokens; engine {summary.engine_ms:,} ms, tokenizer {summary.tokenizer_ms:,} ms of all "
        "processes"
    )
    print(f"{options.output}-*: {summary.shards:,} file{'s' * (summary.shards != 1)}")
