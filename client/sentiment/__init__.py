"""Command line and Python library for the server's HTTP API.

    from sentiment import InferenceClient

    with InferenceClient("http://127.0.0.1:8080") as client:
        print(client.predict("Thank you for the great flight!").label)
        for prediction in client.predict_many(["Late again", "Which gate is flight 12?"]):
            print(prediction.label, prediction.score, prediction.model_version)

| module | content |
|---|---|
| `inference` | predictions |
| `management` | versions and workers, through TorchServe's management API |
| `rollout` | rolling update: replace the default version without losing a request |
| `score` | classify the texts of a file |
| `status` | the state of a server |
| `errors` | the exceptions of all modules |
"""

from sentiment.errors import (
    ClientError,
    InputError,
    NotAuthorizedError,
    NotReadyError,
    OverloadedError,
    PodError,
    RefusedError,
    RolloutError,
    UnexpectedAnswerError,
    UnreachableError,
)
from sentiment.inference import Explanation, InferenceClient, Prediction, Token
from sentiment.management import Machine, ManagementClient, Settings, Version
from sentiment.rollout import Change, Comparison, Outcome, Switch

__version__ = "0.1.0"

__all__ = [
    "Change",
    "ClientError",
    "Comparison",
    "Explanation",
    "InferenceClient",
    "InputError",
    "Machine",
    "ManagementClient",
    "NotAuthorizedError",
    "NotReadyError",
    "Outcome",
    "OverloadedError",
    "PodError",
    "Prediction",
    "RefusedError",
    "RolloutError",
    "Settings",
    "Switch",
    "Token",
    "UnexpectedAnswerError",
    "UnreachableError",
    "Version",
]
