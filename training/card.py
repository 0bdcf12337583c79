"""An exported model's card: where it comes from and how good it is, for programs (`card.json`, which the
running server tells) and for people (`README.md` beside it, made from the former)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.run import command_line, source_commit, timestamp, versions
from training.splits import SPLITS

STAGES = ("general", "language-model", "general-teacher", "distil", "teacher", "classifier")


def card_of_run(run: Path, notes: str) -> dict[str, Any]:
    """A card, without metrics, of a run's classifier.

    Args:
        run: the run's folder; stages that are not in it (a general model from elsewhere) are left out.
        notes: what no record knows: purpose, sources, licences. Markdown.

    Raises:
        TrainingError: the run has no finished classifier.
    """
    records = {
        stage: json.loads(path.read_text()) for stage in STAGES if (path := run / stage / "record.json").exists()
    }
    if records.get("classifier", {}).get("finished") is None:
        raise TrainingError(f"{run} has no finished classifier: run `python -m training all` first.")
    return new_card(notes) | {"stages": records}


def new_card(notes: str) -> dict[str, Any]:
    """A card with what is known of any export."""
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
    }


def to_markdown(card: Mapping[str, Any], name: str, parameters: int, size_bytes: int) -> str:
    """The card for people."""
    lines = [f"# Model card: {name}", ""]
    lines += ["Made by `python -m training export` from `card.json`; edit that command's `--notes`, not this file.", ""]
    if card["notes"]:
        lines += [card["notes"], ""]
    lines += ["## How good", "", *_metrics(card["metrics"])]
    lines += ["## How it was made", "", *_stages(card["stages"])]
    made = card["exported"]
    lines += [
        f"- Size: {parameters:,} parameters, {size_bytes / 1e6:.1f} MB.",
        f"- Exported {made['at']} by `{made['command']}`"
        + (f", commit `{made['commit']}`." if made["commit"] else "."),
        f"- Versions: {', '.join(f'{package} {number}' for package, number in made['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return ["Not measured at export.", ""]
    lines = ["| split | tweets | accuracy | macro-F1 |", "|---|---|---|---|"]
    lines += [
        f"| {split} | {of['n']:,} | {of['accuracy']:.4f} | {of['macro_f1']:.4f} |"
        for split in SPLITS
        if (of := metrics.get(split))
    ]
    lines.append("")
    figures = metrics["validation"]
    labels = figures["labels"]
    lines += ["By class, on the validation split; the last columns are the confusion matrix (predicted as):", ""]
    lines += ["| class | precision | recall | F1 | tweets |" + "".join(f" {label} |" for label in labels)]
    lines += ["|---|---|---|---|---|" + "---|" * len(labels)]
    for label, row in zip(labels, figures["confusion_matrix"], strict=True):
        of = figures["per_class"][label]
        counts = "".join(f" {count} |" for count in row)
        lines.append(
            f"| {label} | {of['precision']:.3f} | {of['recall']:.3f} | {of['f1']:.3f} | {of['support']} |{counts}"
        )
    return [*lines, ""]


def _stages(stages: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, record in stages.items():
        last = {key: value for key, value in record["epochs"][-1].items() if key not in ("phase", "seconds")}
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in last.items())
        lines += [
            f"- **{name}**: `{record['command']}`"
            + (f", commit `{record['commit']}`" if record["commit"] else "")
            + f"; epochs: {len(record['epochs'])}, in {record['seconds'] / 60:.0f} minutes, "
            f"seed {record['settings']['seed']}; after the last: {shown}.",
        ]
        lines += [f"  - `{source}`: SHA-256 `{digest}`" for source, digest in record["inputs"].items()]
    return lines
