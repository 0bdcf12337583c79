"""The settings of `config.properties` that the start and the stop of TorchServe need, read as TorchServe reads them."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from server.address import ANY_HOST, Address

ADDRESS = re.compile(r"http://([^:^/]+):([0-9]+)", flags=re.IGNORECASE)
"""The addresses that TorchServe accepts (`ConfigManager.ADDRESS_PATTERN`), without TLS and Unix sockets. TorchServe
accepts no IPv6 addresses."""

LAST_PORT = 65_534
"""The highest port that TorchServe accepts: it rejects 65,535."""

MAX_JAVA_INTEGER = 2**31 - 1
NUMBERS_OF_A_VERSION = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")
SETTINGS_OF_A_VERSION = (*NUMBERS_OF_A_VERSION, "defaultVersion", "marName", "runtimeType")
"""What TorchServe reads of a version in the setting `models`. It ignores other names, and reads a number below 1 as its
default: a `maxBatchDelay` of 0 means 100 ms."""

FROM_ENVIRONMENT = re.compile(r"\$\$([^$]+[^$])\$\$")
"""`$$NAME$$` in a value stands for an environment variable (`ConfigManager.resolveEnvVarVals`)."""

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]*"
"""The name of a model that needs no quoting in a URL and can be the name of an archive's file."""

ALL = "all"
"""`load_models=all`: every archive of the model store."""


class ConfigurationError(Exception):
    """The configuration cannot be used. The message says why and what is expected."""


