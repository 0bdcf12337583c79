"""A stage of a training run: its files, its checkpoints, and how it resumes after an interruption.

A run is a folder, and each stage has a folder in it. A stage's folder contains:

- `record.json`: command, settings, seed, data hashes, versions, metrics by epoch, times (`training.stages.record`)
- `curves.png`: the metrics by epoch as a picture, drawn after each epoch of more than a minute and at the end
- `checkpoint.pth`: weights and optimizer state, written after each epoch and every `CHECKPOINT_MINUTES`
- `answers.pth`: the teacher's outputs for the texts, written every `CHECKPOINT_MINUTES` while they are computed
- the stage's products, written at the end (`training.stages.products`); then both checkpoint files are removed
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from fastai.text.all import (
    Callback,
    CancelBatchException,
    Learner,
    load_pickle,
    save_pickle,
    set_seed,
    to_device,
)
from torch import Tensor
from tqdm import tqdm

from handler.memory import give_freed_memory_back
from training.errors import TrainingError
from training.files import reading, replacing, write_json
from training.stages.lock import lock
from training.stages.record import (
    RECORD_FILE,
    command_line,
    differences,
    record_of,
    source_commit,
    timestamp,
    versions,
)

matplotlib.use("Agg")  # a server has no display
import matplotlib.pyplot as plt

CHECKPOINT_MINUTES = 3
"""Time between two checkpoints: the most training time that an interruption loses."""

TEXTS_AT_ONCE = 2_048
"""Number of texts for which outputs are computed between two checks of the time."""

LONG_EPOCH_SECONDS = 60
"""Duration of an epoch from which the curves are drawn after each epoch, not only at the end."""

LARGE_BLOCK_MIB = 16
"""Size from which the allocator takes a memory block directly from the system.

With glibc's defaults, the 2,884 steps of a language model on two cores grew to 22.5 GB. If every block from 1 MiB on
comes from the system, a third of the classifier's training time goes into allocation. Measured on one core (time of a
classifier's step) and with a 300/600/2 language model (memory):

| blocks from | ms per step | MB after 25 and 100 steps of the language model |
|---|---|---|
| 1 MiB | 357 | |
| 16 MiB | 249 | 930, 942 |
| 64 MiB | 234 | 1,067, 1,164 |
"""

HEAP_END_MIB = 128
"""Free memory at the end of the heap that the allocator keeps."""


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs with one set of trainable layer groups and one learning-rate cycle."""

    name: str
    epochs: int
    learning_rate: float | slice
    freeze_to: int
    """Index of the first layer group that trains (fastai's `Learner.freeze_to`); 0 trains all groups."""


