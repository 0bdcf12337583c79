"""`python -m server.probe ready|live`: what Kubernetes and the image's health check ask, from inside the container.

TorchServe's `/ping` answers while a model still loads, and its management API is not to be reached from outside.
"""

import argparse
import sys
from pathlib import Path

from server import api
from server.properties import ConfigurationError, Properties


class NotReadyError(Exception):
    """The message says what was seen."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.probe", description="Exit with 0 if it is, else with 1.")
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
        NotReadyError: a model's default version has no worker that answers, or there is no model. A version beside it
            that does not load takes nobody's answer away.
        server.api.ERRORS: the management API does not answer as it should.
    """
    defaults = api.defaults(properties.management)
    if not defaults:
        raise NotReadyError("no model is registered")
    for version in defaults:
        states = [worker["status"] for worker in version["workers"]]
        if "READY" not in states:
            raise NotReadyError(f"{version['modelName']} {version['modelVersion']} has the workers {states}")


def live(properties: Properties) -> None:
    """
    Raises:
        server.api.ERRORS: TorchServe does not answer, or says that it is not healthy.
    """
    api.get(properties.inference, "/ping")


if __name__ == "__main__":
    sys.exit(main())
