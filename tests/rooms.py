"""The project's top-level folders, called rooms: what each holds, and which other rooms its code may import.

`tests/test_rooms.py` checks the imports. The documentation's table of rooms is made by `table`.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.paths import ROOT


@dataclass(frozen=True)
class Room:
    """A top-level folder."""

    folder: str
    holds: str
    """Its content, in Markdown."""

    imports: tuple[str, ...] = ()
    """The folders whose code its Python files may import, besides its own."""

    uses: str = ""
    """Other parts of the project that it uses without importing them, in Markdown."""

    package: str = ""
    """The name under which its code is imported; the folder's name if empty."""

    @property
    def path(self) -> Path:
        """The folder's path."""
        return ROOT / self.folder

    @property
    def package_name(self) -> str:
        """The name under which its code is imported."""
        return self.package or self.folder

    @property
    def row(self) -> str:
        """The row of the documentation's table."""
        imports = ", ".join(f"`{folder}/`" for folder in self.imports)
        return f"| `{self.folder}/` | {self.holds} | {imports or 'no other folder'} | {self.uses} |"


ROOMS = (
    Room(
        "handler",
        "the code inside a model archive, from a request's body to its reply; only `service.py` imports TorchServe",
    ),
    Room(
        "training",
        "data splits, the stages of ULMFiT, evaluation, export, archives, and their command line",
        imports=("handler", "client"),
        uses="`evaluate --url` uses the client",
    ),
    Room(
        "server",
        "`python -m server`: start, supervision and stop of TorchServe and of the door",
        uses="`door/`",
    ),
    Room(
        "client",
        "the Python package and command `sentiment`: predictions, scoring of files, rollouts",
        uses="the HTTP API, `kubectl`",
        package="sentiment",
    ),
    Room(
        "bulk",
        "`python -m bulk`: the texts of many files, on Apache Beam",
        imports=("handler",),
        uses="the archives",
    ),
    Room("door", "HAProxy's configuration: limits, retries, paths; the web page and `/docs`", uses="the HTTP API"),
    Room("model_store", "the exported models with their cards, and the archives built from them"),
    Room(
        "benchmarks",
        "measurements of this server and of others, side by side",
        imports=("handler", "training"),
        uses="the HTTP API",
    ),
    Room("k8s", "manifests for GKE and for a local cluster", uses="the image, `metrics.yaml`"),
    Room("requirements", "the pinned packages, each with its reason, and the lock files"),
    Room(
        "docs",
        "the documentation: tutorial, guides, reference, explanation; `generate.py` writes the generated parts",
        imports=("handler", "training", "server", "client", "bulk", "tests"),
        uses="all other folders",
    ),
    Room("notebooks", "the tutorial as a Jupyter notebook", uses="the command lines, the HTTP API"),
    Room(
        "tests",
        "tests, in the same folders as the code; `tests/e2e/` starts a real server",
        imports=("handler", "training", "server", "client", "bulk", "benchmarks", "docs"),
        uses="all other folders",
    ),
)

TORCHSERVE_MODULE = "ts"
TORCHSERVE_IMPORTER = "handler/service.py"
"""The only file of the product that may import TorchServe's package."""

CLIENT_IMPORTERS = ("training/measure/evaluate.py", "training/measure/server.py")
"""The only files of `training/` that may import the client."""


def table() -> str:
    """The documentation's table of rooms, in Markdown."""
    head = "| folder | holds | imports | uses |\n|---|---|---|---|"
    return "\n".join([head, *(room.row for room in ROOMS)])


def python_files(folder: Path) -> list[Path]:
    """The Python files of a folder and of its subfolders."""
    return sorted(folder.rglob("*.py"))


@cache
def imported_modules(file: Path) -> frozenset[str]:
    """The full names of the modules that a file imports, anywhere in it.

    `from a import b` counts as an import of `a` and of `a.b`, since `b` may be a module.
    """
    package = file.relative_to(ROOT).parent.parts
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return frozenset(modules)
