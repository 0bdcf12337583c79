"""The environment variables of TorchServe and its workers.

They are the user's variables with a UTF-8 locale, without the variables that would override the configuration or run
code from outside the archive.
"""

import locale
import os
import sys
from collections.abc import Mapping
from pathlib import Path

WITHOUT_TORCH = Path(__file__).with_name("without_torch")
WORKER_PARENT = Path(__file__).with_name("worker_parent")
PROGRAMS = Path(__file__).with_name("programs")
"""Programs that TorchServe executes besides Python, for machines that lack them."""
MODULES = [WITHOUT_TORCH, WORKER_PARENT] if sys.platform == "linux" else [WITHOUT_TORCH]
"""Folders of modules for the workers. `WORKER_PARENT` needs Linux, which can end a process together with its parent
(prctl(2))."""

KEPT_OF_PYTHON = {
    *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONMALLOC"),
    "PYTHONPYCACHEPREFIX",
}
"""Python's variables that are passed on: they change neither the code that runs nor its results.

Its other variables are not passed on. For instance, modules on PYTHONPATH would take precedence over the archive's
code, PYTHONWARNINGS can turn warnings into errors, and PYTHONIOENCODING can garble labels in metrics."""

NOT_PASSED_ON = {
    # Java reads these options after the command line, so they would override the options of this program.
    "_JAVA_OPTIONS",
    # TorchServe (`ConfigManager`) reads these variables before its arguments or instead of them.
    *("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", "TS_LOAD_MODELS", "TS_MODEL_STORE"),
    # The workers (`model_service_worker.py`) read these variables, which change the socket's name, suppress replies, or
    # turn on a profiler that fails.
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TS_BENCHMARK"),
}

UTF_8_LOCALES = ("C.UTF-8", "en_US.UTF-8")
"""glibc and musl have the first locale, every macOS has the second. Both format numbers with ASCII digits."""


def not_passed_on(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that are set but not passed on to TorchServe and its workers."""
    python = {name for name in environment if name.startswith("PYTHON")} - KEPT_OF_PYTHON
    return sorted(python | (NOT_PASSED_ON & environment.keys()))


ADDRESSES = {"TS_INFERENCE_ADDRESS", "TS_MANAGEMENT_ADDRESS", "TS_METRICS_ADDRESS"}
"""With `enable_envvars_config=true`, TorchServe reads these instead of the configuration's addresses."""


def torchserves(
    environment: Mapping[str, str], temporary: Path, cores: int, memory_bytes: int, *, has_own_addresses: bool
) -> dict[str, str]:
    """The environment variables for TorchServe's process.

    Args:
        environment: the user's variables.
        temporary: the folder for temporary files of TorchServe and its workers.
        cores: the number of cores that TorchServe and its workers may use.
        memory_bytes: the memory that TorchServe and its workers may use.
        has_own_addresses: whether TorchServe listens on other addresses than those of the user's configuration.
    """
    hidden = set(not_passed_on(environment)) | (ADDRESSES if has_own_addresses else set())
    kept = {name: value for name, value in environment.items() if name not in hidden}
    own = {
        "TMPDIR": str(temporary),
        "PATH": os.pathsep.join([environment.get("PATH", os.defpath), str(PROGRAMS)]),
        # TorchServe appends the folder of the archive's code.
        "PYTHONPATH": os.pathsep.join(map(str, MODULES)),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        # The workers report both numbers, so that clients that scale a model know them.
        "SERVER_CORES": str(cores),
        "SERVER_MEMORY_BYTES": str(memory_bytes),
    }
    # Java reads file names and its arguments in the locale's encoding, and no option changes that.
    utf_8 = _utf_8_locale()
    return kept | own | ({"LC_ALL": utf_8} if utf_8 else {})


def _utf_8_locale() -> str | None:
    """An installed UTF-8 locale; None if there is none."""
    current = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in UTF_8_LOCALES:
            try:
                return locale.setlocale(locale.LC_CTYPE, name)
            except locale.Error:
                continue
        return None
    finally:
        locale.setlocale(locale.LC_CTYPE, current)
