"""The model card for programs: `card.json`, which the running server returns. It says how the model was made.

`training.export.page` makes the card for people from it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from handler.exported import CARD_FILE
from training.errors import TrainingError
from training.export.lineage import stages_behind
from training.files import read_json
from training.stages.products import LABEL_STAGES
from training.stages.record import (
    command_line,
    differences,
    finished_stage,
    record_of,
    source_commit,
    stages_of,
    timestamp,
    versions,
)
from training.stages.warm_start import start_of

_FIGURES: Final = ("accuracy", "macro_f1", "expected_calibration_error", "minutes", "megabytes", "milliseconds")
RECIPE_FORM: Final = {"command": str} | dict.fromkeys(_FIGURES, dict)
"""Keys of a result of cross-validation that the page of the model shows, and the types of their values."""


def card_of_run(run: Path, notes: str, stage: str = "classifier") -> dict[str, Any]:
    """Make a card, without metrics, of a stage's product.

    Args:
        run: folder of the run. The card has the records of the stages that the product was made from.
        notes: information that no record has, in Markdown: purpose, sources, licences.
        stage: a stage that exports a learner: `classifier` or `distil`.

    Raises:
        TrainingError: the run does not have the stage, or the stage is not finished.
    """
    if finished_stage(run / stage) is None:
        raise TrainingError(f"{run} has no finished stage {stage}. Run `python -m training all` first.")
    records = {name: record_of(run / name) for name in stages_behind(run, stage)}
    # A classifier that was initialized from an exported model has no stage `distil` behind it, so only one of the two
    # stages can have started from an exported model.
    initialized = {"distil", "classifier"} & records.keys()
    if start := next(filter(None, (start_of(run, name) for name in initialized)), None):
        earlier = stages_of(read_json(start / CARD_FILE, {}))
        records = {f"earlier {name}": record for name, record in earlier.items()} | records
    if stage != "classifier":
        return new_card(notes) | {"stages": records}
    return new_card(notes) | {"stages": records, "cross_validation": _recipes(run, records)}


def _recipes(run: Path, records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of cross-validation in the run's folder, by the recipe's name.

    The result `run` is left out if the model's stages were trained otherwise than its folds.
    """
    files = sorted((run / "cross-validation").glob("*.json"))
    recipes = {
        path.stem: read_json(path, RECIPE_FORM, f"remove {path}, or run `python -m training cross-validate` again")
        for path in files
    }
    for name, recipe in list(recipes.items()):
        folds_stages = recipe.pop("stages", None)
        if name == "run" and (change := _change(records, folds_stages)):
            print(f"note: the card does not have the cross-validation of {run}: {change}.", file=sys.stderr)
            del recipes[name]
    return recipes


def _change(records: Mapping[str, Any], folds_stages: Mapping[str, Any] | None) -> str:
    """Describe why the folds may have been trained otherwise than the model; an empty string if they were not.

    Args:
        records: records of the model's stages.
        folds_stages: settings and inputs of the folds' stages; None for a result that lacks them.
    """
    if folds_stages is None:
        return "an earlier version of this code made it, and did not note its stages. Run cross-validate again"
    for stage in sorted({*folds_stages, *(records.keys() & {*LABEL_STAGES})}):
        if stage not in records or stage not in folds_stages:
            return f"only one of the model and its folds has the stage {stage}"
        if change := differences(records[stage], folds_stages[stage]):
            return f"its folds were trained otherwise than the model: {stage}: {change}"
    return ""


def new_card(notes: str) -> dict[str, Any]:
    """Make a card with the entries that are known of any export."""
    return {
        "exported": {
            "at": timestamp(),
            "command": command_line(),
            "commit": source_commit(),
            "versions": versions(),
        },
        "notes": notes.strip(),
        "stages": {},
        "metrics": {},
        "cross_validation": {},
        "behaviour": [],
    }