@dataclass(frozen=True)
class Properties:
    """The settings of one properties file.

    A property raises `ConfigurationError` if its setting has a value that TorchServe or this program cannot use.
    """

    path: Path
    values: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Properties":
        """Read a properties file.

        Environment variables override its values in the cases in which they override them for TorchServe.

        Raises:
            ConfigurationError: the file cannot be read, or TorchServe would read a value that differs from the written
                one.
        """
        try:
            # If the path is a link, TorchServe's working folder is the folder of the file that the link leads to.
            path = Path(os.path.realpath(path))
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigurationError(f"No file at {path}; expected TorchServe's config.properties.") from error
        except OSError as error:
            raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
        values = {}
        for number, line in _logical_lines(content.decode("latin-1")):
            try:
                name, value = _pair(line)
                values[name] = FROM_ENVIRONMENT.sub(_environment_variable, value)
            except ValueError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}.") from error
        if values.get("enable_envvars_config", "").lower() == "true":
            names = {name: f"TS_{name.upper()}" for name in _SETTINGS}
            values |= {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        return cls(path, values)

    @property
    def inference(self) -> Address:
        """The public address of the inference API."""
        return self._http("inference_address", "http://127.0.0.1:8080")

    @property
    def management(self) -> Address:
        """The public address of the management API."""
        return self._http("management_address", "http://127.0.0.1:8081")

    @property
    def metrics(self) -> Address:
        """The public address of the metrics."""
        return self._http("metrics_address", "http://127.0.0.1:8082")

    @property
    def public(self) -> tuple[Address, Address, Address]:
        """The addresses for HTTP clients: inference, management and metrics."""
        return self.inference, self.management, self.metrics

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses that TorchServe binds, or that the door binds in its place.

        Raises:
            ConfigurationError: a setting is not an address, or two addresses have the same port.
        """
        addresses = [*self.public]
        addresses += [self._grpc("inference", "7070"), self._grpc("management", "7071")]
        if self.values.get("use_native_io", "true").lower() != "true":
            addresses.append(self.worker_address)
        for first, second in combinations(addresses, 2):
            if first.port == second.port and (first.host == second.host or ANY_HOST & {first.host, second.host}):
                raise ConfigurationError(
                    f"{self.path}: {first.setting} and {second.setting} have the same port, {first.port}; expected "
                    "different ports."
                )
        return tuple(addresses)

    @property
    def worker_address(self) -> Address:
        """The address of the first worker, if workers listen on ports and not on sockets in the temporary folder."""
        return Address("initial_worker_port", "127.0.0.1", self._port("initial_worker_port", "9000"))

    @property
    def model_store(self) -> Path:
        """The folder of the model archives."""
        return self.path.parent / self.values.get("model_store", "model_store")

    @property
    def metrics_config(self) -> Path | None:
        """The file with the list of metrics; None for TorchServe's default list."""
        value = self.values.get("metrics_config")
        return None if value is None else self.path.parent / value

    def check_tokens(self) -> None:
        """Check that TorchServe's token authorization is off.

        Raises:
            ConfigurationError: it is on.
        """
        value = self.values.get(_TOKENS_OFF, "true")
        if value.lower() != "true":
            raise ConfigurationError(
                f"{self.path}: {_TOKENS_OFF}={value}, but TorchServe's own tokens are not supported; expected "
                f"{_TOKENS_OFF}=true. To require bearer keys, set SENTIMENT_KEY_FILE to a file with one key per line."
            )

    @property
    def max_response_size(self) -> int:
        """The size limit for a worker's reply, in bytes: TorchServe reads no longer reply.

        Raises:
            ConfigurationError: the setting is not a number.
        """
        value = self.values.get("max_response_size", "6553500")
        if not value.isdecimal() or len(value) > len(str(MAX_JAVA_INTEGER)):
            raise ConfigurationError(
                f"{self.path}: max_response_size={value:.40}; expected a number of bytes up to {MAX_JAVA_INTEGER}."
            )
        return int(value)

    @property
    def has_default_workers(self) -> bool:
        """Whether the configuration sets a default number of workers for all models."""
        return "default_workers_per_model" in self.values

    @property
    def jvm_arguments(self) -> list[str]:
        """The options for Java in the setting `vmargs`."""
        return self.values.get("vmargs", "").split()

    def with_models(self, entries: Sequence[str]) -> "Properties":
        """This configuration with the models of `load_models` replaced.

        Args:
            entries: `NAME=FILE` for each model, or `NAME` for the file `NAME.mar` of the model store.

        Raises:
            ConfigurationError: an entry is malformed, or two have the same name.
        """
        files: dict[str, str] = {}
        for entry in entries:
            name, equals, file = entry.partition("=")
            if re.fullmatch(NAME_PATTERN, name) is None or (equals and not file):
                raise ConfigurationError(
                    f"--model {entry}: expected NAME or NAME=FILE. NAME consists of letters, digits, points, hyphens "
                    f"and underscores; FILE is an archive in {self.model_store}."
                )
            if name in files:
                raise ConfigurationError(f"--model {entry}: the name {name} is given twice; expected unique names.")
            files[name] = file or f"{name}.mar"
        load_models = ",".join(f"{name}={file}" for name, file in files.items())
        return replace(self, values={**self.values, "load_models": load_models})

    @property
    def models(self) -> dict[str, str]:
        """The models that TorchServe loads at the start.

        Returns:
            File names in the model store, by entry of `load_models`: `name=file`, or a file name.

        Raises:
            ConfigurationError: there is no model, the model store cannot be listed, or the setting `models` is not JSON
                of the form that TorchServe reads.
        """
        self._model_settings()
        setting = self.values.get("load_models", "")
        if setting.lower() == ALL:
            files = sorted(path.name for path in self._listed_store())
            entries = {file: file for file in files}
        else:
            entries = {entry: entry.partition("=")[2] or entry for entry in setting.split(",") if entry}
        if not entries:
            problem = "the model store has no archive (*.mar)" if setting else "TorchServe would start without a model"
            raise ConfigurationError(
                f"{self.path}: load_models={setting}, but {problem}; expected, for instance, "
                f"load_models=sentiment.mar for that file in {self.model_store}."
            )
        return entries

    def _listed_store(self) -> list[Path]:
        try:
            return [path for path in self.model_store.iterdir() if path.suffix == ".mar"]
        except OSError as error:
            raise ConfigurationError(f"Cannot read the model store, {self.model_store}: {error.strerror}.") from error

    def settings_of(self, models: Iterable[tuple[str, str, str]], workers: int | None = None) -> str:
        """The setting `models` for the models that TorchServe loads at the start, as JSON.

        If the configuration does not name a version, the version gets the settings of the first version of its model,
        or else of the first model. Every model therefore has the configured batching, whatever its name is.

        Args:
            models: name, version and file of each model.
            workers: the number of workers of each model for which the configuration sets none; None for TorchServe's
                default.
        """
        default_workers = {} if workers is None else {"minWorkers": workers, "maxWorkers": workers}
        configured = self._model_settings()
        first = next((versions for versions in configured.values() if versions), {})
        settings = {name: dict(versions) for name, versions in configured.items()}
        for name, version, file in models:
            versions = configured.get(name) or first
            version_settings = versions.get(version) or next(iter(versions.values()), {})
            added = {} if default_workers.keys() & version_settings.keys() else default_workers
            settings.setdefault(name, {})[version] = version_settings | added | {"marName": file}
        return json.dumps(settings)

    def _model_settings(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The setting `models`: the settings of each version of each model, by name and version.

        Raises:
            ConfigurationError: the setting `models` is not JSON of the form that TorchServe reads, or TorchServe would
                ignore a part of it.
        """
        value = self.values.get("models")
        if value is None:
            return {}
        expected = 'expected {"NAME": {"VERSION": {"marName": "FILE", ...}}}'
        try:
            by_name = json.loads(value)
        except ValueError as error:
            raise ConfigurationError(f"{self.path}: models is not JSON ({error}); {expected}.") from error
        models = by_name.values() if isinstance(by_name, dict) else [None]
        if not all(
            isinstance(versions, dict) and all(isinstance(version, dict) for version in versions.values())
            for versions in models
        ):
            raise ConfigurationError(f"{self.path}: models is not a JSON object of models and versions; {expected}.")
        settings: dict[str, dict[str, dict[str, Any]]] = by_name
        for name, versions in settings.items():
            for version, version_settings in versions.items():
                self._check_version(f"{name} {version}", version_settings)
        return settings

    def _check_version(self, version: str, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if name not in SETTINGS_OF_A_VERSION:
                raise ConfigurationError(
                    f"{self.path}: models has {name} for {version}, but TorchServe would ignore it; expected only "
                    f"{', '.join(SETTINGS_OF_A_VERSION)}."
                )
            if name in NUMBERS_OF_A_VERSION and not (type(value) is int and 0 < value <= MAX_JAVA_INTEGER):
                raise ConfigurationError(
                    f"{self.path}: models has {name} {shortened(value)} for {version}; expected a whole number from 1 "
                    f"to {MAX_JAVA_INTEGER}."
                )

    def _http(self, setting: str, default: str) -> Address:
        value = self.values.get(setting, default)
        match = ADDRESS.fullmatch(value)
        if match is None or not 0 < int(match[2]) <= LAST_PORT:
            raise ConfigurationError(
                f"{self.path}: {setting}={value}; expected http://HOST:PORT with a port from 1 to {LAST_PORT} and no "
                "path. TorchServe accepts no IPv6 address here; terminate TLS in a proxy in front of the server."
            )
        return Address(setting, match[1], int(match[2]))

    def _grpc(self, api: str, default_port: str) -> Address:
        setting = f"grpc_{api}_port"
        port = self._port(setting, default_port)
        return Address(setting, self.values.get(f"grpc_{api}_address", "127.0.0.1"), port)

    def _port(self, setting: str, default: str) -> int:
        value = self.values.get(setting, default)
        if re.fullmatch("[0-9]{1,5}", value) is None or not 0 < int(value) <= LAST_PORT:
            raise ConfigurationError(
                f"{self.path}: {setting}={value}; expected a port number from 1 to {LAST_PORT}, without blanks."
            )
        return int(value)


_TOKENS_OFF = "disable_token_authorization"

_SETTINGS = (
    *("inference_address", "management_address", "metrics_address", "grpc_inference_address"),
    *("grpc_management_address", "grpc_inference_port", "grpc_management_port", "initial_worker_port"),
    *("model_store", "load_models", "metrics_config", _TOKENS_OFF, "max_response_size"),
)
"""The settings read here that TorchServe also reads from environment variables (`TS_` and the setting's name), if
`enable_envvars_config` is true."""


# TorchServe reads its configuration by java.util.Properties.load; the functions below follow it.

_BLANK = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def _logical_lines(content: str) -> Iterator[tuple[int, str]]:
    """The number and the text of each logical line, without comments.

    A line that ends with a backslash continues in the next line.
    """
    lines = re.split("\r\n|\r|\n", content)
    start, line = 1, ""
    for number, text in enumerate(lines, 1):
        start = start if line else number
        part = text.lstrip(_BLANK)
        if not line and part.startswith(("#", "!")):
            continue
        line += part
        if _goes_on(line):
            line = line[:-1]
            if line and number == len(lines):
                yield start, line
        elif line:
            yield start, line
            line = ""


def _goes_on(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _pair(line: str) -> tuple[str, str]:
    """The name and the value of the setting in a logical line.

    Raises:
        ValueError: an escape is malformed, or Java would read a character as a different one.
    """
    _check_characters(line)
    match = re.match(rf"((?:[^=:{_BLANK}\\]|\\.)*)[{_BLANK}]*[=:]?[{_BLANK}]*(.*)", line, flags=re.DOTALL)
    assert match is not None, line
    return _unescaped(match[1]), _unescaped(match[2])


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2] == "u":
            raise ValueError(r"expected four hexadecimal digits after \u, as in \u00e9")
        return _ESCAPES.get(match[2], match[2])

    units = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.?))", character, text, flags=re.DOTALL)
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _check_characters(line: str) -> None:
    """Check that Java reads the characters that were written.

    Java reads each byte as a character of ISO-8859-1, but editors write UTF-8.

    Raises:
        ValueError: Java would read other characters.
    """
    if "\0" in line:
        raise ValueError("the line is not text in ASCII, ISO-8859-1 or UTF-8; save the file in one of these encodings")
    try:
        text = line.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:  # the line is in ISO-8859-1
        return
    if text.startswith("\ufeff"):
        raise ValueError("TorchServe takes the byte-order mark for a setting; save the file without it")
    for character in text:
        if not character.isascii():
            units = character.encode("utf-16-be")
            escaped = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
            raise ValueError(
                f"TorchServe reads the file as ISO-8859-1, not as UTF-8, and would misread {character!r}; write "
                f"{escaped}"
            )


def _environment_variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise ValueError(f"the environment variable {match[1]} is not set")
    return value
