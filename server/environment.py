"""The environment of TorchServe and its workers: the user's, without what would have other code run than the archive's
or start TorchServe otherwise than the configuration says, and with UTF-8 whatever the locale."""

import locale
import os
from collections.abc import Mapping
from pathlib import Path

WITHOUT_TORCH = Path(__file__).with_name("without_torch")
PROGRAMS = Path(__file__).with_name("programs")
"""What TorchServe executes besides Python, for machines that lack it."""

KEPT_OF_PYTHON = {
    *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONMALLOC"),
    "PYTHONPYCACHEPREFIX",
}
"""What changes neither whose code runs nor what it computes. The others are kept from the workers: TorchServe puts an
archive's code behind PYTHONPATH, PYTHONWARNINGS makes errors of warnings, PYTHONIOENCODING spoils labels in metrics."""

NOT_PASSED_ON = {
    # Options behind this program's own, which they change.
    "_JAVA_OPTIONS",
    # Read by TorchServe before its arguments (`ConfigManager`) or instead of them.
    *("TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", "TS_LOAD_MODELS", "TS_MODEL_STORE"),
    # Read by its workers (`model_service_worker.py`): which socket they listen on, whether they reply at all, and a
    # profile that fails.
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TS_BENCHMARK"),
}

UTF_8_LOCALES = ("C.UTF-8", "en_US.UTF-8")
"""The first is glibc's and musl's, the second is on every macOS. Neither writes numbers in digits of its own."""


def not_passed_on(environment: Mapping[str, str]) -> list[str]:
    """The variables that are set and that TorchServe and its workers do not get."""
    python = {name for name in environment if name.startswith("PYTHON")} - KEPT_OF_PYTHON
    return sorted(python | (NOT_PASSED_ON & environment.keys()))


def torchserves(environment: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """What TorchServe is started with.

    Args:
        temporary: the folder for its temporary files and its workers'.
    """
    kept = {name: value for name, value in environment.items() if name not in not_passed_on(environment)}
    own = {
        "TMPDIR": str(temporary),
        "PATH": os.pathsep.join([environment.get("PATH", os.defpath), str(PROGRAMS)]),
        # TorchServe appends the folder of the archive's code.
        "PYTHONPATH": str(WITHOUT_TORCH),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
    }
    # Java takes the names of files and what it is told in the locale's encoding, and no option changes that.
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
