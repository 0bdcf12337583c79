"""The command line: arguments to calls, errors to messages and exit codes."""

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
from sentiment.rollout import MAX_CHANGED, Outcome, Switch, left_by_a_registration, of_model, old_stays, remove
from sentiment.sample import TEXTS
from sentiment.score import TEXTS_BESIDE_LIVE_TRAFFIC, Run, Summary, check_output, score, score_whole_streams
from sentiment.status import status
from sentiment.stream import score_stream
from sentiment.terminal import coloured, columns, cut, line_width, one_line
from sentiment.transport import CONNECTIONS

OK, FAILED, UNREACHABLE, ROW_ERRORS, INTERRUPTED, TERMINATED = 0, 1, 3, 4, 130, 143

MAX_LINE_CHARACTERS = 1_000_000
"""Of a line of texts. The server takes 20,000 of a text; a file without line ends must not fill the memory."""
MAX_DRAIN_S = 86_400.0
MODELS_TIMEOUT_S = 5.0
"""How long the server may take to say which models it has, where none is named."""
MAX_WORDS = 10
"""`explain` shows this many tokens of a text: those with the largest weights."""
MAX_EXPLAINED_LABELS = 4
"""For so many labels of a text, the most probable ones."""
LABEL_WIDTH, MAX_LABEL_WIDTH, WEIGHT_WIDTH = 8, 12, 7
"""In columns of a terminal."""

T = TypeVar("T")

_EXIT_CODES = """\
exit codes:
  0    success
  1    the server refused the request, or something failed
  2    wrong usage
  3    the server is not reachable, or overloaded, after all retries
  4    done, but some texts have errors
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
"""

_ENVIRONMENT = """\
environment variables (an empty one counts as not set):
  SENTIMENT_URL, SENTIMENT_MANAGEMENT_URL, SENTIMENT_MODEL
                   defaults of --url, --management-url and --model. Without a model's
                   name, the server's only model is meant, or the one named sentiment
  SENTIMENT_TOKEN, SENTIMENT_MANAGEMENT_TOKEN
                   sent as `Authorization: Bearer` to the two addresses. There is
                   no option for a token: everybody on the machine can see those
  http_proxy, https_proxy, all_proxy, no_proxy
                   proxies, for servers on other machines only
  REQUESTS_CA_BUNDLE
                   certificates to trust, for https
  NO_COLOR         no colours
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
    """SIGTERM, which is handled as Ctrl-C is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Raises:
        SystemExit: help was asked for, or the usage is wrong.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _prepare_streams()
        parser = _parser()
        options = parser.parse_args(arguments)
        _check_pod_options(parser, options)
        code: int = _on_every_pod(options) if options.every_pod else options.command(options)
        sys.stdout.flush()
        return code
    except (ClientError, OSError, KeyboardInterrupt) as error:
        message, code = _told(error)
        with suppress(OSError):  # nobody may be left to read it
            if message:
                _say(message)
        return code
    finally:
        signal.signal(signal.SIGTERM, before)
        _finish_output()


def _terminate(*_: object) -> NoReturn:
    raise _TerminatedError


def _told(error: BaseException) -> tuple[str, int]:
    """An error's message and exit code."""
    match error:
        case UnreachableError() | OverloadedError():
            return f"error: {error}", UNREACHABLE
        case ClientError():
            return f"error: {error}", FAILED
        case BrokenPipeError():  # `sentiment predict ... | head`
            return "", FAILED
        case OSError():  # a file's: for connections there are errors of the client's own
            file = f"{error.filename}: " if error.filename else ""
            return f"error: {file}{error.strerror or error}", FAILED
        case _TerminatedError():
            return "Terminated.", TERMINATED
    return "Interrupted.", INTERRUPTED


