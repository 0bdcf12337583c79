"""Tests that the lock files have the versions pinned in requirements/*.txt, so that Dependabot's updates are tested."""

import re

import pytest

from tests.paths import ROOT

REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(path.stem for path in REQUIREMENTS.glob("*.lock"))
PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+])?==(\S+)", re.MULTILINE)
INCLUDED = re.compile(r"^-r (\S+)\.txt", re.MULTILINE)
NOT_IN_LOCKS = {"torch"}
"""`requirements/install` gives the reason."""


def pins(name: str) -> dict[str, str]:
    """The pinned version of each package in requirements/`name`.txt and in the files that it includes."""
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    versions = dict(PIN.findall(text))
    for included in INCLUDED.findall(text):
        versions |= pins(included)
    return versions


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_that_are_pinned(name: str) -> None:
    locked = dict(PIN.findall((REQUIREMENTS / f"{name}.lock").read_text(encoding="utf-8")))
    expected = {package: version for package, version in pins(name).items() if package not in NOT_IN_LOCKS}
    assert expected
    assert {package: locked.get(package) for package in expected} == expected, "run `make lock`"


def test_bulk_scoring_has_the_server_s_versions_of_what_determines_a_prediction() -> None:
    server, bulk = pins("serve"), pins("bulk")
    shared = server.keys() & bulk.keys()
    assert {"onnxruntime", "spacy", "sentencepiece", "numpy"} <= shared
    assert {name: bulk[name] for name in shared} == {name: server[name] for name in shared}
