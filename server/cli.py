"""The command line: run TorchServe and the door, an HAProxy in front of it, until Ctrl-C or SIGTERM."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shortened
from urllib.parse import quote

from server import keys, process
from server.door import HOW_TO_GET_IT, Door, haproxy
from server.listener import Listeners
from server.output import Output
from server.process import StartError
from server.properties import ConfigurationError, Properties
from server.torchserve import TorchServe

DRAIN_TIMEOUT_S = 30
GRACE_S = 5
"""The time during which a drain still accepts new requests. The response to such a request announces that the
connection closes, so that a client with a persistent connection does not find it closed. `docker stop` allows 10 s in
total. After Ctrl-C there is no grace period, because a person waits."""
POLL_S = 0.1
LEFTOVERS_S = 1
"""The interval between two searches for unused unpacked archives."""
DIRECT = (
    "TorchServe serves directly, without HAProxy in front of it. There is no web page, no /docs, no /ready, no Open "
    "Inference Protocol, no bearer keys and no protection against malicious clients, and a stop loses the requests in "
    f"flight. Do not expose this server to a network. {HOW_TO_GET_IT}"
)
REPLY_LIMIT = "CLASSIFIER_MAX_BATCH_REPLY_BYTES"
"""The variable that limits the size of the handler's reply for a batch."""
NUMBERS = re.compile("OMP_NUM_THREADS|CLASSIFIER_MAX_.*")
"""The variables that the handler reads as whole numbers above 0."""
NUMBER = re.compile("(?=.*[1-9])[0-9]{1,18}")
"""Such a number, as `handler/limits.py` reads it."""


