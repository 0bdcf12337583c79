"""The split of a user's labelled texts: stratified, seeded, copies of a text in one part."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from training.data import copies_of, sha256_of
from training.errors import TrainingError
from training.splits import SPLITS

SEED: Final = 1
HELD_OUT: Final = 0.1
"""The share of each label's texts in the validation split, and as much again in the test split."""

DATA_FILE: Final = "data.csv"
"""Of a run: the texts, labels and splits that its stages are trained on. Every command reads it as --data."""

SOURCE_FILE: Final = "data.json"
"""Of a run: which file `DATA_FILE` was made of, and how."""


def with_splits(rows: pd.DataFrame, seed: int = SEED) -> pd.DataFrame:
    """The rows with a column `split`.

    A file's own splits stay as they are; if no row of theirs is in the validation split, a tenth of the train split
    is moved there.

    Args:
        rows: see `training.fit.table.Table`.

    Raises:
        TrainingError: the file's own splits have no train split, or a label that their train split does not have.
    """
    if "split" not in rows:
        return rows.assign(split=_split(rows, ("test", "validation"), seed))
    if not (rows["split"] == "train").any():
        raise TrainingError("The file's splits have no row in `train`. Leave --split-column out to split it here.")
    rows = rows.copy()
    if not (rows["split"] == "validation").any():
        train = rows[rows["split"] == "train"]
        rows.loc[train.index, "split"] = _split(train, ("validation",), seed)
    known = set(rows.loc[rows["split"] == "train", "label"])
    if others := sorted(set(rows["label"]) - known):
        lines = ", ".join(map(str, rows.loc[rows["label"].isin(others), "line"][:5]))
        raise TrainingError(
            f"The file's train split has no text with the label {', '.join(map(repr, others))} (line {lines}): nothing "
            f"can learn it. Move rows there, or leave --split-column out to split the file here."
        )
    return rows


def leaks(rows: pd.DataFrame) -> int:
    """How many rows outside the train split are copies of one in it."""
    copies = copies_of(rows["text"])
    in_train = rows["split"] == "train"
    return int(copies[~in_train].isin(set(copies[in_train])).sum())


def _split(rows: pd.DataFrame, held_out: tuple[str, ...], seed: int) -> pd.Series:
    """The split of each row: of each label's different texts a tenth, at least one, goes into each of `held_out`.

    A text whose copies have different labels counts for the first one.
    """
    copies = copies_of(rows["text"])
    label_of = rows["label"].groupby(copies).first()
    dice = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    for label in sorted(set(label_of)):
        texts = dice.permutation(sorted(label_of.index[label_of == label]))
        count = max(1, round(HELD_OUT * len(texts)))
        if len(texts) <= count * len(held_out):  # of copies with different labels, another label had the rest
            count = 0
        for part, name in enumerate(held_out):
            split_of |= dict.fromkeys(texts[part * count : (part + 1) * count], name)
    return copies.map(lambda text: split_of.get(text, "train"))


def keep(rows: pd.DataFrame, source: Path, columns: dict[str, Any], run: Path) -> Path:
    """Write the texts with labels and splits into the run's folder; returns the file.

    Raises:
        TrainingError: the run's folder holds other data.
    """
    file = io.StringIO()
    rows[["text", "label", "split", "line"]].to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    content = file.getvalue().encode("utf-8")
    path = run / DATA_FILE
    if path.is_file() and path.read_bytes() != content:
        raise TrainingError(
            f"{run} holds a run on other data or another split ({path}). Choose another folder with --run, or remove "
            f"{run}."
        )
    run.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    counts = {split: int((rows["split"] == split).sum()) for split in SPLITS}
    described = {
        "file": source.name,
        "sha256": sha256_of(source),
        "columns": columns,
        "seed": SEED,
        "rows": counts,
    }
    (run / SOURCE_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
