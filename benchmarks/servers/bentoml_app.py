"""BentoML with its own adaptive batching, which sets the delay by a model of past batches."""

import os
from typing import Any

import bentoml

from benchmarks.servers.common import BATCH_TEXTS, PATH, classifier
from handler.prediction import Prediction
from handler.reply import prediction_json


@bentoml.service(workers=int(os.environ.get("BENCHMARK_WORKERS", "1")), logging={"access": {"enabled": False}})
class Sentiment:
    """The service."""

    def __init__(self) -> None:
        self.model = classifier()

    @bentoml.api(route=PATH, batchable=True, max_batch_size=BATCH_TEXTS)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """The predictions of a batch."""
        task = self.model.task
        return [prediction_json(Prediction.from_outputs(row, task), task) for row in self.model.predict(texts)]
