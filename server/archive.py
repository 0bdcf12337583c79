"""The properties of a model archive that can be read before TorchServe unpacks it."""

import json
import struct
import zlib
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from server.properties import ConfigurationError

MANIFEST = "MAR-INF/MANIFEST.json"

BROKEN = (
    *(BadZipFile, zlib.error, LZMAError, struct.error, EOFError),
    RuntimeError,  # encrypted, compressed in an unknown way, or JSON that is nested too deeply
    *(KeyError, ValueError, TypeError, AttributeError),
)
"""The exceptions that `zipfile` and `json` raise for a file that is no archive or has no manifest."""


@dataclass(frozen=True)
class Archive:
    """A model archive: the name and the version in its manifest, and the size of its files."""

    model_name: str
    model_version: str
    unpacked_bytes: int

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """Read the manifest and the sizes of an archive, and check that its files can be unpacked.

        Raises:
            ConfigurationError: the file does not exist, or it is not a model archive.
        """
        try:
            if not path.exists():
                raise ConfigurationError(f"No file at {path}; build it with {_how_to_build(path)}.")
            with ZipFile(path) as archive:
                unpacked_bytes = sum(file.file_size for file in archive.infolist())
                model = json.loads(archive.read(MANIFEST))["model"]
                if (damaged := archive.testzip()) is not None:
                    raise BadZipFile(f"its file {damaged} is damaged")
            # If the manifest has no version, TorchServe's default is 1.0.
            return cls(str(model["modelName"]), str(model.get("modelVersion", "1.0")), unpacked_bytes)
        except OSError as error:
            raise ConfigurationError(f"Cannot read {path}: {error.strerror or error}.") from error
        except BROKEN as error:
            raise ConfigurationError(
                f"{path} is not a model archive ({str(error) or 'it is truncated'}); build one with "
                f"{_how_to_build(path)}."
            ) from error


def _how_to_build(path: Path) -> str:
    """The command that builds an archive from the exported model in the folder of the same name."""
    return f"`make archive MODEL={path.parent.name}/{path.stem}`"
