"""A model archive, as far as it can be known before TorchServe unpacks it."""

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from server.properties import ConfigurationError

MANIFEST = "MAR-INF/MANIFEST.json"


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
                raise ConfigurationError(f"No file at {path}; `make archive` builds it.")
            with ZipFile(path) as archive:
                unpacked_bytes = sum(file.file_size for file in archive.infolist())
                model = json.loads(archive.read(MANIFEST))["model"]
            # Without a version TorchServe takes the first.
            return cls(str(model["modelName"]), str(model.get("modelVersion", "1.0")), unpacked_bytes)
        except OSError as error:
            raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
        except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ConfigurationError(f"{path} is no model archive ({error}); `make archive` builds one.") from error
