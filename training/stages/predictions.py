"""A teacher's predictions, which are stored by the hash of their text: no text is predicted twice.

A training that is started again, or with other settings, predicts only the texts that are new to it.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data import sha256_of
from training.files import replacing
from training.stages.lock import lock
from training.stages.products import TEACHER_FILE
from training.stages.stage import CHECKPOINT_MINUTES, TEXTS_AT_ONCE
from training.stages.teacher import load_teacher

PREDICTIONS_FILE: Final = "predictions.npz"
"""File in a teacher's folder."""

_HASH_BYTES: Final = 16

Probabilities = NDArray[np.float32]


def predictions(folder: Path, labels: Sequence[str], texts: Sequence[str]) -> Probabilities:
    """Return a teacher's probabilities for texts, (texts, C). New ones are stored every few minutes.

    Args:
        folder: the teacher's folder.
        labels: the teacher's labels.
        texts: the texts.

    Raises:
        TrainingError: see `training.stages.teacher.load_teacher`; or another process uses the teacher.
    """
    lock(folder)
    weights = sha256_of(folder / TEACHER_FILE)
    known = _read(folder / PREDICTIONS_FILE, weights)
    hashes = [_hash(text) for text in texts]
    new = list({key: text for key, text in zip(hashes, texts, strict=True) if key not in known}.values())
    if new:
        teacher = load_teacher(folder, labels)
        saved = time.monotonic()
        with tqdm(total=len(new), unit="text", disable=None) as progress:
            for start in range(0, len(new), TEXTS_AT_ONCE):
                batch = new[start : start + TEXTS_AT_ONCE]
                known |= zip(map(_hash, batch), teacher.predict(batch)[0].numpy(), strict=True)
                progress.update(len(batch))
                is_last = start + TEXTS_AT_ONCE >= len(new)
                if is_last or time.monotonic() - saved >= 60 * CHECKPOINT_MINUTES:
                    _write(folder / PREDICTIONS_FILE, weights, known)
                    saved = time.monotonic()
    return np.stack([known[key] for key in hashes])


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


def _read(file: Path, weights: str) -> dict[bytes, Any]:
    """Return the stored probabilities by hash; none if the file is missing or damaged, or is of other weights."""
    if not file.exists():
        return {}
    try:
        with file.open("rb") as source, np.load(source) as stored:
            if str(stored["weights"]) != weights:
                return {}
            keys = [key.tobytes() for key in stored["hashes"]]
            return dict(zip(keys, stored["probabilities"], strict=True))
    except (ValueError, KeyError, EOFError, BadZipFile):
        print(f"{file} is damaged: all texts are predicted again", file=sys.stderr)
        return {}


def _write(file: Path, weights: str, known: dict[bytes, Any]) -> None:
    """Write the file, whole or not at all."""
    hashes = np.frombuffer(b"".join(known), np.uint8).reshape(-1, _HASH_BYTES)
    with replacing(file) as partial, partial.open("wb") as output:
        np.savez(output, weights=weights, hashes=hashes, probabilities=np.stack(list(known.values())))
