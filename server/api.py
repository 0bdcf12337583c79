"""What this project's own programs ask of the TorchServe beside them, with a token where it wants one.

TorchServe's token authorization: at its start it writes three keys into `key_file.json` in its working folder, which
is the configuration's; each of its two addresses wants its own as a bearer token, until it expires; the third key gets
new ones (TorchServe's documentation, `token_authorization_api.md`).
"""

import json
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, Literal

from server.properties import Address, Properties

TIMEOUT_S = 3

Kind = Literal["inference", "management"]


class AnswerError(Exception):
    """TorchServe answered otherwise than was to be expected. The message says what."""


ERRORS = (AnswerError, OSError, HTTPException, ValueError, KeyError)
"""What the functions here raise where TorchServe does not answer as it should."""


def get(properties: Properties, kind: Kind, path: str) -> Any:
    """JSON from one of TorchServe's two addresses.

    Raises:
        ERRORS: it does not answer, or not with status 200 and JSON.
    """
    token = _token(properties, kind) if properties.token_authorization else None
    return json.loads(_get(getattr(properties, kind), path, token))


def versions(properties: Properties) -> list[dict[str, Any]]:
    """All versions of all models, as the management API describes them.

    Raises:
        ERRORS: it does not answer as it should.
    """
    return [version for name in _models(properties) for version in get(properties, "management", f"/models/{name}/all")]


def defaults(properties: Properties) -> list[dict[str, Any]]:
    """Each model's default version, as the management API describes it.

    Raises:
        ERRORS: it does not answer as it should.
    """
    return [version for name in _models(properties) for version in get(properties, "management", f"/models/{name}")]


def _models(properties: Properties) -> list[str]:
    return [model["modelName"] for model in get(properties, "management", "/models")["models"]]


def _token(properties: Properties, kind: Kind) -> str:
    keys = json.loads(properties.key_file.read_text(encoding="utf-8"))
    if datetime.fromisoformat(keys[kind]["expiration time"]) <= datetime.now(UTC):
        _get(properties.management, f"/token?type={kind}", keys["API"]["key"])
        keys = json.loads(properties.key_file.read_text(encoding="utf-8"))
    return str(keys[kind]["key"])


def _get(address: Address, path: str, token: str | None) -> bytes:
    connection = HTTPConnection(address.reachable_host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
        if response.status != HTTPStatus.OK:
            raise AnswerError(f"{path} was answered {response.status}: {body.decode(errors='replace').strip()}")
        return body
    finally:
        connection.close()
