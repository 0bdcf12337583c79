"""Tests that imports within `training/` go in one direction, from the upper layers to the lower ones."""

import os
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.paths import ROOT, WITH_CLIENT
from tests.rooms import imported_modules, python_files

LAYERS = (
    {"training", "training.errors", "training.settings", "training.splits", "training.tables", "training.data"}
    | {"training.templates", "training.files"},
    {"training.measure"},
    {"training.stages"},
    {"training.export"},
    {"training.fit", "training.pipeline", "training.cross_validation"},
    {"training.cli"},
    {"training.__main__"},
)
"""Packages and modules, from bottom to top. A module may import modules of its own layer and of lower layers."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in python_files(ROOT / "training")}


def imports_of(module: str) -> set[str]:
    """Return the modules of `training/` that a module imports, also within functions."""
    return set(imported_modules(MODULES[module])) & MODULES.keys() - {module}


def layer_of(module: str) -> int:
    """Return the layer of a module, which is that of its package or of its own name."""
    package = ".".join(module.split(".")[:2])
    [layer] = [index for index, names in enumerate(LAYERS) if package in names]
    return layer


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_higher_layer(module: str) -> None:
    higher = {imported for imported in imports_of(module) if layer_of(imported) > layer_of(module)}
    assert not higher, f"{module} imports {', '.join(sorted(higher))}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    order = list(TopologicalSorter({module: imports_of(module) for module in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_the_training_data_does_not_come_from_the_behavioural_tests() -> None:
    for module in MODULES:
        if module.startswith("training.stages."):
            assert "training.measure.behaviour" not in imports_of(module), module


def test_the_layers_are_those_of_the_package() -> None:
    named = set.union(*LAYERS)
    assert named == {".".join(module.split(".")[:2]) for module in MODULES}
    assert all(not lower & upper for lower, upper in pairwise(LAYERS))


def test_evaluation_of_a_server_starts_without_large_packages() -> None:
    """Each of them takes half a second or more to import."""
    code = (
        "import sys, training.cli, training.measure.evaluate, training.measure.server\n"
        "large = {'fastai', 'matplotlib', 'onnx', 'pandas', 'sklearn', 'spacy', 'torch', 'transformers'}\n"
        "print(*large & set(sys.modules))"
    )
    environment = os.environ | WITH_CLIENT
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
