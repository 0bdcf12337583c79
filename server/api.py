"""What this project's own programs ask of the TorchServe beside them, with a token where it wants one.

TorchServe's token authorization: at its start it writes three keys into `key_file.json` in its working folder, which
is the configuration's; each of its two addresses wants its own as a bearer token, until it expires; the third key gets
new ones (TorchServe's documentation, `token_authorization_api.md`).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Literal
from urllib.parse import quote

from server.properties import Address, Properties

TIMEOUT_S = 3

Kind = Literal["inference", "management"]


class AnswerError(Exception):
    """TorchServe answered otherwise than was to be expected. The message says what."""


ERRORS = (AnswerError, OSError, HTTPException, ValueError, KeyError)
"""What the functions here raise where TorchServe does not answer as it should."""


def get(properties: Properties, kind: Kind, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """JSON from one of TorchServe's two addresses.

    Raises:
        ERRORS: it does not answer, or not with status 200 and JSON.
    """
    token = _token(properties, kind) if properties.token_authorization else None
    return json.loads(_get(getattr(properties, kind), path, token, timeout_s))


def versions(properties: Properties) -> list[dict[str, Any]]:
    """All versions of all models that have an address, as the management API describes them.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}/all" for name in names(properties) if has_address(name)]
    return [version for path in paths for version in get(properties, "management", path)]


def defaults(properties: Properties) -> list[dict[str, Any]]:
    """The default version of each model that has an address, as the management API describes it.

    Raises:
        ERRORS: it does not answer as it should.
    """
    paths = [f"/models/{quote(name, safe='')}" for name in names(properties) if has_address(name)]
    return [version for path in paths for version in get(properties, "management", path)]


def has_address(name: str) -> bool:
    """Whether a model of this name can be asked for over HTTP: TorchServe decodes a path before it splits it at its
    slashes."""
    return "/" not in name


def pass_through_queue(properties: Properties, version: Mapping[str, Any], timeout_s: float) -> None:
    """Return when all requests that a described version had in its queue have gone to its workers.

    To describe a model with what its handler says of it, TorchServe puts a request of its own into the queue, which is
    first in, first out; a worker gets it alone (`Model.pollBatch`).

    Raises:
        ERRORS: the queue is full, there is no worker, or it took longer.
    """
    path = f"/models/{quote(version['modelName'], safe='')}/{quote(version['modelVersion'], safe='')}?customized=true"
    get(properties, "management", path, timeout_s)


def names(properties: Properties) -> list[str]:
    """The names of all models, those without an address too.

    Raises:
        ERRORS: the management API does not answer as it should.
    """
    found: list[str] = []
    page = ""
    while True:
        answer = get(properties, "management", f"/models{page}")
        found += [model["modelName"] for model in answer["models"]]
        if "nextPageToken" not in answer:
            return found
        page = f"?next_page_token={quote(answer['nextPageToken'], safe='')}"


def _token(properties: Properties, kind: Kind) -> str:
    keys = json.loads(properties.key_file.read_text(encoding="utf-8"))
    if datetime.fromisoformat(keys[kind]["expiration time"]) <= datetime.now(UTC):
        _get(properties.management, f"/token?type={kind}", keys["API"]["key"])
        keys = json.loads(properties.key_file.read_text(encoding="utf-8"))
    return str(keys[kind]["key"])


def _get(address: Address, path: str, token: str | None, timeout_s: float = TIMEOUT_S) -> bytes:
    connection = HTTPConnection(address.reachable_host, address.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.OK:
            raise AnswerError(f"{path} was answered {response.status}: {body.decode(errors='replace').strip()}")
        return body
    finally:
        connection.close()
