"""Splits of a user's labelled texts: stratified and seeded, with all copies of a text in one split.

Copies have nearly the same text, see `training.data.copies_of`.
"""

import csv
import io
import shlex
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from training.data import copies_of, sha256_of
from training.errors import TrainingError
from training.files import replacing, write_json
from training.splits import SPLITS

SEED: Final = 1
HELD_OUT: Final = 0.1
"""Share of each label's texts in the validation split, and the same share in the test split."""

DATA_FILE: Final = "data.csv"
"""File in the run's folder with the texts, labels and splits of its stages; every command reads it as --data."""

SOURCE_FILE: Final = "data.json"
"""File in the run's folder that says from which file and how `DATA_FILE` was made."""


def with_splits(rows: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """Return the rows with a column `split`.

    Splits that the file has are kept. If the file has no validation split, a tenth of its train split becomes one.

    Args:
        rows: see `training.fit.table.Table`.
        seed: seed of the random split.

    Raises:
        TrainingError: the file has splits, but no train split, or its train split lacks a label.
    """
    if "split" not in rows:
        return rows.assign(split=_split(rows, ("test", "validation"), seed))
    if not (rows["split"] == "train").any():
        raise TrainingError("The file has no row in the split `train`. Omit --split-column to split the file here.")
    rows = rows.copy()
    if not (rows["split"] == "validation").any():
        train = rows[rows["split"] == "train"]
        rows.loc[train.index, "split"] = _split(train, ("validation",), seed)
    train_labels = set(rows.loc[rows["split"] == "train", "label"])
    if missing := sorted(set(rows["label"]) - train_labels):
        lines = ", ".join(map(str, rows.loc[rows["label"].isin(missing), "line"][:5]))
        raise TrainingError(
            f"The file's train split has no text with the label {', '.join(map(repr, missing))} (line {lines}), so no "
            f"model can learn it. Move rows to the train split, or omit --split-column to split the file here."
        )
    return rows


def leaks(rows: pd.DataFrame) -> int:
    """Count the rows outside the train split that are copies of a row in it."""
    copies = copies_of(rows["text"])
    in_train = rows["split"] == "train"
    return int(copies[~in_train].isin(set(copies[in_train])).sum())


def _split(rows: pd.DataFrame, held_out: tuple[str, ...], seed: int) -> pd.Series:
    """Assign a split to each row: a tenth of each label's different texts, at least one, goes into each of `held_out`.

    A text whose copies have different labels counts for the label of the first copy.
    """
    copies = copies_of(rows["text"])
    label_of = rows["label"].groupby(copies).first()
    generator = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    for label in sorted(set(label_of)):
        texts = generator.permutation(sorted(label_of.index[label_of == label]))
        count = max(1, round(HELD_OUT * len(texts)))
        if len(texts) <= count * len(held_out):  # the other texts count for another label
            count = 0
        for part, name in enumerate(held_out):
            split_of |= dict.fromkeys(texts[part * count : (part + 1) * count], name)
    return copies.map(lambda text: split_of.get(text, "train"))


def train_again(to: Path, run: Path) -> str:
    """Describe how to train with other data or another start than those of the run, for an error message.

    Args:
        to: folder of the exported model.
        run: folder of the run.
    """
    others = (folder.parent / f"{folder.resolve().name}-2" for folder in (to, run))
    model, stages, other_model, other_stages = (shlex.quote(str(folder)) for folder in (to, run, *others))
    return (
        f"To keep this run and its model, choose other folders: --to {other_model} --run {other_stages}. To replace "
        f"both, remove the run with `rm -r {stages}`, and run the command with --to {model}. The earlier model stays "
        f"until the new one is finished."
    )


def write_data(rows: pd.DataFrame, source: Path, columns: dict[str, Any], run: Path, to: Path) -> Path:
    """Write the texts with labels and splits into the run's folder; return the path of the file.

    Args:
        rows: a table with the columns `text`, `label`, `split` and `line`.
        source: the user's file.
        columns: names of the columns of the user's file.
        run: folder of the run.
        to: folder of the exported model, for the error message.

    Raises:
        TrainingError: the run's folder contains other data.
    """
    file = io.StringIO()
    rows[["text", "label", "split", "line"]].to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    content = file.getvalue().encode("utf-8")
    path = run / DATA_FILE
    if path.is_file() and path.read_bytes() != content:
        raise TrainingError(f"{run} contains a run on other data or another split ({path}). {train_again(to, run)}")
    run.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
    counts = {split: int((rows["split"] == split).sum()) for split in SPLITS}
    provenance = {
        "file": source.name,
        "sha256": sha256_of(source),
        "columns": columns,
        "seed": SEED,
        "rows": counts,
    }
    write_json(run / SOURCE_FILE, provenance, indent=2)
    return path
