"""The command line: arguments to calls, errors to messages and exit codes."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from tqdm import tqdm

from client import inference, management
from client.errors import ClientError, InputError, OverloadedError, RefusedError, RolloutError, UnreachableError
from client.inference import InferenceClient, split
from client.management import ManagementClient
from client.rollout import MAX_CHANGED, Outcome, Switch, old_stays, remove
from client.sample import TEXTS
from client.score import score
from client.status import status
from client.terminal import coloured, cut, line_width, one_line
from client.transport import CONNECTIONS

OK, FAILED, UNREACHABLE, ROW_ERRORS, INTERRUPTED = 0, 1, 3, 4, 130

_EXIT_CODES = """\
exit codes:
  0    all right
  1    the server refused, or something failed
  2    wrong usage
  3    the server is not reachable, or overloaded, after all retries
  4    done, but some texts have errors
  130  interrupted
"""

_ENVIRONMENT = """\
environment variables, the first three each in its flag's place:
  SENTIMENT_URL, SENTIMENT_MANAGEMENT_URL, SENTIMENT_MODEL
  SENTIMENT_TOKEN, SENTIMENT_MANAGEMENT_TOKEN
                   sent as `Authorization: Bearer` to either address; without
                   a flag, as everybody on the machine sees arguments
  NO_COLOR         no colours
