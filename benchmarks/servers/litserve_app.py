"""LitServe with its own batching."""

import sys
from typing import Any

import litserve

from benchmarks.servers.common import BATCH_DELAY_S, BATCH_TEXTS, PATH, classifier
from handler.exported import Probabilities
from handler.prediction import Prediction
from handler.reply import prediction_json


class Sentiment(litserve.LitAPI):  # type: ignore[misc]
    """The API; LitServe calls its methods in the order in which they stand here."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = classifier()

    def decode_request(self, request: dict[str, str]) -> str:
        """The text of a request."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """The texts of a batch."""
        return inputs

    def predict(self, x: list[str]) -> Probabilities:
        """The probabilities of a batch, one row for each text."""
        return self.model.predict(x)

    def unbatch(self, output: Probabilities) -> list[Any]:
        """The probabilities of each text."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The prediction of a text."""
        return prediction_json(Prediction.from_outputs(output, self.model.task), self.model.task)


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    api = Sentiment(max_batch_size=BATCH_TEXTS, batch_timeout=BATCH_DELAY_S, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
