"""Fastai learners of many kinds, each trained briefly, exported, archived and compared with fastai's `predict`.

    python -m tests.training.learners --texts labelled.tsv

`labelled.tsv` has lines of label<TAB>text. The table that the command prints is in `docs/reference/learners.md`;
`--write` puts it there. Each kind takes from a few seconds to a minute of one core.
"""

import argparse
import contextlib
import html
import io
import json
import shutil
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from fastai.text.all import (
    AWD_LSTM,
    BaseTokenizer,
    Callback,
    CategoryBlock,
    ColReader,
    CrossEntropyLossFlat,
    DataBlock,
    EarlyStoppingCallback,
    FocalLossFlat,
    GradientAccumulation,
    GradientClip,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    MultiCategoryBlock,
    RandomSplitter,
    RegressionBlock,
    SaveModelCallback,
    SentencePieceTokenizer,
    ShowGraphCallback,
    SpacyTokenizer,
    TextBlock,
    TextDataLoaders,
    TextLearner,
    accuracy,
    awd_lstm_clas_config,
    awd_lstm_lm_config,
    defaults,
    language_model_learner,
    lowercase,
    set_seed,
    text_classifier_learner,
)
from torch import nn

from handler.classifier import TextClassifier
from handler.exported import Probabilities
from handler.service import MODEL_FOLDER
from handler.task import Task
from tests.paths import LEARNERS, ROOT
from training import cli
from training.export.learner_file import read_learner

PAGE = ROOT / "docs" / "reference" / "learners.md"
BEGIN, END = "<!-- learners: begin -->\n", "<!-- learners: end -->\n"
TOLERANCE = 1e-5
"""Maximum difference of an exported model's output from fastai's."""
CLEAR = 0.03
"""Difference of two probabilities from which a label is clear."""
TRAIN, CHOOSE, MEASURE = 600, 300, 300
"""Numbers of texts: to train on, for `archive --texts`, and to measure on."""
PREDICTED = 20
"""Number of texts that fastai predicts, one at a time."""
SMALL = {"emb_sz": 64, "n_hid": 128, "n_layers": 2}

Rows = pd.DataFrame
"""A table with the columns `text` and `label`."""


@dataclass(frozen=True)
class Kind:
    """A kind of learner."""

    name: str
    learner: Callable[[Rows, Path], Any]
    """Function that trains a learner, or a list of learners to export together; it may also return a learner's file."""
    rows: Callable[[Rows], Rows] = field(default=lambda rows: rows)
    """Function that returns the labelled texts of this kind."""


@dataclass(frozen=True)
class Outcome:
    """The result of exporting and archiving a learner."""

    refused: str = ""
    """The error message; empty if the learner was exported."""
    exported: float = float("nan")
    """Largest difference of an output of the exported model from fastai's `predict`."""
    precision: str = ""
    stated: float = float("nan")
    """Largest difference of the archive from float32, as `archive` states it."""
    served: float = float("nan")
    """Largest difference of the archive from float32, measured on other texts."""
    changed: int = 0
    """Number of texts whose predicted labels differ in the archive."""
    clear: int = 0
    """Number of those texts whose label is clear.

    The two best probabilities differ by more than `CLEAR`; in a multi-label classifier, the changed label's probability
    is that far from its threshold.
    """
    measured: int = 0


# Functions that return the texts of a kind.


def few(rows: Rows) -> Rows:
    """Return fewer texts, for a learner that takes long to train."""
    return rows[:450]


def two_labels(rows: Rows) -> Rows:
    return rows[rows["label"] != "neutral"]


def relabelled(names: dict[str, Any], rows: Rows) -> Rows:
    return rows.assign(label=rows["label"].map(names))


def fifty_labels(rows: Rows) -> Rows:
    """Label each text with the first of fifty words in it."""
    result = rows["text"].str.lower().str.extract(rf"\b({FIFTY_WORDS})\b")[0]
    return rows.assign(label=result)[result.notna()]