def _prepare_streams() -> None:
    """
    Raises:
        InputError: standard output is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    if sys.stdout is None:
        raise InputError("Standard output is closed.")
    # What the terminal's encoding lacks is shown by its code; half a surrogate pair no encoding has.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _finish_output() -> None:
    """Write what is left, or drop it: Python's own attempt at its end would print an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentiment",
        description="Use and operate a text classifier that TorchServe serves.\n`sentiment COMMAND --help` shows more.",
        epilog="\n".join([_EXAMPLES, _ENVIRONMENT, _EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _pod_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "predict", _predict, "classify texts", _PREDICT_EXAMPLES)
    _texts_options(command)
    _inference_options(command)

    command = _add(commands, "explain", _explain, "show which words speak for the predictions", _EXPLAIN_EXAMPLES)
    _texts_options(command)
    _inference_options(command)

    command = _add(commands, "score", _score, "classify the texts of a file, into a copy of it", _SCORE_EXAMPLES)
    command.add_argument(
        "file",
        metavar="FILE",
        help="*.csv, *.tsv, *.jsonl or *.ndjson, also with .gz, or *.parquet; - is standard input",
    )
    command.add_argument("--text-column", default="text", metavar="NAME", help="default: %(default)s")
    command.add_argument(
        "--output", metavar="OUT", help="default: FILE's name with .scored in it, or -, which is standard output"
    )
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument("--scores", action="store_true", help="add a column for the probability of each class")
    command.add_argument("--prefix", default="", metavar="P", help="of the names of the columns that are added")
    command.add_argument(
        "--format", choices=tables.FORMATS, help="if FILE's name does not say it; of standard input, default: csv"
    )
    command.add_argument("--delimiter", type=_delimiter, metavar="D", help="of CSV and TSV: one character, or `tab`")
    command.add_argument(
        "--no-quotes",
        dest="quotes",
        action="store_false",
        help="of CSV and TSV: quotes are characters like others, and no cell has a line end or a delimiter in it",
    )
    command.add_argument("--encoding", type=_encoding, metavar="E", help=f"default: {tables.DEFAULT_ENCODING}")
    command.add_argument(
        "--connections",
        type=_whole(MAX_CONNECTIONS, "each connection has a thread of this program"),
        metavar="N",
        help=f"go faster, with N requests of {MAX_TEXTS} texts at a time, at most {MAX_CONNECTIONS}; other requests to "
        f"the server then wait longer. Default: one request of {TEXTS_BESIDE_LIVE_TRAFFIC} texts at a time",
    )
    _inference_options(command)

    command = _add(commands, "status", _status, "show versions, workers and the model's card", _STATUS_EXAMPLES)
    _url_option(command)
    _management_options(command)

    command = _add(commands, "scale", _scale, "set the number of workers, and wait for them", _SCALE_EXAMPLES)
    command.add_argument(
        "workers", type=_WORKERS, metavar="N", help="one for each core is best; by default at most two for each"
    )
    _force_option(command)
    _version_option(command)
    _management_options(command)

    command = _add(
        commands,
        "register",
        _register,
        "register a model, or another version of one",
        _REGISTER_EXAMPLES,
        names=("--name", "--model"),
    )
    command.add_argument("archive", metavar="FILE.mar", help="an archive in the server's model store")
    command.add_argument(
        "--workers", type=_WORKERS, metavar="N", help="default: as many as the default version, or another model, has"
    )
    _force_option(command)
    _management_options(command)

    command = _add(
        commands,
        "unregister",
        _unregister,
        "remove a version that is not the default, or a model",
        _UNREGISTER_EXAMPLES,
    )
    command.add_argument("version", type=_checked(address.name), metavar="V", help="as `sentiment status` names it")
    command.add_argument("--force", action="store_true", help="the last version, too; then the model is gone")
    _drain_option(command)
    _management_options(command)

    command = _add(commands, "rollout", _rollout, "replace the default version by a new one", _ROLLOUT_EXAMPLES)
    command.add_argument(
        "archive", metavar="NEW.mar", help="an archive in the server's model store, with a version of its own"
    )
    command.add_argument(
        "--max-changed",
        type=_share,
        default=MAX_CHANGED,
        metavar="SHARE",
        help="largest share of the sample's texts whose label may change (default: %(default)s)",
    )
    command.add_argument("--keep-old", action="store_true", help="leave the old version registered")
    _switch_options(command)

    command = _add(commands, "rollback", _rollback, "go back to another version", _ROLLBACK_EXAMPLES)
    command.add_argument(
        "archive",
        nargs="?",
        metavar="OLD.mar",
        help="the archive of that version; without it, the versions to choose from are named",
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

The copy has the columns label, score and error after the file's own columns. (A
model with several labels for a text adds labels, in CSV with ; between them; a
regression adds value.) If a run is interrupted, the rows that are done stay in
OUT.journal. The same command continues from there. With - for FILE or OUT
there is no journal: each row is written as soon as its result is there (Parquet
at the end).
"""
_EXPLAIN_EXAMPLES = """\
  sentiment explain 'Lovely crew, but two hours late'

Each number says how far the label's probability, or the number of a regression,
falls without the token: those with + speak for the prediction. Tokens that begin
with xx are fastai's marks, such as xxmaj before a word with a capital.
"""
_STATUS_EXAMPLES = """\
  sentiment status
  sentiment status --json | jq '.versions[].ready'
"""
_SCALE_EXAMPLES = """\
  sentiment scale 4

If N is lower than before, TorchServe ends workers at once. Requests that they
hold are answered with status 500.
"""
_REGISTER_EXAMPLES = """\
  sentiment register sentiment-2.mar --workers 1
  sentiment predict --version 2.0 'Late again'
  sentiment register reviews.mar --name reviews
  sentiment predict --model reviews 'A fine film'

A new model gets the batch settings of another one. If a version from this archive
is registered already, it is not registered again. With --workers it is scaled.
"""
_UNREGISTER_EXAMPLES = """\
  sentiment unregister 2.0
  sentiment unregister 1.0 --model reviews --force

The version is removed when no request waits for it. Requests that name this
version are then answered with status 404.
"""
_ROLLOUT_EXAMPLES = """\
  sentiment rollout sentiment-2.mar

The new version is registered, warmed and compared with the old one on a sample.
Then it becomes the default. The old version is removed when no request waits
for it. No request is lost. If any step before the switch fails, the old version
stays the default. If the command is killed, run it again: it finishes.
"""
_ROLLBACK_EXAMPLES = """\
  sentiment rollback sentiment.mar
  sentiment rollback

The second one changes nothing: it names the versions to choose from. The server
does not know which one was the default before.
"""


def _add(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    what: str,
    examples: str,
    names: Sequence[str] = ("--model",),
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"examples:\n{examples}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=function)
    model = os.environ.get("SENTIMENT_MODEL") or None
    command.add_argument(
        *names,
        dest="model",
        metavar="NAME",
        type=_checked(address.name),
        default=model,
        help=f"of the model; default: {model or 'the only one'}".replace("%", "%%"),
    )
    command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return command


_DEFAULT = "default: %(default)s"


def _texts_options(command: argparse.ArgumentParser) -> None:
    texts = command.add_mutually_exclusive_group()
    texts.add_argument(
        "text",
        nargs="*",
        default=[],
        metavar="TEXT",
        help="without any, or with -: one text per line of standard input",
    )
    texts.add_argument("--file", type=Path, help="a file with one text per line")


def _url_option(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("SENTIMENT_URL") or inference.URL
    command.add_argument("--url", type=_checked(address.address), default=url, help=_DEFAULT)


def _version_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--version", type=_checked(address.name), metavar="V", help="the model's version; default: the server's default"
    )


def _inference_options(command: argparse.ArgumentParser) -> None:
    _url_option(command)
    _version_option(command)


def _management_options(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("SENTIMENT_MANAGEMENT_URL") or management.URL
    command.add_argument("--management-url", type=_checked(address.address), default=url, metavar="URL", help=_DEFAULT)


def _switch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sample",
        type=Path,
        metavar="FILE",
        help="texts to warm and to compare with, one per line, best such as the model is asked; default: 30 texts "
        "to an airline",
    )
    _drain_option(command)
    _url_option(command)
    _management_options(command)


def _drain_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--drain",
        type=_seconds,
        metavar="SECONDS",
        help="time between the last waiting request and the removal, for the requests that workers still hold; "
        "default: the version's response timeout, the longest time that a worker may hold one",
    )


def _pod_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on Kubernetes, before COMMAND")
    group.add_argument(
        "--every-pod",
        action="store_true",
        help="run status, scale, register, unregister, rollout or rollback on every pod, through kubectl port-forward; "
        "with --json it prints an object for each pod",
    )
    group.add_argument("--namespace", help=f"of the pods; default: {pods.NAMESPACE}")
    group.add_argument("--selector", help=f"the pods' labels; default: {pods.SELECTOR}")
    group.add_argument("--context", help="of kubectl's configuration; default: the current one")


def _check_pod_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.every_pod and "management_url" not in options:
        parser.error("--every-pod goes with status, scale, register, unregister, rollout and rollback")
    if not options.every_pod and (options.namespace or options.selector or options.context):
        parser.error("--namespace, --selector and --context need --every-pod")


def _checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """An argument's type, from a function that raises `InputError`."""

    def checked(value: str) -> T:
        try:
            return check(value)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _whole(most: int, why: str) -> Callable[[str], int]:
    """The type of a whole number from 1 to `most`."""

    def whole(value: str) -> int:
        number = int(value) if value.isascii() and value.isdecimal() and len(value) <= len(str(most)) else 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to {most}: {why}")
        return number

    return whole


_WORKERS = _whole(MAX_WORKERS, "one worker for each core is best, and many more need more servers")


def _force_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--force",
        action="store_true",
        help=f"let there be more workers than the server has cores and memory for; at most {MAX_WORKERS}",
    )


