"""Licence terms of an exported model's weights, derived from the training data that its card records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from handler.exported import CARD_FILE, card_entry
from training.files import read_json
from training.stages.record import inputs_of_record, stages_of

NON_COMMERCIAL_DATA: Final = {
    "570ee947ac9bfa555d8e0ac2973a19cb6c158b2ee9904c8bcbd9da6802cca3df": (
        "Twitter US Airline Sentiment (CrowdFlower, on Kaggle), CC BY-NC-SA 4.0"
    ),
}
"""Data sets whose licence forbids commercial use, by the SHA-256 of the file as the stages' records have it."""


def terms_of(folder: Path) -> str:
    """Describe what the licence of an exported model permits, as far as the model's card tells.

    Raises:
        TrainingError: the card is damaged.
    """
    card = read_json(folder / CARD_FILE, {}, f"expected the card of an exported model; export {folder} again")
    if limits := sorted(non_commercial(stages_of(card))):
        return f"NO COMMERCIAL USE: it was trained on {'; '.join(limits)}"
    if permits := card_entry(card, "start", "permits"):
        return permits
    return f"what its card says ({folder / 'README.md'}); no stage of it is known to forbid commercial use"


def non_commercial(stages: Mapping[str, Any]) -> set[str]:
    """Return the names of the `NON_COMMERCIAL_DATA` among the inputs of the stages' records."""
    digests = {digest for record in stages.values() for digest in inputs_of_record(record).values()}
    return {terms for digest, terms in NON_COMMERCIAL_DATA.items() if digest in digests}
