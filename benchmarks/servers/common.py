"""The model and the settings that the other servers share, the same as those of this project's server."""

import os
from pathlib import Path

from handler.classifier import TextClassifier

MODEL_VARIABLE = "BENCHMARK_MODEL"
PATH = "/predictions/sentiment"
BATCH_TEXTS = 16
BATCH_DELAY_S = 0.001


def classifier() -> TextClassifier:
    """The model in the folder named by the environment variable, loaded as a TorchServe worker loads it."""
    model = TextClassifier.load_archived(Path(os.environ[MODEL_VARIABLE]), threads=1)
    model.warm_up()
    return model
