"""The model card for people: `README.md`, made from `card.json` with the template `card.md.jinja`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from training.export.lineage import trained_on_other_labels
from training.export.picture import PICTURE_FILE, printable
from training.measure import behaviour
from training.measure.figures import CALIBRATION_BINS
from training.splits import SPLITS
from training.stages.record import inputs_of_record, is_record, stages_of

TEMPLATE: Final = Path(__file__).with_name("card.md.jinja")


def to_markdown(card: Mapping[str, Any], name: str, parameters: int, size_bytes: int) -> str:
    """Render the model card.

    Args:
        card: content of `card.json`.
        name: the model's name.
        parameters: number of the network's parameters.
        size_bytes: size of the exported model's files.
    """
    recipes = sorted(card["cross_validation"].items(), key=lambda recipe: float(recipe[1]["accuracy"]["mean"]))
    return (
        _environment()
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            card=card,
            stages=stages_of(card),
            name=name,
            parameters=parameters,
            size_bytes=size_bytes,
            splits=SPLITS,
            picture=PICTURE_FILE,
            calibration_bins=CALIBRATION_BINS,
            apart=stages_of(card).get("classifier", {}).get("apart"),
            recipes=recipes,
            calibrated_apart=[recipe for recipe, figures in recipes if figures.get("calibrated_apart")],
            behaviour=behaviour.to_table([behaviour.Result(**result) for result in card["behaviour"]]),
            trained_on_other_labels=trained_on_other_labels(card),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        autoescape=False,  # Markdown, not HTML: the filter `escaped` escapes it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "code": code_span, "number": format, "last_metrics": _last_metrics}
    environment.filters["inputs"] = inputs_of_record
    environment.tests["record"] = is_record
    return environment


def escaped(text: str) -> str:
    """Escape a label or a name, so that Markdown shows it as it is, inside and outside a table."""
    return re.sub(r"([\\`*\[\]<>|#~$&]|(?<!\w)_|_(?!\w))", r"\\\1", printable(text))


def code_span(text: str) -> str:
    """Format a command or a file name as a Markdown code span, with more backticks than are side by side in it."""
    backticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{backticks}{space}{printable(text)}{space}{backticks}"


def _last_metrics(record: Mapping[str, Any]) -> str:
    """Format the metrics of a stage's last epoch."""
    epoch = (record["epochs"] or [{}])[-1]
    metrics = {name: value for name, value in epoch.items() if name not in ("phase", "seconds")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
