"""An exported model's card: where it comes from and how good it is, for programs (`card.json`, which the
running server tells) and for people (`README.md` beside it, made from the former)."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np

from handler.exported import CARD_FILE
from training.data import sha256_of
from training.errors import TrainingError
from training.measure import behaviour
from training.measure.evaluate import CALIBRATION_BINS
from training.splits import SPLITS
from training.stages.products import ENCODER_FILE, GENERAL_FILE, LEARNER_FILE, TEACHER_FILE
from training.stages.record import command_line, finished_stage, record_of, source_commit, timestamp, versions
from training.stages.warm_start import start_of

PICTURE: Final = "validation.png"
MOST_WITH_NUMBERS, FEW_NAMES = 12, 5
"""Labels of a confusion matrix up to which its cells show numbers, and its columns' names stand upright."""

PRODUCTS: Final = {
    "general": GENERAL_FILE,
    "language-model": ENCODER_FILE,
    "general-teacher": TEACHER_FILE,
    "distil": ENCODER_FILE,
    "teacher": TEACHER_FILE,
    "classifier": LEARNER_FILE,
}
"""What stages after it are made from, of each stage, in their order."""

LABELS_STAGES: Final = ("teacher", "classifier")
"""That are trained on the data's labels."""


def card_of_run(run: Path, notes: str, stage: str = "classifier") -> dict[str, Any]:
    """A card, without metrics, of what a stage of a run made.

    Args:
        run: the run's folder. Its stages that this one was not made from are left out, and so are stages that are
            not in it (a general model from elsewhere).
        notes: what no record knows: purpose, sources, licences. Markdown.
        stage: one that exports a learner.

    Raises:
        TrainingError: the run has no such stage, or it is not finished.
    """
    if finished_stage(run / stage) is None:
        raise TrainingError(f"{run} has no finished {stage}: run `python -m training all` first.")
    records = {name: record_of(run / name) for name in stages_behind(run, stage)}
    # Of these two, one alone began with an exported model: what a classifier begins with is no run's distillation.
    begun = {"distil", "classifier"} & records.keys()
    if start := next(filter(None, (start_of(run, name) for name in begun)), None):
        before = json.loads((start / CARD_FILE).read_text(encoding="utf-8"))
        earlier = {f"earlier {name}": record for name, record in before["stages"].items()}
        records = earlier | records
    if stage != "classifier":
        return new_card(notes) | {"stages": records}
    files = sorted((run / "cross-validation").glob("*.json"))
    recipes = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    return new_card(notes) | {"stages": records, "cross_validation": recipes}


def stages_behind(run: Path, stage: str) -> list[str]:
    """The stages of a run whose products went into one of them, and that one, in their order.

    Which they are is told by the hashes of what each was trained on: a run's folder may hold others, too, left by a
    command before or after.
    """
    made_by = {sha256_of(path): name for name, file in PRODUCTS.items() if (path := run / name / file).is_file()}
    found: set[str] = set()
    open_ends = {stage}
    while open_ends:
        found |= open_ends
        digests = {digest for name in open_ends for digest in record_of(run / name)["inputs"].values()}
        open_ends = {made_by[digest] for digest in digests & made_by.keys()} - found
    return [name for name in PRODUCTS if name in found]


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
        "cross_validation": {},
        "behaviour": [],
    }


