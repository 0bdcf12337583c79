"""The files of Swagger UI, which the door serves under /docs."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from server.properties import ConfigurationError

PACKAGE = "drf_spectacular_sidecar"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css")


def variables() -> dict[str, str]:
    """What the door's configuration has to know: the folder of the files, and a tag that changes with them.

    Raises:
        ConfigurationError: the package that brings the files is not installed.
    """
    files = folder()
    contents = b"".join((files / name).read_bytes() for name in FILES)
    return {"SWAGGER_UI": str(files), "SWAGGER_UI_TAG": hashlib.sha256(contents).hexdigest()[:16]}


def folder() -> Path:
    """The folder of the files. Nothing of the package that brings them is imported.

    Raises:
        ConfigurationError: the package is not installed.
    """
    package = find_spec(PACKAGE)
    for place in (package and package.submodule_search_locations) or ():
        files = Path(place) / "static" / PACKAGE / "swagger-ui-dist"
        if all((files / name).is_file() for name in FILES):
            return files
    raise ConfigurationError("The package drf-spectacular-sidecar, which has the files of /docs, is not installed.")
