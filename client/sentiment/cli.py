"""The command line `sentiment`: parse the arguments, run the command, and report errors by message and exit code."""

import argparse
import codecs
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, TypeVar

from tqdm import tqdm

from sentiment import __version__, address, inference, management, pods, tables
from sentiment.errors import (
    ClientError,
    InputError,
    NotAuthorizedError,
    OverloadedError,
    RefusedError,
    RolloutError,
    UnreachableError,
)
from sentiment.fields import is_unicode
from sentiment.inference import MAX_CONNECTIONS, MAX_TEXTS, Explanation, InferenceClient, Prediction, split
from sentiment.management import MAX_WORKERS, ManagementClient, archive_name
from sentiment.rollout import (
    MAX_CHANGED,
    Outcome,
    Switch,
    default_restored_on_failure,
    model_option,
    remove,
    reusable_version,
)
from sentiment.sample import TEXTS
from sentiment.score import TEXTS_BESIDE_LIVE_TRAFFIC, Run, Summary, check_output, score, score_whole_streams
from sentiment.status import status
from sentiment.stream import score_stream
from sentiment.terminal import coloured, columns, cut, line_width, one_line
from sentiment.transport import CONNECTIONS

OK, FAILED, UNREACHABLE, ROW_ERRORS, INTERRUPTED, TERMINATED = 0, 1, 3, 4, 130, 143

MAX_LINE_CHARACTERS = 1_000_000
"""Maximum length of a line, so that a file without line breaks cannot fill the memory. The server accepts 20,000."""
MAX_DRAIN_S = 86_400.0
MODELS_TIMEOUT_S = 5.0
"""Timeout of the request for the models' names, if the user gives no name."""
MAX_WORDS = 10
"""Number of tokens that `explain` shows: those with the largest weights."""
MAX_EXPLAINED_LABELS = 4
"""Number of labels for which `explain` shows weights: the most probable ones."""
LABEL_WIDTH, MAX_LABEL_WIDTH, WEIGHT_WIDTH = 8, 12, 7
"""Widths of the output's columns, in columns of a terminal."""

T = TypeVar("T")

_EXIT_CODES = """\
exit codes:
  0    success
  1    error: the request was refused, or the command failed
  2    invalid usage
  3    the server is unreachable or overloaded, after all retries
  4    completed, but some texts have errors
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""

_ENVIRONMENT = """\
environment variables (an empty variable counts as unset):
  SENTIMENT_URL, SENTIMENT_MANAGEMENT_URL, SENTIMENT_MODEL
                   defaults of --url, --management-url and --model. The default
                   model is the server's only model, or the one named sentiment
  SENTIMENT_TOKEN, SENTIMENT_MANAGEMENT_TOKEN
                   bearer tokens for the two addresses. They have no options,
                   because other users can see a command's options
  http_proxy, https_proxy, all_proxy, no_proxy
                   proxies, for servers on other machines only
  REQUESTS_CA_BUNDLE
                   trusted certificates, for https
  NO_COLOR         disable colours
"""

_EXAMPLES = """\
examples:
  sentiment predict 'Thank you for the great flight!'
  sentiment explain 'Lovely crew, but two hours late'
  sentiment score tweets.csv
  sentiment status
  sentiment scale 4
  sentiment rollout sentiment-2.mar
  sentiment --every-pod status
"""


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM was received. It is handled like Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: the command line's arguments; None for those of the process.

    Raises:
        SystemExit: help was requested, or the usage is invalid.
    """
    previous_handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        _prepare_streams()
        parser = _parser()
        options = parser.parse_args(arguments)
        _check_pod_options(parser, options)
        code: int = _on_every_pod(options) if options.every_pod else options.command(options)
        sys.stdout.flush()
        return code
    except (ClientError, OSError, KeyboardInterrupt) as error:
        message, code = _report(error)
        with suppress(OSError):  # standard error may be closed
            if message:
                _say(message)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
        _finish_output()


def _terminate(*_: object) -> NoReturn:
    raise _TerminatedError


