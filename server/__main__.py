"""`python -m server`: TorchServe in the foreground, until Ctrl-C or SIGTERM."""

import argparse
import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from server.door import Door, haproxy
from server.properties import ConfigurationError, Properties
from server.torchserve import StartError, TorchServe

DRAIN_TIMEOUT_S = 30
REPLY_LIMIT = "CLASSIFIER_MAX_BATCH_REPLY_BYTES"
"""The handler's limit for what TorchServe reads from a worker at once."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "--config", type=Path, default=Path("config.properties"), metavar="FILE", help="default: %(default)s"
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

    stop = threading.Event()
    force = threading.Event()

    def on_signal(*_: object) -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has its program ignore the terminal's end, a script has its background jobs ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        return serve(
            Properties.read(options.config), None if options.direct else haproxy(), options.drain_timeout, stop, force
        )
    except (ConfigurationError, StartError) as error:
        say(f"error: {error}", sys.stderr)
        return 1


def serve(
    properties: Properties, program: str | None, drain_timeout_s: float, stop: threading.Event, force: threading.Event
) -> int:
    """Run TorchServe and the door until `stop` is set; returns the exit code.

    Args:
        program: HAProxy; None to serve without the door.
    """
    server = TorchServe(properties, environment(properties), behind_door=program is not None)
    door = None
    try:
        for note in server.notes:
            say(note)
        if program is None:
            say("There is no HAProxy, so TorchServe serves directly: no page, no /docs, no limits on connections.")
        else:
            door = Door(program, properties.endpoints, server.endpoints, os.environ)
        if not server.wait_until_ready(stop):
            return 0
        say(welcome(properties, quote(server.model_names[0], safe="")))
        while server.running and (door is None or door.running) and not stop.wait(1):
            server.remove_leftovers()
        if not server.running:
            say("error: TorchServe ended by itself; see its output above.", sys.stderr)
            return 1
        if door is not None and not door.running:
            say("error: The door ended by itself; see its output above.", sys.stderr)
            return 1
        say("Stopping: answering the requests that have arrived, refusing new ones (a second signal stops at once) ...")
        if not (door.drain(drain_timeout_s) if door else server.drain(drain_timeout_s, force)):
            say("Some requests were not answered.", sys.stderr)
        return 0
    finally:
        if door is not None:
            door.stop()
        server.stop()
        say("Stopped.")


def say(line: str, stream: TextIO | None = None) -> None:
    """Write a line, if it can be written: a full disk for logs, or nobody there to read them, ends no server."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        # What is left in the buffer would be tried again at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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


def welcome(properties: Properties, model: str) -> str:
    """What a person reads when the server is up.

    Args:
        model: the name of one, as it stands in an address.
    """
    url = properties.inference.url()
    return f"""
Ready.
  inference   {url}/predictions/{model}
  management  {properties.management.url()}/models/{model}
  metrics     {properties.metrics.url()}/metrics

Try it:
  curl {url}/predictions/{model} -H 'Content-Type: text/plain' -d 'Thank you for the great flight!'

Ctrl-C stops it."""


if __name__ == "__main__":
    sys.exit(main())
