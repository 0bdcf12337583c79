"""What the package exports, and the quickstart in its documentation."""

import inspect
import textwrap

import pytest

import client
from client import errors
from tests.client.scripted import model, prediction, scripted


def test_what_is_exported_is_there_and_every_error_is_exported() -> None:
    assert client.__all__ == sorted(client.__all__)
    assert all(inspect.isclass(getattr(client, name)) for name in client.__all__)
    raised = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert raised <= set(client.__all__)


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.__doc__ is not None
    _, start, _ = client.__doc__.split("\n\n", 2)
    lines = client.__doc__[client.__doc__.index("    from") : client.__doc__.index("| module")]
    assert lines.startswith(start)
    with scripted(model) as server:
        exec(textwrap.dedent(lines).replace("http://127.0.0.1:8080", server.url), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == prediction("Thank you for the great flight!")["label"]
    assert [line.split()[0] for line in rest] == [
        prediction(text)["label"] for text in ("Late again", "Which gate is flight 12?")
    ]
