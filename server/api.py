"""Requests of this project's own programs to TorchServe, and to the door before it."""

import json
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from server.address import Endpoint

TIMEOUT_S = 3


class AnswerError(Exception):
    """The answer has another status than 200. The message has the body."""

    def __init__(self, path: str, status: int, body: bytes) -> None:
        super().__init__(f"{path} was answered {status}: {body.decode(errors='replace').strip()}")
        self.status = status


ERRORS = (AnswerError, OSError, HTTPException, ValueError, KeyError, TypeError)
"""What the functions here raise where TorchServe does not answer as it should."""


def get(address: Endpoint, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """The JSON in the response to a GET request.

    Raises:
        ERRORS: it does not answer, or not with status 200 and JSON.
    """
    connection = address.connection(timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.OK:
            raise AnswerError(path, response.status, body)
        return json.loads(body)
    finally:
        connection.close()


def versions(management: Endpoint, timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """All versions of all models that have an address, as the management API describes them.

    Args:
        timeout_s: for each of the requests.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}/all" for name in names(management, timeout_s) if has_address(name)]
    return [version for path in paths for version in get(management, path, timeout_s)]


def defaults(management: Endpoint, timeout_s: float) -> list[dict[str, Any]]:
    """The default version of each model that has an address, as the management API describes it.

    Args:
        timeout_s: for each of the requests.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}" for name in names(management, timeout_s) if has_address(name)]
    return [version for path in paths for version in get(management, path, timeout_s)]


def has_address(name: str) -> bool:
    """Whether a model of this name can be asked for over HTTP: TorchServe decodes a path before it splits it at its
    slashes."""
    return "/" not in name


def names(management: Endpoint, timeout_s: float = TIMEOUT_S) -> list[str]:
    """The names of all models, those without an address too.

    Raises:
        ERRORS: the management API does not answer as it should.
    """
    found: list[str] = []
    page = ""
    while True:
        answer = get(management, f"/models{page}", timeout_s)
        found += [model["modelName"] for model in answer["models"]]
        if "nextPageToken" not in answer:
            return found
        page = f"?next_page_token={quote(answer['nextPageToken'], safe='')}"
