"""Checks of the folders that a command writes, before it trains for hours and before it replaces a user's files."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Final

from handler.exported import ExportedModelError, read_description
from training.errors import TrainingError
from training.tables import listed

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Valid names and versions: they need no escaping in a URL or in a file name."""

VALID_NAME: Final = "letters (a to z), digits, points, hyphens and underscores, with a letter or a digit first"
"""The form of `NAME`, in words."""

EMBEDDED: Final = ("sentiment", "general")
"""Names of the models that come with this project. `make own-check` refuses the same names."""

IGNORED: Final = {".DS_Store", ".gitkeep"}
"""Files that do not count as files of a folder's user."""

WORKSPACE_PREFIX: Final = ".export-"
"""Beginning of the name of the folder in which an export prepares the files. A killed export leaves this folder."""


def check_destination(to: Path, *, own: bool = False) -> None:
    """Check that an exported model can be written into a folder, and that the folder has no other files.

    Args:
        to: folder of the exported model.
        own: whether the model is a user's own. Such a model must not replace a model of this project.

    Raises:
        TrainingError: the name is invalid or is an embedded model's; or the folder cannot be written, or is neither
            empty nor an exported model.
    """
    check_name(to)
    name = to.resolve().name
    if own and name.lower() in EMBEDDED:  # the file system may not distinguish capitals
        raise TrainingError(
            f"--to {to}: the model `{name}` came with this project. Choose another name: --to model_store/NAME."
        )
    check_writable(to, "--to")
    files = sorted({path.name for path in to.iterdir()} - IGNORED) if to.exists() else []
    if any(not file.startswith(WORKSPACE_PREFIX) for file in files) and not _is_exported_model(to):
        raise TrainingError(
            f"--to {to}: the folder is neither empty nor an exported model; it has {listed(files)}. The export would "
            f"replace files in it. Choose a new folder: --to model_store/NAME."
        )


def _is_exported_model(folder: Path) -> bool:
    try:
        read_description(folder)
    except ExportedModelError:
        return False
    return True


def check_name(model: Path, option: str = "--to") -> None:
    """Check the name of an exported model's folder, which becomes the model's name.

    Args:
        model: the folder.
        option: the option that names it.

    Raises:
        TrainingError: the name has other characters.
    """
    if not NAME.fullmatch(model.resolve().name):
        raise TrainingError(f"{option} {model}: the folder's name becomes the model's name; expected {VALID_NAME}.")


def check_apart(to: Path, run: Path) -> None:
    """Check that the folder of the exported model will have nothing of the run.

    Raises:
        TrainingError: the run's folder is the same or is in the model's folder. The interrupted run could not continue,
            because the model's folder would have other files.
    """
    if run.resolve().is_relative_to(to.resolve()):
        raise TrainingError(
            f"--to {to}, --run {run}: the exported model needs a folder without the stages. Choose another one, for "
            f"example --to model_store/NAME --run runs/NAME."
        )


def check_archive(file: Path) -> None:
    """Check that an archive can be written.

    Raises:
        TrainingError: the name does not end in `.mar`, there is a folder of this name, or the file's folder cannot be
            written.
    """
    if file.suffix != ".mar":
        raise TrainingError(f"--to {file}: expected a file name that ends in .mar.")
    if file.is_dir():
        raise TrainingError(f"--to {file}: expected a file; there is a folder of this name.")
    check_writable(file.parent, "--to")


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can be created and written: create it and a file in it, and remove both.

    Args:
        folder: the folder, which need not exist.
        option: the option that names it.

    Raises:
        TrainingError: there is a file of this name, or the folder cannot be created or written.
    """
    missing: list[Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"{option} {folder}: expected a folder; there is a file of this name.")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=WORKSPACE_PREFIX):
            pass
    except OSError as error:
        raise TrainingError(
            f"{option} {folder}: the folder cannot be written ({error.strerror}). Choose another one with {option}."
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it was not created
                path.rmdir()
