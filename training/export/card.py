"""The model card for programs: `card.json`, which the running server returns. It says how the model was made.

`training.export.page` makes the card for people from it.
"""

import json
from pathlib import Path
from typing import Any

from handler.exported import CARD_FILE
from training.errors import TrainingError
from training.export.lineage import stages_behind
from training.stages.record import command_line, finished_stage, record_of, source_commit, timestamp, versions
from training.stages.warm_start import start_of


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
        start_card = json.loads((start / CARD_FILE).read_text(encoding="utf-8"))
        records = {f"earlier {name}": record for name, record in start_card["stages"].items()} | records
    if stage != "classifier":
        return new_card(notes) | {"stages": records}
    files = sorted((run / "cross-validation").glob("*.json"))
    recipes = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    return new_card(notes) | {"stages": records, "cross_validation": recipes}


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
