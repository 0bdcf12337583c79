"""Reference distributions of the training data, against which a running server measures drift (`handler.drift`)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from handler import exported
from handler.classifier import TextClassifier
from handler.drift import Distribution
from training.data import Dataset
from training.errors import TrainingError
from training.files import write_json

TOKEN_BUCKETS: Final = 10
"""Number of buckets for the number of tokens; the buckets have about equally many texts."""

UNKNOWN_BOUNDS: Final = (0, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the buckets for the share of unknown tokens.

Most texts have no unknown token, so buckets with equally many texts are not possible.
"""


def add_reference(folder: Path, classifier: TextClassifier, data: Dataset) -> None:
    """Write the distributions of the train split into an exported model's card.

    Args:
        folder: folder of the exported model.
        classifier: the loaded model.
        data: the labelled texts.

    Raises:
        ExportedModelError: `folder` is not an exported model.
        TrainingError: a label of the train split is blank or unknown to the model.
    """
    model = exported.read_description(folder)
    reference = reference_of(classifier, data)
    write_json(folder / exported.CARD_FILE, model.card | {"reference": reference})


def reference_of(classifier: TextClassifier, data: Dataset) -> dict[str, Any]:
    """Compute the distributions of the train split, in the format of `card.json`.

    Raises:
        TrainingError: a label of the train split is blank or unknown to the model.
    """
    train = data.labelled("train")
    counts = Counter(row.label for row in train)
    unknown = sorted(str(label) for label in counts.keys() - set(classifier.labels))
    if unknown:
        raise TrainingError(
            f"The model's labels are {', '.join(classifier.labels)}; the data also has {', '.join(unknown)}."
        )
    ids = [classifier.ids(row.text) for row in train]
    lengths = [len(row) for row in ids]
    shares = [row.count(classifier.unknown_id) / len(row) for row in ids]
    quantiles = np.quantile(lengths, np.arange(1, TOKEN_BUCKETS) / TOKEN_BUCKETS, method="inverted_cdf")
    return {
        "data_sha256": data.sha256,
        "labels": {label: counts[label] for label in classifier.labels},
        "tokens": _distribution(lengths, sorted({int(bound) for bound in quantiles})),
        "unknown_tokens": _distribution(shares, UNKNOWN_BOUNDS),
    }


def _distribution(values: Sequence[float], bounds: Sequence[float]) -> dict[str, Any]:
    return {"bounds": list(bounds), "counts": list(Distribution.of(values, bounds).counts)}
