"""The training data's distributions, against which a running server measures drift (`handler.drift`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handler import exported
from handler.classifier import TextClassifier
from handler.drift import Distribution
from training.data import labelled, read_tweets, sha256_of
from training.errors import TrainingError

TOKEN_BUCKETS = 10
"""With as many texts in each, as far as whole numbers allow."""

UNKNOWN_BOUNDS = (0, 0.05, 0.1, 0.2, 0.5)
"""Of the share of unknown tokens. Most texts have none, so buckets of as many texts in each cannot be made."""


def add_reference(folder: Path, csv: Path) -> None:
    """Write the train split's distributions into an exported model's card.

    Raises:
        ExportedModelError: `folder` is not an exported model.
        TrainingError: see `training.data.read_tweets`; a blank label, or one that the model does not have.
    """
    model = exported.read_description(folder)
    reference = reference_of(TextClassifier.load(folder), read_tweets(csv), sha256_of(csv))
    exported.write_description(replace(model, card=model.card | {"reference": reference}), folder)


def reference_of(classifier: TextClassifier, tweets: pd.DataFrame, csv_sha256: str) -> dict[str, Any]:
    """The train split's distributions, as `card.json` has them.

    Raises:
        TrainingError: a blank label in the split, or one that the model does not have.
    """
    train = labelled(tweets, "train")
    counts = train["label"].value_counts()
    others = sorted(set(counts.index) - set(classifier.labels))
    if others:
        raise TrainingError(
            f"The model's labels are {', '.join(classifier.labels)}; the data also has {', '.join(others)}."
        )
    ids = [classifier.ids(text) for text in train["text"]]
    lengths = [len(row) for row in ids]
    shares = [row.count(classifier.unknown_id) / len(row) for row in ids]
    quantiles = np.quantile(lengths, np.arange(1, TOKEN_BUCKETS) / TOKEN_BUCKETS, method="inverted_cdf")
    return {
        "data_sha256": csv_sha256,
        "labels": {label: int(counts.get(label, 0)) for label in classifier.labels},
        "tokens": _distribution(lengths, sorted({int(bound) for bound in quantiles})),
        "unknown_tokens": _distribution(shares, UNKNOWN_BOUNDS),
    }


def _distribution(values: Sequence[float], bounds: Sequence[float]) -> dict[str, Any]:
    return {"bounds": list(bounds), "counts": list(Distribution.of(values, bounds).counts)}