def main() -> int:
    """Run the server with the options of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve the models until Ctrl-C or SIGTERM: run TorchServe in the foreground, behind HAProxy.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config.properties"),
        metavar="FILE",
        help="TorchServe's configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME[=FILE]",
        help="serve this model instead of those in the configuration's load_models; FILE is an archive in the model "
        "store (default: NAME.mar); may be repeated",
    )
    parser.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=DRAIN_TIMEOUT_S,
        metavar="SECONDS",
        help="maximum time after a signal for answering the requests that have arrived (default: %(default)s)",
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="serve without HAProxy, for measurements only: TorchServe alone has few limits against malicious clients",
    )
    options = parser.parse_args()
    signals = Signals()
    output = Output()
    try:
        program = None if options.direct else haproxy()
        properties = Properties.read(options.config)
        if options.model:
            properties = properties.with_models(options.model)
        return serve(properties, program, options.drain_timeout, signals, output)
    except (ConfigurationError, StartError) as error:
        output.say(f"error: {error}", sys.stderr)
        return 1
    finally:
        output.flush()


class Signals:
    """The signals that stop this program: SIGINT, SIGTERM and SIGHUP."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set by the first signal."""
        self.force = threading.Event()
        """Set by the second signal."""
        self.by_hand = False
        """Whether the first signal was Ctrl-C."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A signal that is ignored already stays ignored: nohup ignores SIGHUP, and shells ignore SIGINT for the
            # background jobs of scripts.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if self.stop.is_set():
            self.force.set()
        else:
            self.by_hand = number == signal.SIGINT
            self.stop.set()


def serve(properties: Properties, program: str | None, drain_timeout_s: float, signals: Signals, output: Output) -> int:
    """Run TorchServe and the door until a signal arrives; returns the exit code.

    Args:
        properties: TorchServe's configuration.
        program: the HAProxy program; None to serve without the door.
        drain_timeout_s: the maximum time after a signal for answering the requests that have arrived.
        signals: the signals that stop the server.
        output: the output for messages.

    Raises:
        ConfigurationError: a file is missing, an address is in use, or a setting cannot be used.
        StartError: TorchServe or the door does not start.
    """
    process.adopt_orphans()
    properties.check_tokens()
    key_hashes = keys.hashes(os.environ)
    if program is None and key_hashes is not None:
        raise ConfigurationError(
            f"{keys.VARIABLE} is set, but without HAProxy the server would accept requests without a key. "
            f"{HOW_TO_GET_IT}"
        )
    with contextlib.ExitStack() as ends:
        # The sockets are opened first: clients that connect while TorchServe starts wait until the door accepts them.
        public = [address for address in properties.addresses if address in properties.public]
        listeners = Listeners(public if program else [], properties.path)
        ends.callback(listeners.close)
        server = TorchServe(properties, environment(properties), behind_door=program is not None)
        ends.callback(output.say, "Stopped.")
        ends.callback(server.stop)
        for note in server.notes:
            output.say(note)
        door = None
        if program is None:
            output.say(DIRECT)
        else:
            door = Door(
                program,
                listeners,
                server.endpoints,
                server.workspace,
                key_hashes,
                lambda line: output.say(f"door: {line}"),
            )
            ends.callback(door.stop)
        return run(properties, server, door, drain_timeout_s, signals, output)


def run(
    properties: Properties,
    server: TorchServe,
    door: Door | None,
    drain_timeout_s: float,
    signals: Signals,
    output: Output,
) -> int:
    """Watch TorchServe and the door until a signal arrives, then drain; returns the exit code.

    Raises:
        StartError: TorchServe or the door does not start, or the door exits repeatedly.
    """
    while not (server.loaded() and (door is None or door.answers())):
        if door is not None:
            door.start_again()
        if signals.stop.wait(POLL_S):
            return 0
    names = [quote(name, safe="") for name in server.model_names]
    output.say(welcome(properties, names, has_page=door is not None))
    last_search_s = time.monotonic()
    while not signals.stop.wait(POLL_S):
        if not server.running:
            output.say("error: TorchServe exited unexpectedly; see its output above.", sys.stderr)
            return 1
        if door is not None:
            door.start_again()
        if time.monotonic() - last_search_s > LEFTOVERS_S:
            server.remove_leftovers()
            last_search_s = time.monotonic()
    if door is not None:
        output.say("Stopping: answering the requests that have arrived (a second signal stops the server at once) ...")
        if not door.drain(0 if signals.by_hand else GRACE_S, drain_timeout_s, signals.force):
            output.say("Some requests were not answered.", sys.stderr)
    return 0


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds of at least 0")
    return seconds


def environment(properties: Properties) -> dict[str, str]:
    """The environment variables of TorchServe and its workers.

    OMP_NUM_THREADS defaults to 1, because there is one worker per core. The handler's limit for replies defaults to the
    size that TorchServe reads. A blank value of either variable counts as not set.

    Raises:
        ConfigurationError: a variable of the handler is not a whole number above 0, or the environment allows larger
            replies than TorchServe reads.
    """
    limit = properties.max_response_size
    defaults = {"OMP_NUM_THREADS": "1", REPLY_LIMIT: str(limit)}
    variables = defaults | {name: value for name, value in os.environ.items() if name not in defaults or value.strip()}
    for name, value in variables.items():
        if NUMBERS.fullmatch(name) and value.strip() and not NUMBER.fullmatch(value.strip()):
            raise ConfigurationError(
                f"The environment variable {name} is {shortened(value)}; expected a whole number above 0 of at most 18 "
                "digits."
            )
    if (allowed := int(variables[REPLY_LIMIT])) > limit:
        raise ConfigurationError(
            f"{REPLY_LIMIT}={allowed} is above max_response_size={limit} in {properties.path.name}. TorchServe kills a "
            f"worker that sends a larger reply. Lower {REPLY_LIMIT} or raise max_response_size."
        )
    return variables


def welcome(properties: Properties, models: Sequence[str], *, has_page: bool) -> str:
    """The text that is printed when the server is ready.

    Args:
        properties: the configuration with the addresses.
        models: the names of the models, quoted for a URL.
        has_page: whether the server has a web page.
    """
    url = properties.inference.url()
    lines = [("page", url)] if has_page else []
    lines += [("inference", f"{url}/predictions/{model}") for model in models]
    lines += [("management", f"{properties.management.url()}/models/{model}") for model in models]
    lines += [("metrics", f"{properties.metrics.url()}/metrics")]
    addresses = "\n".join(f"  {name:<10}  {address}" for name, address in lines)
    return f"""
Ready.
{addresses}

Try it:
  curl {url}/predictions/{models[0]} -H 'Content-Type: text/plain' -d 'A text to classify'

Ctrl-C stops it."""
