"""Requests of this project's own programs to the TorchServe beside them."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from server.address import Endpoint

TIMEOUT_S = 3


class AnswerError(Exception):
    """TorchServe answered otherwise than was to be expected. The message says what."""


ERRORS = (AnswerError, OSError, HTTPException, ValueError, KeyError)
"""What the functions here raise where TorchServe does not answer as it should."""


def get(address: Endpoint, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """JSON from one of TorchServe's addresses.

    Raises:
        ERRORS: it does not answer, or not with status 200 and JSON.
    """
    connection = address.connection(timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.OK:
            raise AnswerError(f"{path} was answered {response.status}: {body.decode(errors='replace').strip()}")
        return json.loads(body)
    finally:
        connection.close()


def versions(management: Endpoint) -> list[dict[str, Any]]:
    """All versions of all models that have an address, as the management API describes them.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}/all" for name in names(management) if has_address(name)]
    return [version for path in paths for version in get(management, path)]


def defaults(management: Endpoint) -> list[dict[str, Any]]:
    """The default version of each model that has an address, as the management API describes it.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}" for name in names(management) if has_address(name)]
    return [version for path in paths for version in get(management, path)]


def has_address(name: str) -> bool:
    """Whether a model of this name can be asked for over HTTP: TorchServe decodes a path before it splits it at its
    slashes."""
    return "/" not in name


def pass_through_queue(management: Endpoint, version: Mapping[str, Any], timeout_s: float) -> None:
    """Return when all requests that a described version had in its queue have gone to its workers.

    To describe a model with what its handler says of it, TorchServe puts a request of its own into the queue, which is
    first in, first out; a worker gets it alone (`Model.pollBatch`).

    Raises:
        ERRORS: the queue is full, there is no worker, or it took longer.
    """
    path = f"/models/{quote(version['modelName'], safe='')}/{quote(version['modelVersion'], safe='')}?customized=true"
    get(management, path, timeout_s)


def names(management: Endpoint) -> list[str]:
    """The names of all models, those without an address too.

    Raises:
        ERRORS: the management API does not answer as it should.
    """
    found: list[str] = []
    page = ""
    while True:
        answer = get(management, f"/models{page}")
        found += [model["modelName"] for model in answer["models"]]
        if "nextPageToken" not in answer:
            return found
        page = f"?next_page_token={quote(answer['nextPageToken'], safe='')}"
