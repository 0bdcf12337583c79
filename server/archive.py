"""A model archive, as far as it can be known before TorchServe unpacks it."""

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
"""What `zipfile` and `json` raise for a file that is no archive or has no manifest."""


@dataclass(frozen=True)
class Archive:
    model_name: str
    model_version: str
    unpacked_bytes: int

    @classmethod
    def read(cls, path: Path) -> "Archive":
        """
        Raises:
            ConfigurationError: there is no file, or it is no model archive.
        """
        try:
            if not path.exists():
                raise ConfigurationError(f"No file at {path}; {_how_to_build(path)} builds it.")
            with ZipFile(path) as archive:
                unpacked_bytes = sum(file.file_size for file in archive.infolist())
                model = json.loads(archive.read(MANIFEST))["model"]
            # Without a version TorchServe takes the first.
            return cls(str(model["modelName"]), str(model.get("modelVersion", "1.0")), unpacked_bytes)
        except OSError as error:
            raise ConfigurationError(f"Cannot read {path}: {error.strerror or error}.") from error
        except BROKEN as error:
            raise ConfigurationError(
                f"{path} is no model archive ({str(error) or 'it is cut off'}); {_how_to_build(path)} builds one."
            ) from error


def _how_to_build(path: Path) -> str:
    """The command that builds an archive, from the exported model in the folder of its name."""
    return f"`make archive MODEL={path.parent.name}/{path.stem}`"
