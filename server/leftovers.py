"""Removal of unpacked archives that TorchServe leaves in its temporary folder.

TorchServe unpacks an archive before it registers the model. If the registration fails, because the version exists
already or the archive is broken, the unpacked files stay.
"""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

Version = tuple[str, str]
"""A model's name and version."""

MIN_AGE_S = 10
"""The least age of a folder to be removed, in seconds. TorchServe may be registering the archive in a newer folder."""
RECHECK_INTERVAL_S = 10
"""The seconds after which folders that could not be removed are checked again, even if no folder has changed."""


class Leftovers:
    """Finds and removes unpacked archives that no registered version uses.

    TorchServe does not report the folder of a version, but the working folder of its workers is that folder. It is
    remembered in case the version has no worker later.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the folder.

        Args:
            folder: Java's folder for temporary files.
        """
        self._folder = folder
        self._models = folder / "models"
        self._used: dict[Version, Path] = {}
        self._stayed: set[Path] = set()
        self._looked_at_s = 0.0  # monotonic

    def suspects(self) -> list[Path]:
        """The folders that may be unused: no version is known to use them, and they are older than `MIN_AGE_S`.

        While a version has no worker, `remove` cannot remove these folders. If the folders are the same as after the
        last call of `remove`, the result is therefore empty until `RECHECK_INTERVAL_S` have passed.
        """
        folders = self._not_known_to_be_used()
        if folders == self._stayed and time.monotonic() - self._looked_at_s < RECHECK_INTERVAL_S:
            return []
        return [folder for folder in folders if _is_old(folder)]

    def remove(self, suspects: Iterable[Path], working_folders: Mapping[Version, Iterable[Path]]) -> None:
        """Remove unpacked archives that no registered version uses.

        An old folder belongs to a version that is registered by now, or to no version. If the folder of every
        registered version is known, all other old folders belong to no version.

        Args:
            suspects: the folders that `suspects` returned before the versions were listed.
            working_folders: the working folders of the workers of each registered version.
        """
        for version, folders in working_folders.items():
            for folder in folders:
                if self._models in folder.parents:
                    self._used[version] = self._models / folder.relative_to(self._models).parts[0]
        self._used = {
            version: folder for version, folder in self._used.items() if version in working_folders and folder.exists()
        }
        all_known = self._used.keys() == working_folders.keys()
        for folder in suspects:
            # TorchServe moves a complete folder to `models`. An old folder elsewhere is from a failed registration.
            if folder.parent != self._models or (all_known and folder not in self._used.values()):
                shutil.rmtree(folder, ignore_errors=True)
        self._stayed, self._looked_at_s = self._not_known_to_be_used(), time.monotonic()

    def _not_known_to_be_used(self) -> set[Path]:
        folders = {*self._models.glob("*"), *self._folder.glob("models*.download")}
        return folders - set(self._used.values())


def _is_old(folder: Path) -> bool:
    try:
        newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:  # a file was removed meanwhile, so the folder is in use
        return False
    return time.time() - newest > MIN_AGE_S
