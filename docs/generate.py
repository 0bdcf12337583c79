"""Write the generated parts of the documentation: `python -m docs`.

Each part stands between two comments, `<!-- NAME of SOURCE: begin -->` and `<!-- NAME of SOURCE: end -->`, and is made
from its source: the limits, the settings, the paths of the API, the targets of make, the help of each command line, and
the table of rooms.
"""

import ast
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import yaml

import bulk.cli
import sentiment.cli
import server.cli
import training.cli
from handler.limits import ENVIRONMENT_PREFIX, Limits
from tests import rooms

DOCS = Path(__file__).parent
ROOT = DOCS.parent
HELP_COLUMNS = "100"
"""Width of help texts, in characters."""

Main = Callable[[], int]
"""A command line, which reads its arguments from `sys.argv`."""


@dataclass(frozen=True)
class Part:
    """A generated part of a page."""

    page: Path
    name: str
    source: str
    """The file or the command that the part is made from."""
    text: Callable[[], str]

    @property
    def begin(self) -> str:
        """The comment before the part."""
        return f"<!-- {self.name} of {self.source}: begin -->"

    @property
    def end(self) -> str:
        """The comment after the part."""
        return f"<!-- {self.name} of {self.source}: end -->"

    def written_into(self, page: str) -> str:
        """The page's text with this part generated again.

        Raises:
            ValueError: The page does not have both comments exactly once.
        """
        pattern = rf"(?s){re.escape(self.begin)}\n.*?{re.escape(self.end)}"
        written, count = re.subn(pattern, lambda _: f"{self.begin}\n{self.text()}\n{self.end}", page)
        if count != 1:
            raise ValueError(f"{self.page.name} has {count} parts {self.begin}; expected 1.")
        return written


def limits() -> str:
    """Table of the handler's limits: variables, defaults and meanings, from the fields of `Limits`."""
    rows = [
        f"| `{ENVIRONMENT_PREFIX}{name.upper()}` | {default} | {_sentence(_docstrings(Limits)[name])} |"
        for name, default in vars(Limits()).items()
    ]
    return "\n".join(["| Variable | Default | Limit |", "|---|---|---|", *rows])


def settings() -> str:
    """Table of the settings in `config.properties`."""
    lines = (ROOT / "config.properties").read_text(encoding="ISO-8859-1").splitlines()
    settings = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return "\n".join(
        ["| Setting | Value |", "|---|---|", *(f"| `{name}` | `{value}` |" for name, _, value in settings)]
    )


def paths() -> str:
    """Table of the paths in `handler/openapi.yaml`."""
    api: dict[str, Any] = yaml.safe_load((ROOT / "handler" / "openapi.yaml").read_text(encoding="utf-8"))
    rows = [
        f"| `{method.upper()}` | `{path}` | {operation['summary']} |"
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    return "\n".join(["| Method | Path | Purpose |", "|---|---|---|", *rows])


def targets() -> str:
    """Table of the Makefile's targets, with the descriptions that `make help` prints."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rows = re.findall(r"^([a-z-]+):.*## (.*)$", makefile, flags=re.MULTILINE)
    return "\n".join(["| Target | Purpose |", "|---|---|", *(f"| `make {name}` | {text} |" for name, text in rows)])


def command_help(main: Main, command: str) -> str:
    """Help of a command line, and of each of its subcommands under a heading."""
    text = _help(main, [])
    subcommands = re.findall(
        r"^    ([a-z-]+)(?= |$)", text.partition("  COMMAND\n")[2].partition("\n\n")[0], re.MULTILINE
    )
    blocks = [_block(text)]
    blocks += [f"### {command} {name}\n\n{_block(_help(main, [name]))}" for name in subcommands]
    return "\n".join(["", "\n\n".join(blocks), ""])


API, CONFIGURATION, COMMANDS = (DOCS / "reference" / f"{page}.md" for page in ("api", "configuration", "commands"))
DESIGN = DOCS / "explanation" / "design.md"
PARTS: Final = (
    Part(API, "paths", "handler/openapi.yaml", paths),
    Part(CONFIGURATION, "limits", "handler/limits.py", limits),
    Part(CONFIGURATION, "settings", "config.properties", settings),
    Part(COMMANDS, "targets", "Makefile", targets),
    Part(COMMANDS, "help", "sentiment", partial(command_help, sentiment.cli.main, "sentiment")),
    Part(COMMANDS, "help", "python -m training", partial(command_help, training.cli.main, "training")),
    Part(COMMANDS, "help", "python -m bulk", partial(command_help, bulk.cli.main, "bulk")),
    Part(COMMANDS, "help", "python -m server", partial(command_help, server.cli.main, "server")),
    Part(DESIGN, "table", "tests/rooms.py", rooms.table),
)


def main() -> int:
    """Write each part into its page."""
    for part in PARTS:
        page = part.page.read_text(encoding="utf-8")
        part.page.write_text(part.written_into(page), encoding="utf-8")
    return 0


def _docstrings(owner: type) -> Mapping[str, str]:
    """Docstrings by name of a class's fields: the strings after the fields."""
    [definition] = ast.parse(inspect.getsource(owner)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _sentence(docstring: str) -> str:
    """A docstring on one line."""
    return " ".join(docstring.split())


def _help(main: Main, command: list[str]) -> str:
    """What a command line prints for `--help`."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=HELP_COLUMNS),
        mock.patch.object(sys, "argv", [sys.argv[0], *command, "--help"]),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main()
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def _block(text: str) -> str:
    return f"```text\n{text}\n```"
