"""`config.properties`, as far as starting and stopping TorchServe needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


class ConfigurationError(Exception):
    """The configuration cannot be used. The message says why and what is expected."""


@dataclass(frozen=True)
class Address:
    """Where TorchServe listens."""

    setting: str
    """The setting that decides the port."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """For a client on this machine."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host

    def url(self) -> str:
        """For a client on this machine."""
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Properties:
    path: Path
    values: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Properties":
        """Read a properties file.

        Raises:
            ConfigurationError: no such file.
        """
        if not path.is_file():
            raise ConfigurationError(f"No file at {path}; expected TorchServe's config.properties.")
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        return cls(path, {name.strip(): value.strip() for name, _, value in pairs})

    @property
    def inference(self) -> Address:
        return self._http("inference_address", "http://127.0.0.1:8080")

    @property
    def management(self) -> Address:
        return self._http("management_address", "http://127.0.0.1:8081")

    @property
    def metrics(self) -> Address:
        return self._http("metrics_address", "http://127.0.0.1:8082")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All addresses that TorchServe binds."""
        return (
            self.inference,
            self.management,
            self.metrics,
            self._grpc("inference", "7070"),
            self._grpc("management", "7071"),
        )

    @property
    def model_store(self) -> Path:
        return self.path.parent / self.values.get("model_store", "model_store")

    @property
    def token_authorization(self) -> bool:
        """Whether TorchServe wants tokens, which it does unless it is told not to."""
        return self.values.get("disable_token_authorization", "false").lower() != "true"

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its tokens' keys: its working folder."""
        return self.path.parent / "key_file.json"

    @property
    def max_response_size(self) -> int:
        """The most bytes of a worker's reply that TorchServe reads.

        Raises:
            ConfigurationError: the setting is not a number.
        """
        value = self.values.get("max_response_size", "6553500")
        if not value.isdecimal():
            raise ConfigurationError(f"{self.path}: max_response_size={value}; expected a number of bytes.")
        return int(value)

    @property
    def jvm_arguments(self) -> list[str]:
        return self.values.get("vmargs", "").split()

    @property
    def archives(self) -> list[Path]:
        """The archives that are loaded at the start."""
        names = self.values.get("load_models", "")
        if names.strip() == "all":
            return sorted(self.model_store.glob("*.mar"))
        return [self.model_store / name.rpartition("=")[2].strip() for name in names.split(",") if name.strip()]

    def _http(self, setting: str, default: str) -> Address:
        value = self.values.get(setting, default)
        parts = urlsplit(value)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ConfigurationError(f"{self.path}: {setting}={value}; expected http://HOST:PORT.")
        return Address(setting, parts.hostname, parts.port)

    def _grpc(self, api: str, default_port: str) -> Address:
        setting = f"grpc_{api}_port"
        port = self.values.get(setting, default_port)
        if not port.isdecimal():
            raise ConfigurationError(f"{self.path}: {setting}={port}; expected a port's number.")
        return Address(setting, self.values.get(f"grpc_{api}_address", "127.0.0.1"), int(port))