def _report(error: BaseException) -> tuple[str, int]:
    """Message and exit code for an error."""
    match error:
        case UnreachableError() | OverloadedError():
            return f"error: {error}", UNREACHABLE
        case ClientError():
            return f"error: {error}", FAILED
        case BrokenPipeError():  # `sentiment predict ... | head`
            return "", FAILED
        case OSError():  # from a file; errors of connections are `ClientError`
            file = f"{error.filename}: " if error.filename else ""
            return f"error: {file}{error.strerror or error}", FAILED
        case _TerminatedError():
            return "Terminated.", TERMINATED
    return "Interrupted.", INTERRUPTED


def _prepare_streams() -> None:
    """Prepare standard output and standard error for any text.

    Raises:
        InputError: standard output is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open
    if sys.stdout is None:
        raise InputError("Standard output is closed.")
    # Characters that the terminal's encoding lacks are escaped. No encoding has unpaired surrogates.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _finish_output() -> None:
    """Flush the output, or discard it if that fails: otherwise Python prints an error when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentiment",
        description="Use and operate a text classifier that TorchServe serves.\n"
        "`sentiment COMMAND --help` shows the options of a command.",
        epilog="\n".join([_EXAMPLES, _ENVIRONMENT, _EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _pod_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "predict", _predict, "classify texts", _PREDICT_EXAMPLES)
    _texts_options(command)
    _inference_options(command)

    command = _add(commands, "explain", _explain, "show the words that the predictions depend on", _EXPLAIN_EXAMPLES)
    _texts_options(command)
    _inference_options(command)

    command = _add(
        commands,
        "score",
        _score,
        "classify the texts of a file, and write a copy with the predictions",
        _SCORE_EXAMPLES,
    )
    command.add_argument(
        "file",
        metavar="FILE",
        help="*.csv, *.tsv, *.jsonl or *.ndjson, optionally with .gz, or *.parquet; - for standard input",
    )
    command.add_argument(
        "--text-column", default="text", metavar="NAME", help="column with the texts; default: %(default)s"
    )
    command.add_argument(
        "--output", metavar="OUT", help="file to write; - for standard output; default: FILE's name with .scored added"
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument("--scores", action="store_true", help="add a column for the probability of each label")
    command.add_argument("--prefix", default="", metavar="P", help="prefix of the names of the added columns")
    command.add_argument(
        "--format",
        choices=tables.FORMATS,
        help="format of FILE, if its name has no known ending; default for standard input: csv",
    )
    command.add_argument(
        "--delimiter", type=_delimiter, metavar="D", help="delimiter of CSV and TSV: one character, or `tab`"
    )
    command.add_argument(
        "--no-quotes",
        dest="quotes",
        action="store_false",
        help="CSV and TSV: quotes have no special meaning; no cell contains a line break or a delimiter",
    )
    command.add_argument(
        "--encoding", type=_encoding, metavar="E", help=f"encoding of the text; default: {tables.DEFAULT_ENCODING}"
    )
    command.add_argument(
        "--connections",
        type=_whole(MAX_CONNECTIONS, "each connection needs a thread"),
        metavar="N",
        help=f"send N concurrent requests of {MAX_TEXTS} texts each, at most {MAX_CONNECTIONS}: faster, but other "
        f"requests to the server wait longer. Default: one request of {TEXTS_BESIDE_LIVE_TRAFFIC} texts at a time",
    )
    _inference_options(command)

    command = _add(commands, "status", _status, "show versions, workers and the model's card", _STATUS_EXAMPLES)
    _url_option(command)
    _management_options(command)

    command = _add(
        commands, "scale", _scale, "set the number of workers, and wait until they are ready", _SCALE_EXAMPLES
    )
    command.add_argument(
        "workers",
        type=_WORKERS,
        metavar="N",
        help="number of workers; one for each core is best, and more than two for each core need --force",
    )
    _force_option(command)
    _version_option(command)
    _management_options(command)

    command = _add(
        commands,
        "register",
        _register,
        "register a model, or another version of a model",
        _REGISTER_EXAMPLES,
        names=("--name", "--model"),
    )
    command.add_argument("archive", metavar="FILE.mar", help="archive in the server's model store")
    command.add_argument(
        "--workers",
        type=_WORKERS,
        metavar="N",
        help="number of workers; default: as many as the default version or another model has",
    )
    _force_option(command)
    _management_options(command)

    command = _add(
        commands,
        "unregister",
        _unregister,
        "remove a version other than the default, or a model",
        _UNREGISTER_EXAMPLES,
    )
    command.add_argument(
        "version", type=_checked(address.name), metavar="V", help="name of the version, as `sentiment status` shows it"
    )
    command.add_argument("--force", action="store_true", help="remove even the last version, and with it the model")
    _drain_option(command)
    _management_options(command)

    command = _add(
        commands,
        "rollout",
        _rollout,
        "replace the default version by a new one, without losing a request",
        _ROLLOUT_EXAMPLES,
    )
    command.add_argument(
        "archive", metavar="NEW.mar", help="archive in the server's model store; its version must be new"
    )
    command.add_argument(
        "--max-changed",
        type=_share,
        default=MAX_CHANGED,
        metavar="SHARE",
        help="maximum share of the sample's texts whose label may change; default: %(default)s",
    )
    command.add_argument("--keep-old", action="store_true", help="keep the old version registered")
    _switch_options(command)

    command = _add(commands, "rollback", _rollback, "go back to another version", _ROLLBACK_EXAMPLES)
    command.add_argument(
        "archive",
        nargs="?",
        metavar="OLD.mar",
        help="archive of that version; without it, the command lists the versions to choose from",
    )
    _switch_options(command)
    return parser


_PREDICT_EXAMPLES = """\
  sentiment predict 'Thank you for the great flight!' 'Late again'
  sentiment predict < tweets.txt
  sentiment predict --file tweets.txt --json | jq .label
"""
_SCORE_EXAMPLES = """\
  sentiment score tweets.csv
  sentiment score tweets.parquet --text-column tweet --output labelled.parquet
  sentiment score export.csv --delimiter ';' --encoding cp1252 --scores
  zcat tweets.csv.gz | sentiment score - > labelled.csv
  tail -f tweets.jsonl | sentiment score - --format jsonl | grep negative

The copy has the columns of FILE, followed by label, score and error. A
multi-label model adds the column labels instead (separated by ; in CSV), a
regression model the column value. If a run is interrupted, OUT.journal keeps
the finished rows, and the same command continues from there. With - for FILE
or OUT, there is no journal: each row is written as soon as its result has
arrived (Parquet: at the end).
"""
_EXPLAIN_EXAMPLES = """\
  sentiment explain 'Lovely crew, but two hours late'

Each number is an occlusion score: the drop in the label's probability, or in the
number of a regression, without the token. Tokens with + support the prediction.
Tokens that begin with xx are special tokens of fastai, such as xxmaj before a
capitalized word.
"""
_STATUS_EXAMPLES = """\
  sentiment status
  sentiment status --json | jq '.versions[].ready'
"""
_SCALE_EXAMPLES = """\
  sentiment scale 4

If N is lower than before, TorchServe ends workers at once. HAProxy sends the
requests that they process to the others.
"""
_REGISTER_EXAMPLES = """\
  sentiment register sentiment-2.mar --workers 1
  sentiment predict --version 2.0 'Late again'
  sentiment register reviews.mar --name reviews
  sentiment predict --model reviews 'A fine film'

A new model gets the batch settings of another model. If a version from this
archive is already registered, it is only scaled to --workers.
"""
_UNREGISTER_EXAMPLES = """\
  sentiment unregister 2.0
  sentiment unregister 1.0 --model reviews --force

The version is removed when its queue is empty. After that, requests that name
this version are answered with status 404.
"""
_ROLLOUT_EXAMPLES = """\
  sentiment rollout sentiment-2.mar

The new version is registered, warmed, and compared with the old one on a
sample. Then it becomes the default. The old version is removed when its queue
is empty.
No request is lost. If any step before the switch fails, the old version stays
the default. If the command is killed, run it again to finish the rollout.
"""
_ROLLBACK_EXAMPLES = """\
  sentiment rollback sentiment.mar
  sentiment rollback

The second command changes nothing: it lists the versions to choose from, because
the server does not know the previous default.
"""


def _add(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
    examples: str,
    names: Sequence[str] = ("--model",),
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=function)
    model = os.environ.get("SENTIMENT_MODEL") or None
    default = model or "sentiment if the server has it, else its only model"
    command.add_argument(
        *names,
        dest="model",
        metavar="NAME",
        type=_checked(address.name),
        default=model,
        help=f"name of the model; default: {default}".replace("%", "%%"),
    )
    command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return command


def _texts_options(command: argparse.ArgumentParser) -> None:
    texts = command.add_mutually_exclusive_group()
    texts.add_argument(
        "text",
        nargs="*",
        default=[],
        metavar="TEXT",
        help="text to classify; without any, or with -: one text per line of standard input",
    )
    texts.add_argument("--file", type=Path, help="file with one text per line")


def _url_option(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("SENTIMENT_URL") or inference.URL
    command.add_argument(
        "--url", type=_checked(address.address), default=url, help="inference address; default: %(default)s"
    )


def _version_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--version", type=_checked(address.name), metavar="V", help="the model's version; default: the server's default"
    )


def _inference_options(command: argparse.ArgumentParser) -> None:
    _url_option(command)
    _version_option(command)


def _management_options(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("SENTIMENT_MANAGEMENT_URL") or management.URL
    command.add_argument(
        "--management-url",
        type=_checked(address.address),
        default=url,
        metavar="URL",
        help="management address; default: %(default)s",
    )


def _switch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sample",
        type=Path,
        metavar="FILE",
        help="file with one text per line, to warm the version and to compare predictions; use texts like those of "
        "your users; default: 30 tweets to an airline",
    )
    _drain_option(command)
    _url_option(command)
    _management_options(command)


def _drain_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--drain",
        type=_seconds,
        metavar="SECONDS",
        help="time between the last queued request and the removal, for the requests that workers still process; "
        "default: the version's response timeout, the maximum time for which a worker may process a request",
    )


def _pod_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on Kubernetes, before COMMAND")
    group.add_argument(
        "--every-pod",
        action="store_true",
        help="run status, scale, register, unregister, rollout or rollback on every pod, through kubectl port-forward; "
        "with --json, print one object for each pod",
    )
    group.add_argument("--namespace", help=f"namespace of the pods; default: {pods.NAMESPACE}")
    group.add_argument("--selector", help=f"label selector of the pods; default: {pods.SELECTOR}")
    group.add_argument("--context", help="context of kubectl's configuration; default: the current one")


def _check_pod_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.every_pod and "management_url" not in options:
        parser.error("--every-pod applies to status, scale, register, unregister, rollout and rollback")
    if not options.every_pod and (options.namespace or options.selector or options.context):
        parser.error("--namespace, --selector and --context require --every-pod")


def _checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """Type of an argument, from a function that raises `InputError`."""

    def checked(value: str) -> T:
        try:
            return check(value)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _whole(most: int, why: str) -> Callable[[str], int]:
    """Type of an argument that is an integer from 1 to `most`."""

    def whole(value: str) -> int:
        number = int(value) if value.isascii() and value.isdecimal() and len(value) <= len(str(most)) else 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to {most}: {why}")
        return number

    return whole


_WORKERS = _whole(MAX_WORKERS, "one worker for each core is best; for many more, start more servers")


def _force_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--force",
        action="store_true",
        help=f"allow more workers than the server has cores and memory for; at most {MAX_WORKERS}",
    )


