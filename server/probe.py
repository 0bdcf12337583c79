"""`python -m server.probe ready|live`: what the image's health check asks, from inside the container. The door answers
the same over HTTP, under `/ready` and `/ping`."""

import argparse
import sys
from http import HTTPStatus
from pathlib import Path

from server import api, readiness
from server.properties import ConfigurationError, Properties
from server.readiness import NotReadyError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.probe", description="Exit with 0 if the answer is yes, else with 1."
    )
    parser.add_argument(
        "question", choices=["ready", "live"], help="ready: every model's default version has a worker that answers"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("config.properties"), metavar="FILE", help="default: %(default)s"
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
    """
    Raises:
        NotReadyError: there is no door before TorchServe, and a model has no worker that answers.
        server.api.ERRORS: the door does not answer, or says that the server is not ready.
    """
    try:
        api.get(properties.inference, "/ready")
    except api.AnswerError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        # TorchServe serves directly.
        readiness.check(api.defaults(properties.management, api.TIMEOUT_S))


def live(properties: Properties) -> None:
    """
    Raises:
        server.api.ERRORS: TorchServe or the door does not answer, or TorchServe says that it is not healthy.
    """
    api.get(properties.inference, "/ping")


if __name__ == "__main__":
    sys.exit(main())
