"""`python -m server`: TorchServe and the door before it in the foreground, until Ctrl-C or SIGTERM."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from server import keys, process
from server.door import HOW_TO_GET_IT, Door, haproxy
from server.listener import Listeners
from server.process import StartError
from server.properties import ConfigurationError, Properties
from server.torchserve import TorchServe

DRAIN_TIMEOUT_S = 30
GRACE_S = 5
"""How long a drain goes on answering new requests, if any come. A client that asks again on its connection within that
time is told that the connection closes, rather than finding it closed; `docker stop` leaves 10 s for all. There is no
grace after Ctrl-C, as a person waits."""
POLL_S = 0.1
LEFTOVERS_S = 1
"""How often unpacked archives that nobody uses are looked for."""
DIRECT = (
    "TorchServe serves directly, without HAProxy before it: there is no page, no /docs, no /ready, no Open Inference "
    "Protocol, no keys and no limits against malicious clients, and a stop loses the requests in flight. Do not expose "
    f"it to a network. {HOW_TO_GET_IT}"
)
REPLY_LIMIT = "CLASSIFIER_MAX_BATCH_REPLY_BYTES"
"""The handler's limit for what TorchServe reads from a worker at once."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "--config", type=Path, default=Path("config.properties"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME[=FILE]",
        help="serve FILE of the model store (NAME.mar) under NAME, in place of the configuration's load_models; may be "
        "repeated",
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=DRAIN_TIMEOUT_S,
        metavar="SECONDS",
        help="longest time after a signal to answer the requests that have arrived (default: %(default)s)",
    )
    parser.add_argument(
        "--direct", action="store_true", help="serve without the door, for measurements: TorchServe has few limits"
    )
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # paths may have what the locale has not

    signals = Signals()
    try:
        program = None if options.direct else haproxy()
        properties = Properties.read(options.config)
        if options.model:
            properties = properties.with_models(options.model)
        return serve(properties, program, options.drain_timeout, signals)
    except (ConfigurationError, StartError) as error:
        say(f"error: {error}", sys.stderr)
        return 1


class Signals:
    """The signals that end this program."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set by the first signal."""
        self.force = threading.Event()
        """Set by the second signal."""
        self.by_hand = False
        """Whether the first was Ctrl-C."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup has its program ignore the terminal's end, a script has its background jobs ignore Ctrl-C.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if self.stop.is_set():
            self.force.set()
        else:
            self.by_hand = number == signal.SIGINT
            self.stop.set()


def serve(properties: Properties, program: str | None, drain_timeout_s: float, signals: Signals) -> int:
    """Run TorchServe and the door until there is a signal; returns the exit code.

    Args:
        program: HAProxy; None to serve without the door.

    Raises:
        ConfigurationError: something is missing or in use, or a setting cannot work.
        StartError: TorchServe or the door does not come up.
    """
    process.adopt_orphans()
    properties.check_tokens()
    key_hashes = keys.hashes(os.environ)
    if program is None and key_hashes is not None:
        raise ConfigurationError(
            f"{keys.VARIABLE} is set, but without HAProxy no key would be asked for. {HOW_TO_GET_IT}"
        )
    with contextlib.ExitStack() as ends:
        # Clients that connect while TorchServe starts wait until the door accepts them.
        public = [address for address in properties.addresses if address in properties.public]
        listeners = Listeners(public if program else [], properties.path)
        ends.callback(listeners.close)
        server = TorchServe(properties, environment(properties), behind_door=program is not None)
        ends.callback(say, "Stopped.")
        ends.callback(server.stop)
        for note in server.notes:
            say(note)
        door = None
        if program is None:
            say(DIRECT)
        else:
            door = Door(program, listeners, server.endpoints, server.workspace, key_hashes, say_for_door)
            ends.callback(door.stop)
        return run(properties, server, door, drain_timeout_s, signals)


def run(properties: Properties, server: TorchServe, door: Door | None, drain_timeout_s: float, signals: Signals) -> int:
    """Watch TorchServe and the door until there is a signal, then drain; returns the exit code.

    Raises:
        StartError: TorchServe or the door does not come up, or the door ends by itself again and again.
    """
    while not (server.loaded() and (door is None or door.answers())):
        if door is not None:
            door.start_again()
        if signals.stop.wait(POLL_S):
            return 0
    names = [quote(name, safe="") for name in server.model_names]
    say(welcome(properties, names, has_page=door is not None))
    looked_s = time.monotonic()
    while not signals.stop.wait(POLL_S):
        if not server.running:
            say("error: TorchServe ended by itself; see its output above.", sys.stderr)
            return 1
        if door is not None:
            door.start_again()
        if time.monotonic() - looked_s > LEFTOVERS_S:
            server.remove_leftovers()
            looked_s = time.monotonic()
    if door is not None:
        say("Stopping: answering the requests that have arrived (a second signal stops at once) ...")
        if not door.drain(0 if signals.by_hand else GRACE_S, drain_timeout_s, signals.force):
            say("Some requests were not answered.", sys.stderr)
    return 0


def say(line: str, stream: TextIO | None = None) -> None:
    """Write a line, if it can be written: a full disk for logs, or nobody there to read them, ends no server."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        # What is left in the buffer would be tried again at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_for_door(line: str) -> None:
    """Write a line of the door's."""
    say(f"door: {line}")


def environment(properties: Properties) -> dict[str, str]:
    """The workers' environment: there is a worker for each core, so each has one thread unless the variable says
    otherwise. A worker sends no more bytes than TorchServe reads. If either variable is blank, it counts as not set.

    Raises:
        ConfigurationError: the environment allows replies that TorchServe does not read.
    """
    limit = properties.max_response_size
    defaults = {"OMP_NUM_THREADS": "1", REPLY_LIMIT: str(limit)}
    variables = defaults | {name: value for name, value in os.environ.items() if name not in defaults or value.strip()}
    allowed = variables[REPLY_LIMIT].strip()
    if allowed.isdecimal() and int(allowed) > limit:
        raise ConfigurationError(
            f"{REPLY_LIMIT}={allowed} is above max_response_size={limit} in {properties.path.name}. TorchServe would "
            "end the worker that sends such a reply. Lower the one or raise the other."
        )
    return variables


def welcome(properties: Properties, models: Sequence[str], *, has_page: bool) -> str:
    """The text that is printed when the server is ready.

    Args:
        models: the names of the models, quoted for a URL.
        has_page: whether there is a page for browsers.
    """
    url = properties.inference.url()
    lines = [("page", url)] if has_page else []
    lines += [("inference", f"{url}/predictions/{model}") for model in models]
    lines += [("management", f"{properties.management.url()}/models/{model}") for model in models]
    lines += [("metrics", f"{properties.metrics.url()}/metrics")]
    addresses = "\n".join(f"  {what:<10}  {address}" for what, address in lines)
    return f"""
Ready.
{addresses}

Try it:
  curl {url}/predictions/{models[0]} -H 'Content-Type: text/plain' -d 'A text to classify'

Ctrl-C stops it."""


if __name__ == "__main__":
    sys.exit(main())
