"""A client of the server's HTTP API: a Python library, and the command line `sentiment`.

    from client import InferenceClient

    with InferenceClient("http://127.0.0.1:8080") as client:
        print(client.predict("Thank you for the great flight!").label)
        for prediction in client.predict_many(["Late again", "Which gate is flight 12?"]):
            print(prediction.label, prediction.score, prediction.model_version)

| module | holds |
|---|---|
| `inference` | predictions |
| `management` | versions and workers, through TorchServe's management API |
| `rollout` | replacing the default version without a lost request |
| `score` | classifying the texts of a file |
| `status` | the state of a server |
| `errors` | the exceptions of all modules |
"""

from client.errors import (
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
from client.inference import Explanation, InferenceClient, Prediction, Token
from client.management import Machine, ManagementClient, Settings, Version
from client.rollout import Change, Comparison, Outcome, Switch

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
