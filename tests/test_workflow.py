"""Tests of the GitHub workflow, of Dependabot's configuration and of the Dockerfile by offline linters."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

GITHUB = ROOT / ".github"
WORKFLOW = GITHUB / "workflows" / "ci.yaml"
DEPENDABOT = GITHUB / "dependabot.yml"
DOCKERFILE = ROOT / "Dockerfile"
PROGRAMS = Path(sys.executable).parent


def zizmor(file: Path) -> subprocess.CompletedProcess[str]:
    """Check a workflow or Dependabot's configuration against GitHub's schema and for unsafe settings."""
    command = [str(PROGRAMS / "zizmor"), "--offline", "--no-progress", "--pedantic", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def hadolint(dockerfile: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "hadolint"), "-"]
    return subprocess.run(command, input=dockerfile, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("file", [WORKFLOW, DEPENDABOT], ids=lambda file: file.name)
def test_the_workflow_is_valid_and_safe(file: Path) -> None:
    result = zizmor(file)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2", "@v4"),
        ("permissions: {}", "permissions: write-all"),
        ("runs-on: ubuntu-24.04", "run-on: ubuntu-24.04"),
        ('"$IMAGE:$GITHUB_SHA" | tee', "${{ github.head_ref }} | tee"),
    ],
)
def test_a_broken_workflow_is_detected(good: str, bad: str, tmp_path: Path) -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert good in text
    broken = tmp_path / "ci.yaml"
    broken.write_text(text.replace(good, bad), encoding="utf-8")
    assert zizmor(broken).returncode != 0


def test_the_workflow_runs_existing_make_targets() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^make ([\w-]+)", commands, flags=re.MULTILINE))
    assert targets == {"docs", "lint", "test", "image-test", "sbom"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_an_image_can_have_another_version() -> None:
    """Otherwise the replies and the metrics of a new image could not be told from those of the old one."""
    stage = DOCKERFILE.read_text(encoding="utf-8").partition("\nFROM ")[2].partition("\nFROM ")[0]
    before, _, archive = stage.partition("-m training archive ")
    [default] = re.findall(r"^ARG VERSION=(\S+)$", before, flags=re.MULTILINE)
    assert '--version "${VERSION}"' in archive.partition("&&")[0]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^VERSION := (\S+)$", makefile, flags=re.MULTILINE) == [default]
    assert "--build-arg VERSION='$(VERSION)'" in makefile.partition("\nimage: ")[2].partition("\n\n")[0]


def test_the_dockerfile_passes_hadolint() -> None:
    result = hadolint(DOCKERFILE.read_text(encoding="utf-8"))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("FROM ${BASE} AS build", "FROM debian AS build"),
        ("--no-install-recommends ", ""),
        ('["python", "-m", "server"]', "python -m server"),
    ],
)
def test_a_broken_dockerfile_is_detected(good: str, bad: str) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert good in text
    assert hadolint(text.replace(good, bad)).returncode != 0
