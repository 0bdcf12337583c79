"""The environment of TorchServe and its workers. It is the user's, without the variables that would run other code than
the archive's or override the configuration, and with a UTF-8 locale."""

import locale
import os
import sys
from collections.abc import Mapping
from pathlib import Path

WITHOUT_TORCH = Path(__file__).with_name("without_torch")
WORKER_PARENT = Path(__file__).with_name("worker_parent")
PROGRAMS = Path(__file__).with_name("programs")
"""What TorchServe executes besides Python, for machines that lack it."""
MODULES = [WITHOUT_TORCH, WORKER_PARENT] if sys.platform == "linux" else [WITHOUT_TORCH]
"""Folders of modules for the workers. Linux alone ends a process together with its parent (prctl(2))."""

KEPT_OF_PYTHON = {
    *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONMALLOC"),
    "PYTHONPYCACHEPREFIX",
}
"""Variables that change neither which code runs nor what it computes. Python's other variables are not passed on:
TorchServe puts the archive's code behind PYTHONPATH, PYTHONWARNINGS can turn warnings into errors, PYTHONIOENCODING can
garble labels in metrics."""

NOT_PASSED_ON = {
    # Java reads these options after this program's, so they override them.
    "_JAVA_OPTIONS",
    # Read by TorchServe before its arguments (`ConfigManager`) or instead of them.
    *("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", "TS_LOAD_MODELS", "TS_MODEL_STORE"),
    # Read by its workers (`model_service_worker.py`): they change the socket's name, suppress replies, or turn on a
    # profiler that fails.
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TS_BENCHMARK"),
}

UTF_8_LOCALES = ("C.UTF-8", "en_US.UTF-8")
"""glibc and musl have the first, every macOS the second. Both format numbers in ASCII digits."""


def not_passed_on(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that are set but not passed on to TorchServe and its workers."""
    python = {name for name in environment if name.startswith("PYTHON")} - KEPT_OF_PYTHON
    return sorted(python | (NOT_PASSED_ON & environment.keys()))


ADDRESSES = {"TS_INFERENCE_ADDRESS", "TS_MANAGEMENT_ADDRESS", "TS_METRICS_ADDRESS"}
"""With `enable_envvars_config=true`, TorchServe reads these instead of the configuration's addresses."""


def torchserves(
    environment: Mapping[str, str], temporary: Path, cores: int, memory_bytes: int, *, has_own_addresses: bool
) -> dict[str, str]:
    """The variables that TorchServe is started with.

    Args:
        temporary: the folder for its temporary files and its workers'.
        cores: that it and its workers may use.
        memory_bytes: that it and its workers may use.
        has_own_addresses: whether TorchServe listens elsewhere than the user's configuration says.
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
        # For the workers, which report them to whoever scales a model.
        "SERVER_CORES": str(cores),
        "SERVER_MEMORY_BYTES": str(memory_bytes),
    }
    # Java reads file names and its arguments in the locale's encoding, and no option changes that.
    utf_8 = _utf_8_locale()
    return kept | own | ({"LC_ALL": utf_8} if utf_8 else {})


def _utf_8_locale() -> str | None:
    """One that is installed."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in UTF_8_LOCALES:
            try:
                return locale.setlocale(locale.LC_CTYPE, name)
            except locale.Error:
                continue
        return None
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