def _delimiter(value: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(character) != 1 or character in '"\r\n' or not is_unicode(character):
        raise argparse.ArgumentTypeError(f"{value!r} is not one character, such as ; or |, and not `tab`")
    return character


def _encoding(value: str) -> str:
    try:
        "".encode(value)
        return codecs.lookup(value).name
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} is not an encoding of text, such as cp1252 or utf-16") from None


def _share(value: str) -> float:
    return _number(value, 1, "a number from 0 to 1")


def _seconds(value: str) -> float:
    return _number(value, MAX_DRAIN_S, f"a number of seconds from 0 to {MAX_DRAIN_S:.0f}, a day")


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
    """What is predicted, and how probable it is: `negative  0.9776`, `late 0.8112, rude 0.5432` or `3.14`."""
    if prediction.labels:
        scores = {label: prediction.scores.get(label, 0.0) for label in prediction.labels}
        return ", ".join(f"{label} {score:.4f}" for label, score in sorted(scores.items(), key=lambda item: -item[1]))
    if prediction.score is None:
        return f"{prediction.predicted:<{LABEL_WIDTH}}"
    # As wide as the longest label that there is: one column for all texts.
    width = max(LABEL_WIDTH, min(MAX_LABEL_WIDTH, max(map(columns, map(one_line, prediction.scores)), default=0)))
    padding = " " * (width - columns(one_line(prediction.predicted)))
    return f"{prediction.predicted}{padding}  {prediction.score:.4f}"


