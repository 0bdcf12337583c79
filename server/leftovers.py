"""What TorchServe leaves in its temporary folder: it unpacks an archive before it knows whether it can be registered,
and if it cannot, because the version is there already or the archive is broken, the unpacked files stay."""

import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

Version = tuple[str, str]
"""A model's name and version."""

OLD_S = 10
"""Age in seconds. A folder that was written to more recently may be an archive that is being registered."""
AGAIN_S = 10
"""After this many seconds, folders that had to stay are looked at again though none has been added or has gone."""


class Leftovers:
    """Finds unpacked archives that no registered version uses. TorchServe does not tell which version uses which
    folder, but a worker's working folder does. It is remembered for the time when a version has no worker."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Java's for temporary files.
        """
        self._folder = folder
        self._models = folder / "models"
        self._used: dict[Version, Path] = {}
        self._stayed: set[Path] = set()
        self._looked_at_s = 0.0  # monotonic

    def suspects(self) -> list[Path]:
        """Folders that are not known to be used, and were not written to lately. None of them for `AGAIN_S` after
        `remove`, if they are the same that had to stay then: a version without a worker makes them stay for as long
        as it has none."""
        folders = self._not_known_to_be_used()
        if folders == self._stayed and time.monotonic() - self._looked_at_s < AGAIN_S:
            return []
        return [folder for folder in folders if _is_old(folder)]

    def remove(self, suspects: Iterable[Path], working_folders: Mapping[Version, Iterable[Path]]) -> None:
        """Remove unpacked archives that no registered version uses.

        An old folder belongs either to a version that is registered by now, or to no version. If the folder of every
        registered version is known, all other old folders belong to no version.

        Args:
            suspects: as `suspects` returned them before the versions were listed.
            working_folders: of the workers of each version that is registered.
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
            # TorchServe moves a folder to `models` when it is complete, so an old one elsewhere was given up.
            if folder.parent != self._models or (all_known and folder not in self._used.values()):
                shutil.rmtree(folder, ignore_errors=True)
        self._stayed, self._looked_at_s = self._not_known_to_be_used(), time.monotonic()

    def _not_known_to_be_used(self) -> set[Path]:
        found = {*self._models.glob("*"), *self._folder.glob("models*.download")}
        return found - set(self._used.values())


def _is_old(folder: Path) -> bool:
    try:
        newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:  # it changes, so it is in use
        return False
    return time.time() - newest > OLD_S