"""

_EXAMPLES = """\
examples:
  sentiment predict 'Thank you for the great flight!'
  sentiment score tweets.csv
  sentiment status
  sentiment scale 4
  sentiment rollout sentiment-2.mar
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    # What the terminal's encoding lacks is shown by its code; half a surrogate pair no encoding has.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except (UnreachableError, OverloadedError) as error:
        _say(f"error: {error}")
        return UNREACHABLE
    except ClientError as error:
        _say(f"error: {error}")
        return FAILED
    except BrokenPipeError:  # `sentiment predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a file's: for connections there are errors of the client's own
        file = f"{error.filename}: " if error.filename else ""
        _say(f"error: {file}{error.strerror}")
        return FAILED
    except KeyboardInterrupt:
        _say("Interrupted.")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sentiment",
        description="Ask and run a text classifier behind TorchServe.\n`sentiment COMMAND --help` has more.",
        epilog="\n".join([_EXAMPLES, _ENVIRONMENT, _EXIT_CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "predict", _predict, "labels of texts", _PREDICT_EXAMPLES)
    texts = command.add_mutually_exclusive_group()
    texts.add_argument("text", nargs="*", default=[], metavar="TEXT", help="none, or -: standard input, a text a line")
    texts.add_argument("--file", type=Path, help="a text a line")
    _inference_options(command)

    command = _add(commands, "score", _score, "labels of a whole file's texts, as a copy of the file", _SCORE_EXAMPLES)
    command.add_argument("file", type=Path, metavar="FILE", help="*.csv, *.jsonl or *.parquet; of any size")
    command.add_argument("--text-column", default="text", metavar="NAME", help="default: %(default)s")
    command.add_argument("--output", type=Path, metavar="OUT", help="default: FILE's name with .scored in it")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument(
        "--connections",
        type=_positive,
        default=CONNECTIONS,
        metavar="N",
        help="requests at once (default: %(default)s)",
    )
    _inference_options(command)

    command = _add(commands, "status", _status, "what is there, and whether it answers", _STATUS_EXAMPLES)
    _url_option(command)
    _management_options(command)

    command = _add(commands, "scale", _scale, "set the number of workers, and wait for them", _SCALE_EXAMPLES)
    command.add_argument("workers", type=_positive, metavar="N", help="one for each core is best")
    command.add_argument("--version", metavar="V", help="of the model; default: the server's default")
    _management_options(command)

    command = _add(commands, "register", _register, "register a version beside those there are", _REGISTER_EXAMPLES)
    command.add_argument("archive", metavar="FILE.mar", help="in the server's model store")
    command.add_argument("--workers", type=_positive, metavar="N", help="default: as many as the default version has")
    _management_options(command)

    command = _add(
        commands, "unregister", _unregister, "remove a version that is not the default", _UNREGISTER_EXAMPLES
    )
    command.add_argument("version", metavar="V", help="as `sentiment status` names it")
    _drain_option(command)
    _management_options(command)

    command = _add(commands, "rollout", _rollout, "put a new version in the default's place", _ROLLOUT_EXAMPLES)
    command.add_argument("archive", metavar="NEW.mar", help="in the server's model store, with a version of its own")
    command.add_argument(
        "--max-changed",
        type=_share,
        default=MAX_CHANGED,
        metavar="SHARE",
        help="of the sample's labels that may change (default: %(default)s)",
    )
    command.add_argument("--keep-old", action="store_true", help="leave the old version registered")
    _switch_options(command)

    command = _add(commands, "rollback", _rollback, "go back to another version", _ROLLBACK_EXAMPLES)
    command.add_argument(
        "archive", nargs="?", metavar="OLD.mar", help="default: the one other version that is registered"
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

The copy has the columns label, score and error behind the file's own. A run
that ends too early keeps what is done in OUT.journal; the same command goes on.
"""
_STATUS_EXAMPLES = """\
  sentiment status
  sentiment status --json | jq '.versions[].ready'
"""
_SCALE_EXAMPLES = """\
  sentiment scale 4

Fewer workers: what one that goes is at work on is answered with status 500.
"""
_REGISTER_EXAMPLES = """\
  sentiment register sentiment-2.mar --workers 1
  sentiment predict --version 2.0 'Late again'
"""
_UNREGISTER_EXAMPLES = """\
  sentiment unregister 2.0

It waits until nothing waits for the version. Who asks for that very version
afterwards is answered 404.
"""
_ROLLOUT_EXAMPLES = """\
  sentiment rollout sentiment-2.mar

The new version is registered, warmed and compared with the old one on a sample;
then it becomes the default, and the old one is removed when nothing waits for
it. Whatever fails before leaves the old one as it was. No request is lost.
"""
_ROLLBACK_EXAMPLES = """\
  sentiment rollback sentiment.mar
  sentiment rollback
"""


def _add(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], what: str, examples: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"examples:\n{examples}\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=function)
    command.add_argument("--model", default=os.environ.get("SENTIMENT_MODEL", inference.MODEL), help=_DEFAULT)
    command.add_argument("--json", action="store_true", help="for programs")
    return command


_DEFAULT = "default: %(default)s"


def _url_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default=os.environ.get("SENTIMENT_URL", inference.URL), help=_DEFAULT)


def _inference_options(command: argparse.ArgumentParser) -> None:
    _url_option(command)
    command.add_argument("--version", metavar="V", help="of the model; default: the server's default")


def _management_options(command: argparse.ArgumentParser) -> None:
    url = os.environ.get("SENTIMENT_MANAGEMENT_URL", management.URL)
    command.add_argument("--management-url", default=url, metavar="URL", help=_DEFAULT)


def _switch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sample", type=Path, metavar="FILE", help="texts to warm with and to compare by, one a line")
    _drain_option(command)
    _url_option(command)
    _management_options(command)


def _drain_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--drain",
        type=_seconds,
        metavar="SECONDS",
        help="that the version to remove is left for what its workers still hold; default: its response timeout, the "
        "longest that they may hold it",
    )


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number above 0")
    return int(value)


def _share(value: str) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return share


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number of seconds")
    return seconds


def _predict(options: argparse.Namespace) -> int:
    errors = 0
    with _inference(options, options.version) as client, _texts(options) as (texts, at_once):
        for part in split(texts, at_once):
            for text, answer in zip(part, client.predict_each(part), strict=True):
                errors += isinstance(answer, RefusedError)
                if options.json:
                    values = {"error": str(answer)} if isinstance(answer, RefusedError) else asdict(answer)
                    print(json.dumps({"text": text} | values))
                elif isinstance(answer, RefusedError):
                    print(_line("error", "", f"{answer} | {text}"))
                else:
                    print(_line(answer.label, f"{answer.score:.4f}", text))
            sys.stdout.flush()
    return ROW_ERRORS if errors else OK


def _line(label: str, score: str, text: str) -> str:
    start = f"{label:<8}  {score:<6}  "
    width = line_width()
    shown = one_line(text)
    return coloured(start, label) + (shown if width is None else cut(shown, width - len(start)))


@contextmanager
def _texts(options: argparse.Namespace) -> Iterator[tuple[Iterable[str], int]]:
    """The texts that were named, and how many of them to ask for at once."""
    if options.file is not None:
        with _lines(options.file) as lines:
            yield lines, inference.MAX_TEXTS
    elif options.text in ([], ["-"]):
        # What is not UTF-8 gets the server's error, in its own line.
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield (line.rstrip("\r\n") for line in sys.stdin), 1 if sys.stdin.isatty() else inference.MAX_TEXTS
    else:
        yield options.text, inference.MAX_TEXTS


@contextmanager
def _lines(path: Path) -> Iterator[Iterable[str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        yield (line.rstrip("\r\n") for line in file)


def _score(options: argparse.Namespace) -> int:
    source: Path = options.file
    output: Path = options.output or source.with_name(f"{source.stem}.scored{source.suffix}")
    server = "/".join(filter(None, [options.url.rstrip("/"), options.model, options.version]))
    started = time.monotonic()
    with (
        _inference(options, options.version, options.connections) as client,
        tqdm(unit=" rows", disable=not sys.stderr.isatty()) as bar,
    ):

        def progress(done: int, rows: int) -> None:
            bar.total = rows
            if not bar.n:
                bar.initial = done  # what an earlier run has done does not count for the rate
            bar.update(done - bar.n)

        summary = score(
            source,
            output,
            options.text_column,
            client,
            server,
            overwrite=options.overwrite,
            progress=progress,
            say=lambda line: tqdm.write(line, file=sys.stderr),
        )
    seconds = round(time.monotonic() - started, 2)
    if options.json:
        print(json.dumps({"output": str(output), "seconds": seconds} | asdict(summary)))
    else:
        versions = f", by version {' and '.join(summary.model_versions)}" if summary.model_versions else ""
        print(f"{output}: {summary.rows:,} rows, {summary.errors:,} with errors, in {seconds:g} s{versions}")
    return ROW_ERRORS if summary.errors else OK


def _status(options: argparse.Namespace) -> int:
    with _inference(options, None) as asked, _management(options) as managed:
        found = status(asked, managed)
    print(json.dumps(found.to_json()) if options.json else found)
    return OK if found.reachable else UNREACHABLE


def _scale(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = options.version or client.default().name
        client.scale(options.workers, version)
        _tell_version(client, version, options.json)
    return OK


def _register(options: argparse.Namespace) -> int:
    with _management(options) as client:
        default = client.default()
        settings = replace(default.settings, workers=options.workers or default.settings.workers)
        with old_stays(client, default, options.archive, _say):
            version = client.register(options.archive, settings)
            client.wait_until_ready(version)
        _tell_version(client, version, options.json)
    return OK


def _unregister(options: argparse.Namespace) -> int:
    with _management(options) as client:
        version = client.version(options.version)
        if version.default:
            raise RolloutError(
                f"Version {version.name} is the default. Make another one that first, by `sentiment rollback` or "
                f"`rollout`."
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
        print(f"Version {name} of {client.model} ({version.archive}) has {version.workers()}.")


def _rollout(options: argparse.Namespace) -> int:
    def switched(switch: Switch) -> Outcome:
        return switch.rollout(options.archive, options.max_changed, options.keep_old)

    return _switched(options, switched)


def _rollback(options: argparse.Namespace) -> int:
    return _switched(options, lambda switch: switch.rollback(options.archive))


def _switched(options: argparse.Namespace, switched: Callable[[Switch], Outcome]) -> int:
    say = _say if options.json else partial(print, flush=True)
    sample: Sequence[str] = TEXTS
    if options.sample is not None:
        with _lines(options.sample) as lines:
            sample = [line for line in lines if line.strip()]
        if not sample:
            raise InputError(f"{options.sample} has no text.")

    # Whoever ends this program lets it put things back first.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _management(options) as client:
            outcome = switched(Switch(client, partial(_inference, options), sample, options.drain, say))
    finally:
        signal.signal(signal.SIGTERM, before)
    back = "sentiment rollback" if outcome.old_kept else f"sentiment rollback {outcome.old_archive}"
    say(f"Back to version {outcome.old}: {back}")
    say("A server that starts anew serves what its config.properties says.")
    if options.json:
        print(json.dumps(asdict(outcome) | {"rollback": back}))
    return OK


def _inference(options: argparse.Namespace, version: str | None, connections: int = CONNECTIONS) -> InferenceClient:
    token = os.environ.get("SENTIMENT_TOKEN")
    return InferenceClient(options.url, options.model, version, token=token, connections=connections)


def _management(options: argparse.Namespace) -> ManagementClient:
    token = os.environ.get("SENTIMENT_MANAGEMENT_TOKEN")
    return ManagementClient(options.management_url, options.model, token=token)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