def _line(label: str, start: str, text: str) -> str:
    """What is predicted, then the text. On a terminal both fit into its width; what is predicted may have half."""
    width = line_width()
    start, shown = one_line(start), one_line(text)
    if width is None:
        return f"{coloured(start, label)}  {shown}"
    start = cut(start, max(width // 2, LABEL_WIDTH + 8))
    return f"{coloured(start, label)}  {cut(shown, width - columns(start) - 2)}"


def _print_tokens(text: str, explanation: Explanation) -> None:
    """A line for each token, with a column for each label if there can be several."""
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
        stands_for = text[token.start : token.end]
        beside = "" if stands_for.lower() == token.token.lower() else f"  ({stands_for or 'no word'})"
        print("  ".join(["", *cells, one_line(token.token + beside)]))


@contextmanager
def _texts(options: argparse.Namespace) -> Iterator[tuple[Iterable[str], int]]:
    """The texts to classify, and how many of them to send in one request."""
    if options.file is not None:
        with _lines(options.file) as lines:
            yield lines, MAX_TEXTS
    elif options.text in ([], ["-"]):
        if sys.stdin is None:
            raise InputError("Standard input is closed. Name a text, or a file by --file.")
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(**_TEXTS_FORMAT)
        if sys.stdin.isatty():
            _say("Type a text and press Enter. Ctrl-D ends.")
        yield _texts_of(sys.stdin, "standard input"), 1 if sys.stdin.isatty() else MAX_TEXTS
    else:
        yield options.text, MAX_TEXTS


_TEXTS_FORMAT: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n"}
"""UTF-8, with or without a byte-order mark. A text that is not UTF-8 gets the server's error, in its own line."""


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
    if not from_stdin and not path.name:  # `.` and `/` have none
        raise InputError(f"{path} is a folder. Expected the name of a file.")
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
        # Rows and a bar on one terminal would be in each other's way.
        tqdm(unit=" rows", disable=not sys.stderr.isatty() or (output is None and sys.stdout.isatty())) as bar,
    ):

        def progress(done: int, rows: int | None) -> None:
            bar.total = rows
            if not bar.n:
                bar.initial = done  # what an earlier run has done does not count for the rate
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
    """
    Args:
        stdin: None: the source is a file.
        output: None: standard output.
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
    """
    Raises:
        InputError: standard input is closed.
    """
    if sys.stdin is None:
        raise InputError("Standard input is closed. Name a file.")
    if sys.stdin.isatty():
        _say("Type or paste a table. Ctrl-D ends.")
    # Without the buffer: who reads from that waits until it is full, and holds a lock that the program's end needs.
    return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _status(options: argparse.Namespace) -> int:
    with _management(options) as managed, _inference(options, None) as asked:
        found = status(asked, managed)
    print(json.dumps(found.to_json()) if options.json else found)
    return OK if found.reachable else UNREACHABLE


def _scale(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = client.version(options.version) if options.version else client.default()
        if options.workers > version.settings.workers and not options.force:
            client.check_workers(options.workers, version.name)
        client.scale(options.workers, version.name)
        _tell_version(client, version.name, options.json)
    return OK


def _register(options: argparse.Namespace) -> int:
    with _management(options, new=options.archive) as client:
        if not client.is_registered():
            _register_model(client, options)
            return OK
        versions = client.versions()
        default = next(version for version in versions if version.default)
        registered = left_by_a_registration(versions, options.archive)
        if options.workers and not options.force:
            client.check_workers(options.workers, registered.name if registered else None)
        if registered:
            # Not sent to the server: it would unpack the archive before it refuses it.
            version = registered.name
            _say(f"Version {version} is registered from {options.archive} already.")
            client.scale(options.workers or registered.settings.workers, version)
        else:
            settings = replace(default.settings, workers=options.workers or default.settings.workers)
            with old_stays(client, default, options.archive, _say):
                version = client.register(options.archive, settings)
                client.wait_until_ready(version)
        _tell_version(client, version, options.json)
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
            if (left := client.added(options.archive, set())) is not None:
                client.unregister(left)
                _say(f"Removed version {left} of {client.model}.")
        except ClientError as error:
            _say(f"Could not put everything back: {error}. `sentiment status` shows what is there.")
        raise
    _tell_version(client, version, options.json)
    if not options.json:
        print(one_line(f"Ask it: sentiment predict --model {shlex.quote(client.model)} 'A text'"))
        print("If the server is restarted, it serves only the models that it is started with.")


def _unregister(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = client.version(options.version)
        if len(client.versions()) == 1 and not options.force:
            raise RolloutError(
                f"Version {version.name} is the only one of {client.model}. --force removes it, and with it the model."
            )
        if version.default and len(client.versions()) > 1:
            raise RolloutError(
                f"Version {version.name} is the default. Make another one the default first, by `sentiment "
                f"rollback OLD.mar` or `rollout`."
            )
        removed = remove(client, version, options.drain, _say)
    if options.json:
        print(json.dumps({"version": version.name, "removed": removed}))
    return OK if removed else FAILED


def _tell_version(client: ManagementClient, name: str, as_json: bool) -> None:
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
    say = _say if options.json else _tell
    sample: Sequence[str] = TEXTS
    if options.sample is not None:
        with _lines(options.sample) as lines:
            sample = [line for line in lines if line.strip()]
        if not sample:
            raise InputError(f"{options.sample} has no text.")

    with _management(options) as client:
        outcome = switched(Switch(client, partial(_inference, options), sample, options.drain, say))
    back = None
    if outcome.old is not None:
        back = f"sentiment{' --every-pod' if options.every_pod else ''} rollback"
        back += f" {shlex.quote(str(outcome.old_archive))}{of_model(client.model)}"
        say(f"Back to version {outcome.old}: {back}")
    say("If the server is restarted, it serves the version that its config.properties names.")
    if options.json:
        print(json.dumps(asdict(outcome) | {"rollback": back}))
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
    """
    Args:
        new: the archive of a model that need not be registered.
    """
    token = _token("SENTIMENT_MANAGEMENT_TOKEN")
    if options.model is None:
        with ManagementClient(
            options.management_url, token=token, read_timeout_s=MODELS_TIMEOUT_S, retries=0
        ) as client:
            options.model = _only_model(client, new)
    return ManagementClient(options.management_url, options.model, token=token)


def _only_model(client: InferenceClient | ManagementClient, new: str | None = None) -> str:
    """The model that is meant where none is named: the only one, or that with the name `sentiment`.

    Raises:
        InputError: there are several others.
    """
    try:
        names = client.models()
    except NotAuthorizedError:
        raise
    except ClientError:
        # TorchServe without the door lacks this address. If there is no server, the command itself waits for it.
        return inference.MODEL
    if inference.MODEL in names:
        return inference.MODEL
    if not names:
        return address.name(archive_name(new)) if new else inference.MODEL
    if len(names) > 1 and new:
        raise InputError(
            f"The server has the models {', '.join(names)}. Name one by --name, for another version of it, or name a "
            "new model so."
        )
    if len(names) > 1:
        raise InputError(f"The server has the models {', '.join(names)}. Name one by --model or SENTIMENT_MODEL.")
    return names[0]


def _token(variable: str) -> str | None:
    try:
        return address.token(os.environ.get(variable))
    except InputError as error:
        raise InputError(f"{variable}: {error}") from None


def _tell(line: str) -> None:
    print(one_line(line), flush=True)


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
