"""Predictions of a running server."""

import json
import os
from typing import Any, Final
from urllib.parse import quote, urlsplit

from sentiment import address
from sentiment.errors import ClientError, InputError, RefusedError, UnreachableError
from sentiment.transport import Answer, Transport
from training.errors import TrainingError
from training.measure.evaluate import Predictor

TIMEOUT_S: Final = 120
MODELS_PATH: Final = "/v2/models"
TOKEN_VARIABLE: Final = "SENTIMENT_TOKEN"
"""Environment variable with the server's token, if the server requires one."""


def server_predictor(url: str, model: str | None = None) -> Predictor:
    """Make a predictor of a running server.

    Args:
        url: the server's address (`http://127.0.0.1:8080`), or the address of a model's predictions with its path.
        model: name of the model; None if the server has only one model.

    Raises:
        TrainingError: the address or the token is invalid, or it is not clear which model is meant. The message does
            not contain the token. The predictor raises it if the request fails, or if the version of the model changes.
    """
    try:
        url = address.address(url)
    except InputError as error:
        raise TrainingError(f"--url: {error}") from error
    try:
        token = address.token(os.environ.get(TOKEN_VARIABLE))
    except InputError as error:
        raise TrainingError(f"{TOKEN_VARIABLE}: {error}") from error
    try:
        transport = Transport(url, token=token, read_timeout_s=TIMEOUT_S)
    except InputError as error:
        raise TrainingError(str(error)) from error
    url_path = urlsplit(url).path
    if url_path and model is not None:
        raise TrainingError(
            f"--model-name {model}: --url already has a path, {url_path}. Give either the name or the path."
        )
    path = "" if url_path else f"/predictions/{quote(model or _only_model(transport), safe='')}"

    first_version: str | None = None

    def predict(body: bytes) -> bytes:
        nonlocal first_version
        answer = _send(transport, "POST", path, json.loads(body))
        first_version = first_version or answer.model_version
        if answer.model_version not in (None, first_version):
            raise TrainingError(
                f"The model changed during the run, from version {first_version} to {answer.model_version}. Run the "
                f"command again when the rollout is complete, or add the version to --url: /predictions/NAME/VERSION."
            )
        return json.dumps(answer.value).encode()

    return predict


def _only_model(transport: Transport) -> str:
    """Return the name of the server's only model.

    Raises:
        TrainingError: the server has no model or several models, or does not list its models.
    """
    match _send(transport, "GET", MODELS_PATH).value:
        case {"models": [str(name)]}:
            return name
        case {"models": []}:
            raise TrainingError(f"{transport.url} has no model. Register one: sentiment register FILE.mar")
        case {"models": [str(), *_] as names}:
            listed = ", ".join(map(str, names))
            raise TrainingError(f"{transport.url} has several models, {listed}: name one with --model-name.")
    raise TrainingError(f"{transport.url}{MODELS_PATH} does not list models: name one with --model-name.")


def _send(transport: Transport, method: str, path: str, body: Any = None) -> Answer:
    """Send a request and return the reply.

    Raises:
        TrainingError: the server does not answer, or refuses the request.
    """
    try:
        return transport.send(method, path, body=body)
    except UnreachableError as error:
        raise TrainingError(f"{error}. Is the server running (`make serve`)?") from error
    except RefusedError as error:
        raise TrainingError(f"{transport.url}{path} answered {error.status}: {error}") from error
    except ClientError as error:
        raise TrainingError(str(error)) from error