def _delimiter(value: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(character) != 1 or character in '"\r\n' or not is_unicode(character):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a delimiter: expected one character, such as ; or |, or `tab`"
        )
    return character


def _encoding(value: str) -> str:
    try:
        "".encode(value)
        return codecs.lookup(value).name
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} is not a text encoding, such as cp1252 or utf-16") from None


def _share(value: str) -> float:
    return _number(value, 1, "a number from 0 to 1")


def _seconds(value: str) -> float:
    return _number(value, MAX_DRAIN_S, f"a number of seconds from 0 to {MAX_DRAIN_S:.0f} (one day)")


def _number(value: str, most: float, expected: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{value!r} is not {expected}")
    return number


def _predict(options: argparse.Namespace) -> int:
    errors = 0
    with _inference(options, options.version) as client, _texts(options) as (texts, at_once):
        for part in split(texts, at_once):
            for text, answer in zip(part, client.predict_each(part), strict=True):
                errors += isinstance(answer, RefusedError)
                _print_answer(text, answer, options.json)
            sys.stdout.flush()
    return ROW_ERRORS if errors else OK


def _explain(options: argparse.Namespace) -> int:
    errors = 0
    with _inference(options, options.version) as client, _texts(options) as (texts, _):
        for text in texts:
            answer = client.explain_or_error(text)
            errors += isinstance(answer, RefusedError)
            _print_answer(text, answer, options.json)
            if isinstance(answer, Explanation) and not options.json:
                _print_tokens(text, answer)
            sys.stdout.flush()
    return ROW_ERRORS if errors else OK


def _print_answer(text: str, answer: Prediction | Explanation | RefusedError, as_json: bool) -> None:
    if as_json:
        values = {"error": str(answer)} if isinstance(answer, RefusedError) else answer.to_json()
        print(json.dumps({"text": text} | values))
    elif isinstance(answer, RefusedError):
        print(_line("error", f"{'error':<{LABEL_WIDTH}}  {'':<6}", f"{answer} | {text}"))
    else:
        prediction = answer.prediction if isinstance(answer, Explanation) else answer
        print(_line(prediction.predicted, _shown(prediction), text))


def _shown(prediction: Prediction) -> str:
    """The prediction as text: `negative  0.9776`, `late 0.8112, rude 0.5432` or `3.14`."""
    if prediction.labels:
        scores = {label: prediction.scores.get(label, 0.0) for label in prediction.labels}
        return ", ".join(f"{label} {score:.4f}" for label, score in sorted(scores.items(), key=lambda item: -item[1]))
    if prediction.score is None:
        return f"{prediction.predicted:<{LABEL_WIDTH}}"
    # As wide as the longest label of the model, so that the columns of all texts are aligned.
    width = max(LABEL_WIDTH, min(MAX_LABEL_WIDTH, max(map(columns, map(one_line, prediction.scores)), default=0)))
    padding = " " * (width - columns(one_line(prediction.predicted)))
    return f"{prediction.predicted}{padding}  {prediction.score:.4f}"


def _line(label: str, start: str, text: str) -> str:
    """A line with a prediction and its text, truncated to a terminal's width: the prediction to half of it."""
    width = line_width()
    start, shown = one_line(start), one_line(text)
    if width is None:
        return f"{coloured(start, label)}  {shown}"
    start = cut(start, max(width // 2, LABEL_WIDTH + 8))
    return f"{coloured(start, label)}  {cut(shown, width - columns(start) - 2)}"


def _print_tokens(text: str, explanation: Explanation) -> None:
    """Print a line for each token; for multi-label models, with a column for each label."""
    labels = explanation.labels()
    shown = labels[:MAX_EXPLAINED_LABELS]
    heads = [cut(one_line(label), MAX_LABEL_WIDTH) for label in shown] or [""]
    widths = [max(columns(head), WEIGHT_WIDTH) for head in heads]
    if labels:
        cells = [" " * (width - columns(head)) + head for head, width in zip(heads, widths, strict=True)]
        print("  ".join(["", *cells, *(["…"] if len(labels) > len(shown) else [])]))
    for token in explanation.strongest(MAX_WORDS):
        weights = [(token.weights or {}).get(label, 0.0) for label in shown] or [token.weight]
        cells = [f"{weight:+.4f}".rjust(width) for weight, width in zip(weights, widths, strict=True)]
        span = text[token.start : token.end]
        note = "" if span.lower() == token.token.lower() else f"  ({span or 'no word'})"
        print("  ".join(["", *cells, one_line(token.token + note)]))


@contextmanager
def _texts(options: argparse.Namespace) -> Iterator[tuple[Iterable[str], int]]:
    """The texts to classify, and the maximum number of texts in one request."""
    if options.file is not None:
        with _lines(options.file) as lines:
            yield lines, MAX_TEXTS
    elif options.text in ([], ["-"]):
        if sys.stdin is None:
            raise InputError("Standard input is closed. Give a text as an argument, or a file with --file.")
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(**_TEXTS_FORMAT)
        if sys.stdin.isatty():
            _say("Type a text and press Enter. Ctrl-D ends the input.")
        yield _texts_of(sys.stdin, "standard input"), 1 if sys.stdin.isatty() else MAX_TEXTS
    else:
        yield options.text, MAX_TEXTS


_TEXTS_FORMAT: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n"}
"""UTF-8, with or without a byte-order mark. For a text that is not UTF-8, the server's error is printed in its line."""


@contextmanager
def _lines(path: Path) -> Iterator[Iterable[str]]:
    with path.open(**_TEXTS_FORMAT) as file:
        yield _texts_of(file, str(path))


def _texts_of(file: TextIO, name: str) -> Iterator[str]:
    """One text per line.

    Raises:
        InputError: a line is longer than `MAX_LINE_CHARACTERS`, or the file cannot be read.
    """
    while True:
        try:
            line = file.readline(MAX_LINE_CHARACTERS + 1)
        except OSError as error:
            raise InputError(f"{name}: {error.strerror or error}") from error
        if len(line) > MAX_LINE_CHARACTERS:
            raise InputError(
                f"{name} has a line of more than {MAX_LINE_CHARACTERS:,} characters. Expected one text per line."
            )
        if not line:
            return
        yield line.rstrip("\r\n")


def _score(options: argparse.Namespace) -> int:
    from_stdin = options.file == "-"
    name = "standard input" if from_stdin else options.file
    path = Path(options.file)
    if not from_stdin and not path.name:  # `.` and `/`
        raise InputError(f"{path} is a folder. Expected a file name.")
    kind = options.format or ("csv" if from_stdin else None)
    source = tables.Source(
        path,
        name if from_stdin else str(path),
        tables.format_of(name if from_stdin else str(path), kind, options.delimiter, options.encoding, options.quotes),
        options.text_column,
    )
    if from_stdin or options.output == "-":
        output = None if options.output in (None, "-") else Path(options.output)
    else:
        output = Path(path.with_name(tables.copy_name(path.name)) if options.output is None else options.output)
    started = time.monotonic()
    with (
        _inference(options, options.version, options.connections or 1) as client,
        # No progress bar if the rows are printed to the same terminal.
        tqdm(unit=" rows", disable=not sys.stderr.isatty() or (output is None and sys.stdout.isatty())) as bar,
    ):

        def progress(done: int, rows: int | None) -> None:
            bar.total = rows
            if not bar.n:
                bar.initial = done  # rows of an earlier run must not count for the rate
            bar.update(done - bar.n)

        run = Run(
            source,
            client,
            "/".join(filter(None, [options.url.rstrip("/"), options.model, options.version])),
            progress,
            lambda line: tqdm.write(one_line(line), file=sys.stderr),
            scores=options.scores,
            prefix=options.prefix,
            max_texts=MAX_TEXTS if options.connections else TEXTS_BESIDE_LIVE_TRAFFIC,
        )
        if from_stdin or output is None:
            stdin = _binary_stdin() if from_stdin else None
            summary = _score_streams(run, stdin, output, overwrite=options.overwrite)
        else:
            summary = score(run, output, overwrite=options.overwrite)
    seconds = round(time.monotonic() - started, 2)
    stream = sys.stderr if output is None else sys.stdout
    if options.json:
        print(json.dumps({"output": str(output or "-"), "seconds": seconds} | asdict(summary)), file=stream)
    else:
        versions = f", by version {' and '.join(summary.model_versions)}" if summary.model_versions else ""
        rows = f"{summary.rows:,} rows, {summary.errors:,} with errors"
        print(one_line(f"{output or 'standard output'}: {rows}, in {seconds:g} s{versions}"), file=stream)
    return ROW_ERRORS if summary.errors else OK


def _score_streams(run: Run, stdin: IO[bytes] | None, output: Path | None, *, overwrite: bool) -> Summary:
    """Score from standard input, to standard output, or both.

    Args:
        run: the settings of the run.
        stdin: standard input; None to read the source's file.
        output: the file to write; None for standard output.
        overwrite: replace the output if it exists.
    """
    kind, stdout = run.source.format.kind, sys.stdout.buffer
    if kind not in tables.TEXT_TABLES:
        return score_whole_streams(run, stdin, output, stdout, overwrite=overwrite)
    source = replace(run.source, stream=stdin)
    compress = output is not None and check_output(source, output, overwrite=overwrite)
    rows = tables.open_table(source).check() if stdin is None else None
    return score_stream(
        replace(run, source=source),
        tables.TEXT_TABLES[kind](source),
        rows,
        (lambda: nullcontext(stdout)) if output is None else (lambda: output.open("wb")),
        compress=compress,
    )


def _binary_stdin() -> IO[bytes]:
    """Standard input as an unbuffered binary file.

    Raises:
        InputError: standard input is closed.
    """
    if sys.stdin is None:
        raise InputError("Standard input is closed. Give the name of a file.")
    if sys.stdin.isatty():
        _say("Type or paste a table. Ctrl-D ends the input.")
    # Unbuffered: a read from the buffer waits until it is full, and holds a lock that Python needs to exit.
    return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _status(options: argparse.Namespace) -> int:
    with _management(options) as management_client, _inference(options, None) as client:
        state = status(client, management_client)
    print(json.dumps(state.to_json()) if options.json else state)
    return OK if state.reachable else UNREACHABLE


def _scale(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = client.version(options.version) if options.version else client.default()
        if options.workers > version.settings.workers and not options.force:
            client.check_workers(options.workers, version.name)
        client.scale(options.workers, version.name)
        _print_version(client, version.name, options.json)
    return OK


def _register(options: argparse.Namespace) -> int:
    with _management(options, new=options.archive) as client:
        if not client.is_registered():
            _register_model(client, options)
            return OK
        versions = client.versions()
        default = next(version for version in versions if version.default)
        registered = reusable_version(versions, options.archive)
        if options.workers and not options.force:
            client.check_workers(options.workers, registered.name if registered else None)
        if registered:
            # Do not ask the server to register: it would unpack the archive before it refuses it.
            version = registered.name
            _say(f"Version {version} is already registered from {options.archive}.")
            client.scale(options.workers or registered.settings.workers, version)
        else:
            settings = replace(default.settings, workers=options.workers or default.settings.workers)
            with default_restored_on_failure(client, default, options.archive, _say):
                version = client.register(options.archive, settings)
                client.wait_until_ready(version)
        _print_version(client, version, options.json)
    return OK


def _register_model(client: ManagementClient, options: argparse.Namespace) -> None:
    """Register the first version of a model. If it does not load, remove it."""
    if options.workers and not options.force:
        client.check_workers(options.workers)
    settings = client.settings_for_a_new_model()
    settings = replace(settings, workers=options.workers or settings.workers)
    try:
        version = client.register(options.archive, settings)
        client.wait_until_ready(version)
    except BaseException:
        try:
            if (added := client.added(options.archive, set())) is not None:
                client.unregister(added)
                _say(f"Removed version {added} of {client.model}.")
        except ClientError as error:
            _say(f"Cleanup failed: {error}. `sentiment status` shows the present state.")
        raise
    _print_version(client, version, options.json)
    if not options.json:
        print(one_line(f"To try it: sentiment predict --model {shlex.quote(client.model)} 'A text'"))
        print("After a restart, the server serves only the models of its configuration or command line.")


def _unregister(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = client.version(options.version)
        if len(client.versions()) == 1 and not options.force:
            raise RolloutError(
                f"Version {version.name} is the only version of {client.model}. To remove the model, use --force."
            )
        if version.default and len(client.versions()) > 1:
            raise RolloutError(
                f"Version {version.name} is the default. First make another version the default, with `sentiment "
                "rollback OLD.mar` or `sentiment rollout NEW.mar`."
            )
        removed = remove(client, version, options.drain, _say)
    if options.json:
        print(json.dumps({"version": version.name, "removed": removed}))
    return OK if removed else FAILED


def _print_version(client: ManagementClient, name: str, as_json: bool) -> None:
    version = client.version(name)
    if as_json:
        print(json.dumps({"version": name, "default": version.default, "workers": version.settings.workers}))
    else:
        print(one_line(f"Version {name} of {client.model} ({version.archive}) has {version.workers()}."))


def _rollout(options: argparse.Namespace) -> int:
    def switched(switch: Switch) -> Outcome:
        return switch.rollout(options.archive, options.max_changed, options.keep_old)

    return _switched(options, switched)


def _rollback(options: argparse.Namespace) -> int:
    return _switched(options, lambda switch: switch.rollback(options.archive))


def _switched(options: argparse.Namespace, switched: Callable[[Switch], Outcome]) -> int:
    say = _say if options.json else _print_line
    sample: Sequence[str] = TEXTS
    if options.sample is not None:
        with _lines(options.sample) as lines:
            sample = [line for line in lines if line.strip()]
        if not sample:
            raise InputError(f"{options.sample} contains no text.")

    with _management(options) as client:
        outcome = switched(Switch(client, partial(_inference, options), sample, options.drain, say))
    undo = None
    if outcome.old is not None:
        undo = f"sentiment{' --every-pod' if options.every_pod else ''} rollback"
        undo += f" {shlex.quote(str(outcome.old_archive))}{model_option(client.model)}"
        say(f"To go back to version {outcome.old}: {undo}")
    say("If the server is restarted, it serves the version that its config.properties names.")
    if options.json:
        print(json.dumps(asdict(outcome) | {"rollback": undo}))
    return OK


def _on_every_pod(options: argparse.Namespace) -> int:
    def command(inference_url: str, management_url: str) -> int:
        addresses = {"url": inference_url, "management_url": management_url}
        code: int = options.command(argparse.Namespace(**vars(options) | addresses))
        return code

    deployment = pods.Deployment(
        options.namespace or pods.NAMESPACE, options.selector or pods.SELECTOR, options.context
    )
    return OK if pods.on_every_pod(deployment, command, _say, as_json=options.json) else FAILED


def _inference(options: argparse.Namespace, version: str | None, connections: int = CONNECTIONS) -> InferenceClient:
    token = _token("SENTIMENT_TOKEN")
    if options.model is None:
        with InferenceClient(options.url, token=token, read_timeout_s=MODELS_TIMEOUT_S, retries=0) as client:
            options.model = _only_model(client)
    return InferenceClient(options.url, options.model, version, token=token, connections=connections)


def _management(options: argparse.Namespace, new: str | None = None) -> ManagementClient:
    """A management client for the options' model, or for the server's only model.

    Args:
        options: the command line's options.
        new: the archive to register; it gives the name of a new model.
    """
    token = _token("SENTIMENT_MANAGEMENT_TOKEN")
    if options.model is None:
        with ManagementClient(
            options.management_url, token=token, read_timeout_s=MODELS_TIMEOUT_S, retries=0
        ) as client:
            options.model = _only_model(client, new)
    return ManagementClient(options.management_url, options.model, token=token)


def _only_model(client: InferenceClient | ManagementClient, new: str | None = None) -> str:
    """The default model: the server's only model, or the model named `sentiment`.

    Raises:
        InputError: there are several models, and none is named `sentiment`.
    """
    try:
        names = client.models()
    except NotAuthorizedError:
        raise
    except ClientError:
        # TorchServe without the door lacks this path. If there is no server, the command itself retries.
        return inference.MODEL
    if inference.MODEL in names:
        return inference.MODEL
    if not names:
        return address.name(archive_name(new)) if new else inference.MODEL
    if len(names) > 1 and new:
        raise InputError(
            f"The server has the models {', '.join(names)}. Use --name with one of them to register another version, "
            "or with the name of a new model."
        )
    if len(names) > 1:
        raise InputError(f"The server has the models {', '.join(names)}. Choose one with --model or SENTIMENT_MODEL.")
    return names[0]


def _token(variable: str) -> str | None:
    try:
        return address.token(os.environ.get(variable))
    except InputError as error:
        raise InputError(f"{variable}: {error}") from None


def _print_line(line: str) -> None:
    print(one_line(line), flush=True)


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
