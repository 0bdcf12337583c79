"""Licence terms of an exported model's weights, derived from the training data that its card records."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from handler.exported import CARD_FILE
from training.errors import TrainingError

NON_COMMERCIAL_DATA: Final = {
    "570ee947ac9bfa555d8e0ac2973a19cb6c158b2ee9904c8bcbd9da6802cca3df": (
        "Twitter US Airline Sentiment (CrowdFlower, on Kaggle), CC BY-NC-SA 4.0"
    ),
}
"""Data sets whose licence forbids commercial use, by the SHA-256 of the file as the stages' records have it."""


def terms_of(folder: Path) -> str:
    """Describe what the licence of an exported model permits, as far as the model's card tells.

    Raises:
        TrainingError: the card cannot be read.
    """
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--start {folder}: {CARD_FILE} cannot be read ({error}).") from error
    if limits := sorted(non_commercial(card.get("stages", {}))):
        return f"NO COMMERCIAL USE: it was trained on {'; '.join(limits)}"
    if start := card.get("start"):
        return str(start["permits"])
    return f"what its card says ({folder / 'README.md'}); no stage of it is known to forbid commercial use"


def non_commercial(stages: Mapping[str, Any]) -> set[str]:
    """Return the names of the `NON_COMMERCIAL_DATA` among the inputs of the stages' records."""
    digests = {digest for record in stages.values() for digest in record.get("inputs", {}).values()}
    return {terms for digest, terms in NON_COMMERCIAL_DATA.items() if digest in digests}
