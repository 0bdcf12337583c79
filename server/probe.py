"""`python -m server.probe ready|live`: what Kubernetes and the image's health check ask, from inside the container.

TorchServe's `/ping` answers while a model still loads, and its management API is not to be reached from outside.
"""

import argparse
import json
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from server.properties import Address, ConfigurationError, Properties

TIMEOUT_S = 3


class NotReadyError(Exception):
    """The message says what was seen."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.probe", description="Exit with 0 if it is, else with 1.")
    parser.add_argument("question", choices=["ready", "live"], help="ready: every model has a worker that answers")
    parser.add_argument(
        "--config", type=Path, default=Path("config.properties"), metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args()
    try:
        properties = Properties.read(options.config)
        {"ready": ready, "live": live}[options.question](properties)
    except (ConfigurationError, NotReadyError, OSError, HTTPException, ValueError) as problem:
        print(f"not {options.question}: {problem or type(problem).__name__}", file=sys.stderr)
        return 1
    return 0


def ready(properties: Properties) -> None:
    """
    Raises:
        NotReadyError: a model has no worker that answers, or there is no model.
        OSError, HTTPException, ValueError: the management API does not answer as it should.
    """
    models = [model["modelName"] for model in _get(properties.management, "/models")["models"]]
    if not models:
        raise NotReadyError("no model is registered")
    for name in models:
        for version in _get(properties.management, f"/models/{name}/all"):
            states = [worker["status"] for worker in version["workers"]]
            if "READY" not in states:
                raise NotReadyError(f"{name} {version['modelVersion']} has the workers {states}")


def live(properties: Properties) -> None:
    """
    Raises:
        OSError, HTTPException, ValueError: TorchServe does not answer.
    """
    _get(properties.inference, "/ping")


def _get(address: Address, path: str) -> Any:
    connection = HTTPConnection("127.0.0.1", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return json.load(connection.getresponse())
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
