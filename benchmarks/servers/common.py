"""What the other servers share: the same archive's model, in the same engine, set up in the same way."""

import os
from pathlib import Path

from handler.classifier import TextClassifier

MODEL_VARIABLE = "BENCHMARK_MODEL"
PATH = "/predictions/sentiment"
BATCH_TEXTS = 16
BATCH_DELAY_S = 0.001


def classifier() -> TextClassifier:
    """The model in the folder that the environment names, as a TorchServe worker has it."""
    made = TextClassifier.load_archived(Path(os.environ[MODEL_VARIABLE]), threads=1)
    made.warm_up()
    return made
