"""BentoML with its own batching, which has no fixed delay: it waits as long as its model of past batches says is worth
it."""

import os
from typing import Any

import bentoml

from benchmarks.servers.common import BATCH_TEXTS, PATH, classifier
from handler.prediction import Prediction
from handler.reply import prediction_json


@bentoml.service(workers=int(os.environ.get("BENCHMARK_WORKERS", "1")), logging={"access": {"enabled": False}})
class Sentiment:
    def __init__(self) -> None:
        self.model = classifier()

    @bentoml.api(route=PATH, batchable=True, max_batch_size=BATCH_TEXTS)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return [
            prediction_json(Prediction.from_outputs(row, self.model.task), self.model.task)
            for row in self.model.predict(texts)
        ]
