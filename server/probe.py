"""`python -m server.probe ready|live`: the health check of the image, run inside the container.

Over HTTP, the door gives the same information under `/ready`, and under `/ping` at the metrics address.
"""

import argparse
import sys
from http import HTTPStatus
from pathlib import Path

from server import api, readiness
from server.properties import ConfigurationError, Properties
from server.readiness import NotReadyError


def main() -> int:
    """Run the check of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m server.probe",
        description="Check a running server: exit with 0 if it is ready or live, else with 1 and the reason.",
    )
    parser.add_argument(
        "question",
        choices=["ready", "live"],
        help="ready: the default version of every model has a ready worker; live: no restart is needed",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config.properties"),
        metavar="FILE",
        help="the configuration of the server (default: %(default)s)",
    )
    options = parser.parse_args()
    try:
        properties = Properties.read(options.config)
        {"ready": ready, "live": live}[options.question](properties)
    except (ConfigurationError, NotReadyError, *api.ERRORS) as problem:
        print(f"not {options.question}: {problem or type(problem).__name__}", file=sys.stderr)
        return 1
    return 0


def ready(properties: Properties) -> None:
    """Check that the server is ready.

    Raises:
        NotReadyError: TorchServe serves without the door, and a default version has no ready worker.
        server.api.ERRORS: the door does not respond, or it reports that the server is not ready.
    """
    try:
        api.get(properties.inference, "/ready")
    except api.AnswerError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        # Without the door there is no `/ready`: TorchServe serves directly.
        readiness.check(api.defaults(properties.management, api.TIMEOUT_S))


def live(properties: Properties) -> None:
    """Check that no restart is needed.

    Raises:
        server.api.ERRORS: TorchServe or the door does not respond, or a model has had no ready worker for 300 s.
    """
    try:
        api.get(properties.metrics, "/ping")
    except api.AnswerError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        # Without the door, TorchServe's own health check is the only one.
        api.get(properties.inference, "/ping")


if __name__ == "__main__":
    sys.exit(main())
