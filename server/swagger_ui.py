"""The files of Swagger UI, which the door serves under /docs."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from server.properties import ConfigurationError

PACKAGE = "drf_spectacular_sidecar"
FILES = ("swagger-ui-bundle.js", "swagger-ui.css")


def variables() -> dict[str, str]:
    """The variables of the door's configuration for Swagger UI: the folder of the files, and an ETag of their content.

    Raises:
        ConfigurationError: the package with the files is not installed.
    """
    files = folder()
    contents = b"".join((files / name).read_bytes() for name in FILES)
    return {"SWAGGER_UI": str(files), "SWAGGER_UI_TAG": hashlib.sha256(contents).hexdigest()[:16]}


def folder() -> Path:
    """The folder of the files. The package with the files is not imported.

    Raises:
        ConfigurationError: the package is not installed.
    """
    package = find_spec(PACKAGE)
    for location in (package and package.submodule_search_locations) or ():
        files = Path(location) / "static" / PACKAGE / "swagger-ui-dist"
        if all((files / name).is_file() for name in FILES):
            return files
    raise ConfigurationError(
        "The package drf-spectacular-sidecar, which has the files of /docs, is not installed. Run `make serve`, which "
        "installs it."
    )
