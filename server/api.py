"""Requests of this project's own programs to TorchServe and to the door in front of it."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from server.address import Endpoint

TIMEOUT_S = 3


class AnswerError(Exception):
    """The status of a response is not 200. The message quotes the body."""

    def __init__(self, path: str, status: int, body: bytes) -> None:
        super().__init__(f"the response to {path} has status {status}: {body.decode(errors='replace').strip()}")
        self.status = status


ERRORS = (AnswerError, OSError, HTTPException, ValueError, KeyError, TypeError)
"""The exceptions that the functions of this module raise if there is no response or an unexpected one."""


def get(address: Endpoint, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """The JSON in the response to a GET request.

    Raises:
        ERRORS: there is no response, or one without status 200 and JSON.
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
    """All versions of all models that have a URL, as the management API describes them.

    Args:
        management: the management API.
        timeout_s: the timeout of each request.

    Raises:
        ERRORS: there is no response, or an unexpected one.
    """
    return _described(management, timeout_s, "/all")


def defaults(management: Endpoint, timeout_s: float) -> list[dict[str, Any]]:
    """The default version of each model that has a URL, as the management API describes it.

    Args:
        management: the management API.
        timeout_s: the timeout of each request.

    Raises:
        ERRORS: there is no response, or an unexpected one.
    """
    return _described(management, timeout_s, "")


def _described(management: Endpoint, timeout_s: float, suffix: str) -> list[dict[str, Any]]:
    paths = [f"/models/{quote(name, safe='')}{suffix}" for name in names(management, timeout_s) if has_address(name)]
    return [version for path in paths for version in get(management, path, timeout_s)]


def name_and_version(version: Mapping[str, Any]) -> tuple[str, str]:
    """The name and the version's number in the management API's description of a version."""
    return version["modelName"], version["modelVersion"]


def has_address(name: str) -> bool:
    """Whether a model of this name has a URL.

    TorchServe decodes a path before it splits it at the slashes, so a name with a slash cannot be in a path.
    """
    return "/" not in name


def names(management: Endpoint, timeout_s: float = TIMEOUT_S) -> list[str]:
    """The names of all models, including models without a URL.

    Raises:
        ERRORS: there is no response, or an unexpected one.
    """
    model_names: list[str] = []
    query = ""
    while True:
        page = get(management, f"/models{query}", timeout_s)
        model_names += [model["modelName"] for model in page["models"]]
        if "nextPageToken" not in page:
            return model_names
        query = f"?next_page_token={quote(page['nextPageToken'], safe='')}"