def several_labels(rows: Rows) -> Rows:
    """Label each text with its opinion and with the marks in it."""
    marks = {"asks": "?", "shouts": "!", "links": "http", "mentions": "@"}
    labels = [
        ";".join([label, *(name for name, mark in marks.items() if mark in text)])
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    return rows.assign(label=labels)


def numbers(rows: Rows) -> Rows:
    return rows.assign(label=rows["label"].map({"negative": -1.0, "neutral": 0.0, "positive": 1.0}))


def long_texts(rows: Rows) -> Rows:
    """Join forty texts with the same label to one text."""
    joined = []
    for label, group in rows.groupby("label"):
        texts = list(group["text"])
        joined += [(" ".join(texts[start : start + 40]), label) for start in range(0, len(texts) - 39, 10)]
    return pd.DataFrame(joined, columns=["text", "label"]).sample(240, random_state=1)


def with_a_title(rows: Rows) -> Rows:
    return rows.assign(title=rows["text"].str.split().str[:3].str.join(" "))


FIFTY_WORDS = (
    "tomorrow|today|tonight|night|day|time|love|good|great|best|happy|see|going|get|got|like|know|want|think|people|"
    "game|first|last|week|year|new|birthday|morning|sunday|monday|friday|saturday|thursday|world|man|home|watch|play|"
    "show|come|back|make|need|live|music|team|fans|party|film|book"
)


# Functions that train learners.


def trained(
    rows: Rows,
    folder: Path,
    *,
    block: dict[str, Any] | None = None,
    labels: Any = CategoryBlock,
    target: Any = None,
    columns: Any = "text",
    sizes: dict[str, Any] | None = None,
    epochs: int = 3,
    unfrozen: bool = True,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Train a learner as in fastai's tutorial, without pretrained weights."""
    data = DataBlock(
        blocks=(TextBlock.from_df(columns, **({"n_workers": 1} | (block or {}))), labels),
        get_x=ColReader("text"),
        get_y=target or ColReader("label"),
        splitter=RandomSplitter(0.1, seed=1),
    ).dataloaders(rows, bs=32, seq_len=(block or {}).get("seq_len", 72), path=folder)
    learner = text_classifier_learner(
        data,
        AWD_LSTM,
        config=awd_lstm_clas_config | SMALL | (sizes or {}),
        pretrained=False,
        drop_mult=0.3,
        **options,
    )
    if not unfrozen:
        learner.freeze_to(-1)
    learner.add_cbs(callbacks)
    if epochs:
        learner.fit_one_cycle(epochs, 1e-2)
    return learner


def forward_and_backward(rows: Rows, folder: Path) -> Any:
    return [trained(rows, folder), trained(rows, folder, block={"backwards": True}, backwards=True)]


def from_a_csv(rows: Rows, folder: Path) -> Any:
    """Train a learner in the shortest way, with `TextDataLoaders.from_csv`."""
    rows.to_csv(folder / "texts.csv", index=False)
    data = TextDataLoaders.from_csv(folder, "texts.csv", text_col="text", label_col="label", bs=32, seed=1)
    config = awd_lstm_clas_config | SMALL
    learner = text_classifier_learner(data, AWD_LSTM, config=config, drop_mult=0.3, pretrained=False, metrics=accuracy)
    learner.fit_one_cycle(3, 1e-2)
    return learner


def in_half_precision(rows: Rows, folder: Path) -> Any:
    return trained(rows, folder, epochs=1).to_fp16()


def with_the_models_weights_in_half_precision(rows: Rows, folder: Path) -> Any:
    learner = trained(rows, folder, epochs=1)
    learner.model.half()
    return learner


def with_more_of_training(rows: Rows, folder: Path) -> Any:
    callbacks = [EarlyStoppingCallback("accuracy"), ShowGraphCallback(), GradientAccumulation(64)]
    return trained(rows, folder, metrics=accuracy, callbacks=callbacks)


def with_class_weights(rows: Rows, folder: Path) -> Any:
    return trained(rows, folder, loss_func=CrossEntropyLossFlat(weight=torch.tensor([2.0, 1.0, 3.0])))


def sentence_pieces(rows: Rows, folder: Path) -> Any:
    tokenizer = SentencePieceTokenizer(vocab_sz=1_000, cache_dir=folder / "pieces")
    return trained(rows, folder, block={"tok": tokenizer})


def language_model(rows: Rows, folder: Path) -> Any:
    data = TextDataLoaders.from_df(rows, path=folder, text_col="text", is_lm=True, seed=1)
    learner = language_model_learner(data, AWD_LSTM, config=awd_lstm_lm_config | SMALL, pretrained=False)
    learner.fit_one_cycle(1, 1e-2)
    return learner


def tabular(rows: Rows, folder: Path) -> Any:
    table = rows.assign(length=rows["text"].str.len().astype(float))
    data = TabularDataLoaders.from_df(table, path=folder, cont_names=["length"], y_names="label")
    return tabular_learner(data)


def collaborative(rows: Rows, folder: Path) -> Any:
    ratings = pd.DataFrame({"user": rows["label"], "item": rows["text"].str[:3], "rating": 1.0})
    return collab_learner(CollabDataLoaders.from_df(ratings, path=folder))


def of_images(rows: Rows, folder: Path) -> Any:
    """Write a file as of `vision_learner`, whose network is from torchvision, which is not installed here."""
    name = "torchvision.models.resnet"
    modules: dict[str, Any] = {part: types.ModuleType(part) for part in ("torchvision", "torchvision.models", name)}
    block = modules[name].BasicBlock = type("BasicBlock", (nn.Conv2d,), {"__module__": name})
    body = nn.Sequential(nn.Conv2d(3, 4, 3), block(4, 4, 3))
    data = trained(rows, folder, epochs=0).dls
    with mock.patch.dict(sys.modules, modules):
        Learner(data, nn.Sequential(body, nn.Linear(4, 3)), loss_func=CrossEntropyLossFlat()).export("images.pkl")
    return folder / "images.pkl"


def another_architecture(rows: Rows, folder: Path) -> Any:
    learner = trained(rows, folder, epochs=1)
    return TextLearner(learner.dls, Transformer(len(learner.dls.vocab[0]), 3), loss_func=CrossEntropyLossFlat())


class Transformer(nn.Module):
    """A small transformer encoder in a TextLearner."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.head = nn.Linear(32, labels)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.layer(self.embedding(ids)).mean(1))
        return outputs


class OtherRecurrence(nn.Module):
    """A recurrent layer that is not an LSTM, such as the QRNN of fastai 1, which fastai 2 no longer has."""

    def forward(self, inputs: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        return inputs.cumsum(1), state


def with_another_recurrence(rows: Rows, folder: Path) -> Any:
    learner = trained(rows, folder, epochs=0, sizes={"n_layers": 1})
    learner.model[0].module.rnns[0] = OtherRecurrence()
    return learner


def shout_less(text: str) -> str:
    return text.replace("!", ".")


def with_a_rule_of_its_own(rows: Rows, folder: Path) -> Any:
    return trained(rows, folder, epochs=1, block={"rules": [*defaults.text_proc_rules, shout_less]})


class Louder(Callback):  # type: ignore[misc]  # fastai has no types
    """A callback that changes the predictions."""

    order = 100

    def after_pred(self) -> None:
        self.learn.pred = 2 * self.pred


class Counting(Callback):  # type: ignore[misc]
    """A callback that does not change the predictions."""

    batches = 0

    def after_batch(self) -> None:
        self.batches += 1


class MissingPart(NamedTuple):
    """A part of a learner whose module exists only where the learner is trained."""

    source: str
    """Source of the module, which defines `part`."""

    options: Callable[[Any], dict[str, Any]]
    """Function that returns the options of `trained` for the part."""

    module: str = "my_project"


MISSING_PARTS = {
    "callback": MissingPart(
        "from fastai.callback.core import Callback\nclass Part(Callback): pass\npart = Part()",
        lambda part: {"callbacks": [part]},
    ),
    "logger": MissingPart(
        "from fastai.callback.core import Callback\nclass WandbCallback(Callback): pass\npart = WandbCallback()",
        lambda part: {"callbacks": [part]},
        module="fastai.callback.wandb",
    ),
    "loss": MissingPart(
        "from torch.nn import functional as F\ndef part(outputs, targets): return F.cross_entropy(outputs, targets)",
        lambda part: {"loss_func": part},
    ),
    "metric": MissingPart(
        "def part(outputs, targets): return (outputs.argmax(-1) == targets).float().mean()",
        lambda part: {"metrics": [part], "callbacks": [SaveModelCallback(monitor="part")]},
    ),
    "optimizer": MissingPart(
        "from fastai.optimizer import Adam\ndef part(*parameters, **options): return Adam(*parameters, **options)",
        lambda part: {"opt_func": part},
    ),
    "rule": MissingPart(
        "def part(text): return text.replace('!', '.')",
        lambda part: {"block": {"rules": [lowercase, part]}},
    ),
}


def with_a_missing(name: str, rows: Rows, folder: Path) -> Any:
    """Write a learner's file that names a class or function of a missing module."""
    source, options, module_name = MISSING_PARTS[name]
    module: Any = types.ModuleType(module_name)
    with mock.patch.dict(sys.modules, {module_name: module}):
        exec(source, module.__dict__)
        trained(rows, folder, epochs=1, **options(module.part)).export("learner.pkl")
    return folder / "learner.pkl"


def something_else(rows: Rows, folder: Path) -> Any:
    """Write a file with `learner.save`."""
    learner = trained(rows, folder, epochs=1)
    return learner.save("weights")


def data_loaders(rows: Rows, folder: Path) -> Any:
    torch.save(trained(rows, folder, epochs=1).dls.new_empty(), folder / "data.pkl")
    return folder / "data.pkl"


def there_already(file: Path, _rows: Rows, _folder: Path) -> Any:
    return file


OPINIONS = ("negative", "neutral", "positive")
LONG_NAMES = {"negative": 'not good: "bad"', "neutral": "it's, well, so-so", "positive": "good \\ <b>great</b>"}
UNICODE_NAMES = {"negative": "schlecht 😠", "neutral": "Über 中立", "positive": "très bien"}

KINDS = (
    Kind("3 classes, embedding 64, two layers of 128", trained),
    Kind("2 classes", trained, two_labels),
    Kind("50 classes", partial(trained, epochs=6), fifty_labels),
    Kind(
        "fastai's own sizes, 400, three layers of 1152",
        partial(trained, sizes={"emb_sz": 400, "n_hid": 1152, "n_layers": 3}, epochs=1),
        few,
    ),
    Kind("one layer", partial(trained, sizes={"n_layers": 1})),
    Kind("four layers, embedding 32", partial(trained, sizes={"n_layers": 4, "emb_sz": 32})),
    Kind("`lin_ftrs=[100, 30]`, `ps=[0.2, 0.3]`", partial(trained, lin_ftrs=[100, 30], ps=[0.2, 0.3])),
    Kind(
        "texts of 1,000 tokens, `seq_len=50`, `max_len=400`",
        partial(trained, seq_len=50, max_len=400, block={"seq_len": 50}),
        long_texts,
    ),
    Kind("`backwards=True`", partial(trained, block={"backwards": True}, backwards=True)),
    Kind("forward and backward, exported together", forward_and_backward),
    Kind("frozen but for its head", partial(trained, unfrozen=False)),
    Kind("not trained", partial(trained, epochs=0)),
    Kind("labels with spaces, quotes, `\\` and tags", trained, partial(relabelled, LONG_NAMES)),
    Kind("numbers as labels", trained, partial(relabelled, {"negative": 1, "neutral": 2, "positive": 5})),
    Kind("`TextDataLoaders.from_csv`, labels in other scripts", from_a_csv, partial(relabelled, UNICODE_NAMES)),
    Kind("label smoothing", partial(trained, loss_func=LabelSmoothingCrossEntropyFlat())),
    Kind("focal loss", partial(trained, loss_func=FocalLossFlat())),
    Kind("class weights", with_class_weights),
    Kind("`to_fp16()`", in_half_precision),
    Kind("`model.half()`", with_the_models_weights_in_half_precision),
    Kind("`SaveModelCallback`, `GradientClip`", partial(trained, callbacks=[SaveModelCallback(), GradientClip(0.1)])),
    Kind("`EarlyStoppingCallback`, `ShowGraphCallback`, `GradientAccumulation`", with_more_of_training),
    Kind(
        "tokens of its own (`special_toks`)",
        partial(trained, block={"tok": SpacyTokenizer(special_toks=[*defaults.text_spec_tok, "@user"])}),
    ),
    Kind("German (`SpacyTokenizer('de')`)", partial(trained, block={"tok": SpacyTokenizer("de")})),
    Kind("two columns of text", partial(trained, columns=["title", "text"]), with_a_title),
    Kind(
        "multi-label (`MultiCategoryBlock`)",
        partial(trained, labels=MultiCategoryBlock, target=ColReader("label", label_delim=";")),
        several_labels,
    ),
    Kind("regression (`RegressionBlock`)", partial(trained, labels=RegressionBlock), numbers),
    Kind("regression with `y_range`", partial(trained, labels=RegressionBlock, y_range=(-1.2, 1.2)), numbers),
    Kind("`SentencePieceTokenizer`", sentence_pieces),
    Kind("`BaseTokenizer`", partial(trained, block={"tok": BaseTokenizer()}, epochs=1)),
    Kind("a rule of its own", with_a_rule_of_its_own),
    Kind("a callback that changes no prediction", partial(trained, callbacks=[Counting()], epochs=1)),
    Kind("a callback that changes predictions", partial(trained, callbacks=[Louder()], epochs=1)),
    Kind("a metric of a module that is missing", partial(with_a_missing, "metric")),
    Kind("a callback of a module that is missing", partial(with_a_missing, "callback")),
    Kind("an optimizer of a module that is missing", partial(with_a_missing, "optimizer")),
    Kind("`WandbCallback`, its package missing", partial(with_a_missing, "logger")),
    Kind("a loss of a module that is missing", partial(with_a_missing, "loss")),
    Kind("a rule of a module that is missing", partial(with_a_missing, "rule")),
    Kind("fastai 2.0.0, Python 3.8, spaCy 2", partial(there_already, LEARNERS / "fastai-2.0.0.pkl")),
    Kind("fastai 2.7.13, from a notebook", partial(there_already, LEARNERS / "fastai-2.7.13-notebook.pkl")),
    Kind("written on Windows", partial(there_already, LEARNERS / "windows.pkl")),
    Kind("bidirectional (`bidir=True`)", partial(trained, sizes={"bidir": True}, epochs=1)),
    Kind("another recurrence than LSTM (QRNN)", with_another_recurrence),
    Kind("a transformer in a `TextLearner`", another_architecture),
    Kind("a language model", language_model),
    Kind("a tabular learner", tabular),
    Kind("a collaborative filter (`collab_learner`)", collaborative),
    Kind("an image classifier", of_images),
    Kind("weights that `learner.save` wrote", something_else),
    Kind("a pickle of `DataLoaders`", data_loaders),
)


# The row of a learner.


def outcome_of(kind: Kind, table: Rows, folder: Path) -> Outcome:
    """Train a learner of a kind on the first texts, export and archive it, and measure on the last texts."""
    rows = kind.rows(table)
    train = rows[: min(TRAIN, len(rows) * 2 // 3)]
    held_out = rows[len(train) :]
    choose, measure = held_out[: min(CHOOSE, len(held_out) // 2)], held_out[len(held_out) // 2 :][:MEASURE]
    set_seed(1, reproducible=True)
    with contextlib.redirect_stdout(io.StringIO()):  # fastai's progress
        made = kind.learner(train, folder)
    files = []
    for number, learner in enumerate(made if isinstance(made, list) else [made]):
        files.append(learner if isinstance(learner, Path) else folder / f"learner{number}.pkl")
        if not isinstance(learner, Path):
            learner.export(files[-1])
    return outcome_of_files(files, list(choose["text"]), list(measure["text"]), folder)


def outcome_of_files(files: Sequence[Path], choose: Sequence[str], texts: Sequence[str], folder: Path) -> Outcome:
    """Export and archive learners, and compare the model with fastai and the archive with the model.

    Args:
        files: files of learners that are exported together.
        choose: texts for `archive --texts`.
        texts: texts to measure on.
        folder: folder for the exported model and the archive.
    """
    model, mar = folder / "model", folder / "model.mar"
    options = [option for file in files for option in ("--learner", str(file))]
    code, message = training("export", *options, "--to", str(model))
    if code:
        return Outcome(refused=message.replace(f"{folder}/", "").removeprefix("error: ").strip())
    classifier = TextClassifier.load(model)
    learners = [read_learner(file) for file in files]
    exported = max(difference(fastais(learners, text), classifier.predict([text])[0]) for text in texts[:PREDICTED])
    assert exported <= TOLERANCE, f"the exported model differs from fastai's predict by {exported}"
    (folder / "choose.txt").write_text("\n".join(" ".join(text.split()) for text in choose) + "\n", encoding="utf-8")
    code, message = training("archive", "--model", str(model), "--to", str(mar), "--texts", str(folder / "choose.txt"))
    assert code == 0, message
    shutil.unpack_archive(mar, folder / "unpacked", "zip")
    card = json.loads((folder / "unpacked" / MODEL_FOLDER / "card.json").read_text(encoding="utf-8"))["archive"]
    served = TextClassifier.load_archived(folder / "unpacked" / MODEL_FOLDER, threads=1)
    result, reference = served.predict(texts), classifier.predict(texts)
    changed = [
        margin(classifier.task, expected)
        for expected, output in zip(reference, result, strict=True)
        if classifier.task.name != "regression"
        and classifier.task.predicted(expected) != classifier.task.predicted(output)
    ]
    return Outcome(
        exported=exported,
        precision=card["precision"],
        stated=card.get("differences", {}).get(card["precision"], {}).get("largest", 0.0),
        served=difference(reference, result) / span(classifier.task, reference),
        changed=len(changed),
        clear=sum(distance > CLEAR for distance in changed),
        measured=len(texts),
    )


def span(task: Task, outputs: Probabilities) -> float:
    """Return the range of a regression's values, of which differences are a share; 1 for other tasks."""
    low, high = (outputs.min(), outputs.max()) if task.name == "regression" else (0, 1)
    low, high = task.value_range or (low, high)
    return float(high - low)


def margin(task: Task, outputs: Probabilities) -> float:
    """Return the smallest change of a text's outputs (C,) with which other labels are predicted."""
    if task.name == "multi-label":
        return float(np.abs(outputs - np.array(task.thresholds)).min())
    second, best = np.sort(outputs)[-2:]
    return float(best - second)


def training(*arguments: str) -> tuple[int, str]:
    """Run the training command line; return the exit code and the output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.main(arguments)
    return code, out.getvalue()


def fastais(learners: Sequence[Any], text: str) -> Any:
    """Return the mean of the learners' predictions by fastai."""
    outputs = []
    for learner in learners:
        with learner.no_bar(), learner.no_logging():
            outputs.append(learner.predict(text)[2].float().numpy())
    return np.mean(outputs, axis=0)


def difference(left: Any, right: Any) -> float:
    return float(np.abs(np.asarray(left, dtype=float).reshape(-1) - np.asarray(right, dtype=float).reshape(-1)).max())


def row_of(kind: Kind, outcome: Outcome) -> str:
    if outcome.refused:
        return f"| {kind.name} | refused: {cell(outcome.refused)} | | | | |"
    return (
        f"| {kind.name} | {outcome.exported:.0e} | {outcome.precision} | {outcome.stated:.3f} | {outcome.served:.3f} | "
        f"{outcome.changed} ({outcome.clear}) of {outcome.measured} |"
    ).replace("| 0e+00 |", "| 0 |")


def cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


FAILED = "failed"
HEAD = (
    "| learner | exported | archive | stated | measured | labels changed |",
    "|---|---|---|---|---|---|",
)


def rows_of(kinds: Sequence[Kind], table: Rows) -> Iterator[str]:
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                yield row_of(kind, outcome_of(kind, table, Path(folder)))
            except Exception as error:  # a failure is a row of the table, too
                traceback.print_exc()
                yield f"| {kind.name} | **{FAILED}**: {type(error).__name__}: {cell(str(error))} | | | | |"


def read_texts(file: Path) -> Rows:
    lines = [line.partition("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    table = pd.DataFrame({"text": [text for _, _, text in lines], "label": [label for label, _, _ in lines]})
    return table.sample(frac=1, random_state=1, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.training.learners", description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE.tsv", help="lines of label<TAB>text")
    parser.add_argument("--only", default="", metavar="WORDS", help="kinds with these words in their names")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    table = read_texts(options.texts)
    result = [*HEAD]
    print(*HEAD, sep="\n", flush=True)
    for row in rows_of([kind for kind in KINDS if options.only in kind.name], table):
        print(row, flush=True)
        result.append(row)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, remainder = page.partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n".join(result) + "\n" + END + remainder.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
