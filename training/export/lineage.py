"""Lineage of an exported model: the stages and the data files that its weights come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data import sha256_of
from training.stages.products import LABEL_STAGES, PRODUCTS
from training.stages.record import inputs_of_record, record_of, stages_of


def stages_behind(run: Path, stage: str) -> list[str]:
    """Return the stages of a run whose products went into a stage, and that stage, in the order of the stages.

    The SHA-256 of each stage's inputs identifies them: a run's folder may contain other stages of earlier or later
    commands.
    """
    made_by = {sha256_of(path): name for name, file in PRODUCTS.items() if (path := run / name / file).is_file()}
    stages: set[str] = set()
    unvisited = {stage}
    while unvisited:
        stages |= unvisited
        digests = {digest for name in unvisited for digest in record_of(run / name)["inputs"].values()}
        unvisited = {made_by[digest] for digest in digests & made_by.keys()} - stages
    return [name for name in PRODUCTS if name in stages]


def trained_on(card: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of the CSV file that a model was trained on last; None if its card does not have it."""
    last = next(reversed(stages_of(card).values()), None)
    return _data_of(last) if last else None


def trained_on_other_labels(card: Mapping[str, Any]) -> bool:
    """Return whether an earlier stage was trained on the labels of another file than the last one."""
    digests = {_data_of(record) for name, record in stages_of(card).items() if name.split()[-1] in LABEL_STAGES}
    return bool(digests - {None, trained_on(card)})


def _data_of(record: Mapping[str, Any]) -> str | None:
    inputs = inputs_of_record(record)
    return inputs.get("data", inputs.get("tweets"))  # earlier records have the second name