def trained_on(card: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the CSV file that a model was trained on last; None where its card does not tell."""
    last = next(reversed(card["stages"].values()), None)
    return _data_of(last) if last else None


def _data_of(record: Mapping[str, Any]) -> str | None:
    inputs: Mapping[str, str] = record["inputs"]
    return inputs.get("data", inputs.get("tweets"))  # the second is its name in earlier records


def began_with_other_tweets(card: Mapping[str, Any]) -> bool:
    """Whether labels of another file than the last one were trained on at an earlier stage."""
    seen = {_data_of(record) for name, record in card["stages"].items() if name.split()[-1] in LABELS_STAGES}
    return bool(seen - {None, trained_on(card)})


def to_markdown(card: Mapping[str, Any], name: str, parameters: int, size_bytes: int) -> str:
    """The card for people."""
    lines = [f"# Model card: {escaped(name)}", ""]
    lines += ["Made by `python -m training export` from `card.json`; edit that command's `--notes`, not this file.", ""]
    if card["notes"]:
        lines += [card["notes"], ""]
    lines += _start(card)
    lines += ["## How good", "", *_metrics(card["metrics"], card.get("baseline"))]
    lines += [*_calibrated_apart(card["stages"]), *_cross_validation(card["cross_validation"])]
    lines += _behaviour(card["behaviour"])
    if began_with_other_tweets(card):
        lines += [
            "The model that it began with was trained on the labels of another file. Of texts that are in both files, "
            "the figures above are too good.",
            "",
        ]
    lines += ["## How it was made", "", *_stages(card["stages"])]
    made = card["exported"]
    lines += [
        f"- Size: {parameters:,} parameters, {size_bytes / 1e6:.1f} MB.",
        f"- Exported {made['at']} by {code_span(made['command'])}"
        + (f", commit `{made['commit']}`." if made["commit"] else "."),
        f"- Versions: {', '.join(f'{package} {number}' for package, number in made['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A label or a name as Markdown that shows it as it is, in a table or outside one."""
    return re.sub(r"([\\`*\[\]<>|#~$&]|(?<!\w)_|_(?!\w))", r"\\\1", _printable(text))


def code_span(text: str) -> str:
    """A command or a file's name as Markdown code, between more backticks than stand side by side in it."""
    backticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{backticks}{space}{_printable(text)}{space}{backticks}"


def _printable(text: str) -> str:
    """On one line: control characters, a line's end among them, by their Python escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _start(card: Mapping[str, Any]) -> list[str]:
    """Of a model that `fit` made: what it began with, and which recipe it has."""
    if "start" not in card:
        return []
    start, recipe = card["start"], card["recipe"]
    return [
        f"Trained by the recipe for {recipe['name']}: {recipe['what']}.",
        "",
        f"It began with {code_span(start['name'])}, {start['what']}. Terms of these weights: {start['permits']}. The "
        f"terms of the labelled texts apply, too.",
        "",
    ]


def _metrics(metrics: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> list[str]:
    if not metrics:
        return ["Not measured at export.", ""]
    lines = ["| split | texts | accuracy | macro-F1 | calibration error |", "|---|---|---|---|---|"]
    lines += [
        f"| {split} | {of['n']:,} | {of['accuracy']:.4f} | {of['macro_f1']:.4f} "
        f"| {of['expected_calibration_error']:.3f} |"
        for split in SPLITS
        if (of := metrics.get(split))
    ]
    if baseline:
        lines += [
            f"| {split}, {baseline['name']} | {of['n']:,} | {of['accuracy']:.4f} | {of['macro_f1']:.4f} "
            f"| {of['expected_calibration_error']:.3f} |"
            for split in SPLITS
            if (of := baseline["metrics"].get(split))
        ]
    if "validation" not in metrics:
        return [*lines, ""]
    figures = metrics["validation"]
    lines += [
        "",
        f"The calibration error is the expected one, over {CALIBRATION_BINS} bins. On the validation split:",
        "",
        f"![Confusion matrix and reliability diagram]({PICTURE})",
        "",
        "| class | precision | recall | F1 | texts |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {escaped(label)} | {of['precision']:.3f} | {of['recall']:.3f} | {of['f1']:.3f} | {of['support']} |"
        for label, of in figures["per_class"].items()
    ]
    if "per_airline" in figures:
        lines += ["", "| airline | accuracy | texts |", "|---|---|---|"]
        lines += [
            f"| {escaped(name)} | {of['accuracy']:.3f} | {of['n']} |" for name, of in figures["per_airline"].items()
        ]
    return [*lines, ""]


def _calibrated_apart(stages: Mapping[str, Any]) -> list[str]:
    apart = stages.get("classifier", {}).get("apart")
    if not apart:
        return []
    return [
        f"A temperature and a bias for each label were fitted on the validation split. With those of every fifth text "
        f"fitted on the others, its accuracy is {apart['accuracy']:.4f}, its macro-F1 {apart['macro_f1']:.4f} and its "
        f"calibration error {apart['expected_calibration_error']:.3f}.",
        "",
    ]


def _cross_validation(recipes: Mapping[str, Any]) -> list[str]:
    if not recipes:
        return []
    lines = [
        "Five-fold cross-validation over the train and validation splits (mean and standard deviation over the folds; "
        "minutes of training a fold, without the stages that folds share; milliseconds for one text alone, of a "
        "classifier of this project in float32):",
        "",
        "| recipe | accuracy | macro-F1 | calibration error | minutes | MB | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    ascending = sorted(recipes.items(), key=lambda item: float(item[1]["accuracy"]["mean"]))
    for name, of in ascending:
        spread = [f"{of[figure]['mean']:.4f} ± {of[figure]['deviation']:.4f}" for figure in ("accuracy", "macro_f1")]
        cost = [f"{of[figure]['mean']:.1f}" for figure in ("minutes", "megabytes", "milliseconds")]
        error = f"{of['expected_calibration_error']['mean']:.3f}"
        lines.append(f"| {' | '.join([escaped(name), *spread, error, *cost])} |")
    if apart := [name for name, of in ascending if of.get("calibrated_apart")]:
        lines += ["", f"Each fifth of a fold's texts was calibrated on the other four: {', '.join(apart)}."]
    lines += ["", *(f"- {escaped(name)}: {code_span(of['command'])}" for name, of in ascending)]
    return [*lines, ""]


def _behaviour(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return []
    lines = [
        "Behavioural tests of short English texts, many about airlines (`python -m training behaviour`), after "
        "CheckList (Ribeiro et al., ACL 2020):",
        "",
        *behaviour.to_table([behaviour.Result(**of) for of in results]),
    ]
    return [*lines, ""]


def plot(figures: Mapping[str, Any], picture: Path) -> None:
    """Confusion matrix and reliability diagram of one split's figures, as a PNG file."""
    labels, counts = figures["labels"], np.array(figures["confusion_matrix"])
    side = max(4, 2 + len(labels) / 4)  # inches; a label's name needs a quarter of one
    drawing, (left, right) = plt.subplots(1, 2, figsize=(side + 5.5, side), layout="constrained")
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts) if len(labels) <= MOST_WITH_NUMBERS else ():
        shade = "white" if shares[row, column] > 0.5 else "black"
        left.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", color=shade)
    ticks = range(len(labels))
    names = list(map(_printable, labels))
    left.set(xlabel="predicted", ylabel="true")
    turned = {"rotation": 90} if len(labels) > FEW_NAMES else {}
    left.set_xticks(ticks, names, parse_math=False, **turned)  # a `$` begins no formula
    left.set_yticks(ticks, names, parse_math=False)
    left.set_title("confusion matrix, share of the true class")
    n, confidence, accuracy = np.array(figures["reliability"]).T
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    right.scatter(confidence, accuracy, s=20 + 400 * n / n.sum(), alpha=0.7, label="a bin; area: texts in it")
    right.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean confidence", ylabel="accuracy")
    right.set_title(f"reliability, expected calibration error {figures['expected_calibration_error']:.3f}")
    right.grid(alpha=0.3)
    right.legend(loc="upper left")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a label in a script that no font here has
        drawing.savefig(picture, dpi=100)
    plt.close(drawing)


def _stages(stages: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, record in stages.items():
        epochs = record["epochs"] or [{}]
        last = {key: value for key, value in epochs[-1].items() if key not in ("phase", "seconds")}
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in last.items())
        lines += [
            f"- **{name}**: {code_span(record['command'])}"
            + (f", commit `{record['commit']}`" if record["commit"] else "")
            + f"; epochs: {len(record['epochs'])}, in {record['seconds'] / 60:.0f} minutes, "
            f"seed {record['settings']['seed']}; after the last: {shown}.",
        ]
        lines += [f"  - {code_span(source)}: SHA-256 `{digest}`" for source, digest in record["inputs"].items()]
    return lines