@dataclass
class Stage:
    """The folder of one stage and its record.

    Raises:
        TrainingError: the folder has results of other settings or inputs, or a damaged record.
    """

    folder: Path
    settings: Any
    """The stage's settings: a dataclass with a field `seed`, and `weight_decay` if the stage trains a network."""

    inputs: dict[str, str]
    """SHA-256 of every other input that determines the result, by the input's name."""

    record: dict[str, Any] = field(init=False)
    _clock: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        relevant = {"settings": asdict(self.settings), "inputs": self.inputs}
        if self._record_path.exists():
            self.record = record_of(self.folder)
            before = {key: self.record[key] for key in relevant}
            if before == relevant:
                return
            if self._has_results():
                raise TrainingError(
                    f"{self.folder} contains a run with other settings or inputs: {differences(before, relevant)}. "
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

    def _has_results(self) -> bool:
        """Return whether the folder contains results, which other settings or inputs must not be mixed with.

        A stage whose data was refused leaves nothing but a record.
        """
        results = self.record["finished"] or self.record["epochs"]
        return bool(results) or self._outputs_path.exists() or self._checkpoint_path.exists()

    def is_done(self) -> bool:
        """Return whether an earlier run finished the stage; print a line if it did."""
        done = self.record["finished"] is not None
        if done:
            print(f"{self.folder}: already done")
        return done

    def begin(self) -> bool:
        """Write the record and seed all random number generators; return False if the stage is already done.

        Raises:
            TrainingError: another process is training the stage.
        """
        if self.is_done():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        lock(self.folder)
        self._write_record()
        self.seed()
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's LSTMs do by default
        return True

    def seed(self) -> None:
        """Seed all random number generators with the seed of the settings."""
        set_seed(self.settings.seed, reproducible=True)

    def finish(self, **results: Any) -> None:
        """Mark the stage as done, add `results` to its record, and remove its checkpoints."""
        if self.record["epochs"]:
            self._draw_curves()
        self.record |= {"finished": timestamp(), **results}
        self._write_record()
        self._checkpoint_path.unlink(missing_ok=True)
        self._outputs_path.unlink(missing_ok=True)

    def compute(self, texts: Sequence[str], function: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """Compute an output for each text, with a checkpoint every `CHECKPOINT_MINUTES` and a progress bar.

        A resumed run reads the outputs of the interrupted run from the checkpoint. At the end, all random number
        generators are seeded, so that a resumed run and an uninterrupted run continue with the same random numbers.

        Args:
            texts: the texts.
            function: returns the outputs of some texts, (texts, ...).

        Returns:
            The outputs, (texts, ...).

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        outputs = []
        if self._outputs_path.exists():
            with reading(self._outputs_path, f"remove {self._outputs_path}, and run the command again"):
                outputs.append(torch.load(self._outputs_path, weights_only=True)[:])  # fails if it is no tensor
        done = sum(map(len, outputs))
        saved = time.monotonic()
        with tqdm(total=len(texts), initial=done, unit="text", disable=None) as progress:
            for start in range(done, len(texts), TEXTS_AT_ONCE):
                outputs.append(function(texts[start : start + TEXTS_AT_ONCE]))
                progress.update(len(outputs[-1]))
                is_last = start + TEXTS_AT_ONCE >= len(texts)
                if is_last or time.monotonic() - saved >= 60 * CHECKPOINT_MINUTES:
                    outputs = [torch.cat(outputs)]
                    save_tensors(outputs[0], self._outputs_path)
                    saved = time.monotonic()
        self.seed()
        return torch.cat(outputs)

    def fit(self, learner: Learner, phases: Sequence[Phase]) -> None:
        """Train `learner` through `phases`, from the last checkpoint if there is one.

        A resumed run has the same order of batches as an uninterrupted run; the dropout masks of the interrupted epoch
        differ.

        Raises:
            TrainingError: the checkpoint is missing or damaged.
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
            if checkpoint and (start or done_batches):  # each phase starts with a new optimizer
                learner.opt.load_state_dict(checkpoint["optimizer"])
                callbacks.append(_Skip(start, done_batches, checkpoint["loss"]))
            checkpoint = None
            # A progress bar in a log file is a line for each step. Without a bar, fastai prints a line for each epoch.
            with nullcontext() if sys.stdout.isatty() else learner.no_bar():
                learner.fit_one_cycle(
                    phase.epochs,
                    phase.learning_rate,
                    wd=self.settings.weight_decay,
                    start_epoch=start,
                    cbs=callbacks,
                )

    def save(self, learner: Learner, batches: int) -> None:
        """Write the checkpoint, then the record: the files are consistent if the process is killed in between.

        Args:
            learner: the learner in training.
            batches: number of completed batches of the current epoch.
        """
        optimizer = learner.opt.state_dict()
        # Plain lists and numbers only, so that loading a checkpoint runs no code from it.
        hypers = [{name: float(value) for name, value in group.items()} for group in optimizer["hypers"]]
        state = {
            "model": learner.model.state_dict(),
            "optimizer": {"state": list(optimizer["state"]), "hypers": hypers},
            "epochs": self.record["epochs"],
            "batches": batches,
            "loss": float(learner.recorder.smooth_loss.value),
        }
        save_tensors(state, self._checkpoint_path)
        self._write_record()

    def epoch_done(self, learner: Learner, phase: str, seconds: float) -> None:
        """Add the metrics of a finished epoch to the record, and write the checkpoint."""
        names = learner.recorder.metric_names[1:-1]  # without the epoch's number and duration
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
        return self.folder / RECORD_FILE

    @property
    def _checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pth"

    @property
    def _outputs_path(self) -> Path:
        return self.folder / "answers.pth"

    def _write_record(self) -> None:
        now = time.monotonic()
        self.record["seconds"] = round(self.record["seconds"] + now - self._clock, 1)
        self._clock = now
        write_json(self._record_path, self.record, indent=2)

    def _load_checkpoint(self, learner: Learner) -> dict[str, Any] | None:
        """Load the checkpoint's weights into the learner; return the checkpoint, or None if there is none."""
        if not self._checkpoint_path.exists():
            if self.record["epochs"]:
                raise TrainingError(f"{self.folder} has a record but no checkpoint. Remove the folder to start again.")
            return None
        with reading(self._checkpoint_path, f"remove {self.folder} to start the stage again"):
            checkpoint: dict[str, Any] = torch.load(self._checkpoint_path, map_location="cpu", weights_only=True)
            learner.model.load_state_dict(checkpoint["model"])
            # If the process was killed between the two writes, the record lacks an epoch that the checkpoint has.
            self.record["epochs"] = checkpoint["epochs"]
        # Outside of the block above: a GPU with too little memory is no damage.
        learner.model.to(learner.dls.device)
        return checkpoint | {"optimizer": to_device(checkpoint["optimizer"], learner.dls.device)}


class _Save(Callback):  # type: ignore[misc]  # fastai has no types
    """Report each finished epoch to the stage, after fastai's Recorder, and write checkpoints within epochs."""

    order = 70

    def __init__(self, stage: Stage, phase: str, first_epoch: int, first_batch: int) -> None:
        self.stage, self.phase, self.first_epoch, self.first_batch = stage, phase, first_epoch, first_batch

    def before_epoch(self) -> None:
        self.started = self.saved = time.monotonic()
        # The order of an epoch's batches depends on the seed and the epoch's number only, so a resumed run has the
        # same.
        seed = self.stage.settings.seed + len(self.stage.record["epochs"])
        set_seed(seed)
        self.learn.dls.train.rng.seed(seed)

    def after_batch(self) -> None:
        # fastai calls this method for skipped batches, too.
        skipped = (self.epoch, self.iter) < (self.first_epoch, self.first_batch)
        if self.training and not skipped and time.monotonic() - self.saved >= 60 * CHECKPOINT_MINUTES:
            self.stage.save(self.learn, self.iter + 1)
            self.saved = time.monotonic()

    def after_epoch(self) -> None:
        if self.epoch < self.first_epoch:  # fastai calls this method for skipped epochs, too
            return
        self.stage.epoch_done(self.learn, self.phase, time.monotonic() - self.started)


class _Skip(Callback):  # type: ignore[misc]
    """Skip the batches of an epoch that were trained on before the interruption."""

    order = -20  # before all other callbacks of a batch

    def __init__(self, epoch: int, batches: int, loss: float) -> None:
        self.skipped_epoch, self.batches, self.last_loss = epoch, batches, loss

    def before_batch(self) -> None:
        if self.training and self.epoch == self.skipped_epoch and self.iter < self.batches:
            self.learn.loss = torch.tensor(self.last_loss)  # fastai's Recorder averages it even for a skipped batch
            raise CancelBatchException


def save_tensors(value: Any, path: Path) -> None:
    """Write an object that contains tensors, whole or not at all.

    Raises:
        TrainingError: the file cannot be written.
    """
    with replacing(path) as partial:
        torch.save(value, partial)


def load_tensors(path: Path) -> Any:
    """Read an object that contains tensors, into the memory of the CPU.

    Raises:
        TrainingError: the file is damaged.
    """
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_vocabulary(path: Path) -> list[str]:
    """Read a vocabulary in fastai's format.

    Raises:
        TrainingError: the file is damaged.
    """
    with reading(path):
        return list(load_pickle(path))


def save_vocabulary(vocabulary: list[str], path: Path) -> None:
    """Write a vocabulary in fastai's format, whole or not at all."""
    with replacing(path) as partial:
        save_pickle(partial, vocabulary)


def plot_curves(record: dict[str, Any], picture: Path) -> None:
    """Draw a record's metrics by epoch as a PNG file: losses on the left, other metrics on the right."""
    epochs = record["epochs"]
    names = [name for name in epochs[0] if name not in ("phase", "seconds")]
    losses, others = ([name for name in names if name.endswith("loss") == is_loss] for is_loss in (True, False))
    groups = [group for group in (losses, others) if group]
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
