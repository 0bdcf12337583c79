"""Input, archive and output in a bucket of Google Cloud Storage, which an emulator has in memory."""

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from gcp_storage_emulator.server import create_server

from bulk.process import FAILED, ROW_ERRORS
from tests.bulk.command import bulk, bulk_python, summary
from tests.bulk.inputs import BAD, texts, write_csv, write_json_lines, write_parquet

BUCKET = "bucket"
OBJECTS = f"/storage/v1/b/{BUCKET}/o"


class Metadata(BaseHTTPRequestHandler):
    """The part of a virtual machine's metadata server that gives access to the bucket."""

    def do_GET(self) -> None:
        """Reply with a project, an account or a token."""
        path = self.path.partition("?")[0]
        if path.endswith("/token"):
            reply = json.dumps({"access_token": "token", "expires_in": 3_600, "token_type": "Bearer"})
        elif path.endswith("/service-accounts/default/"):
            reply = json.dumps({"email": "default", "scopes": [], "aliases": []})
        else:
            reply = "googleapis.com" if path.endswith("/universe-domain") else "project"
        self.send_response(200)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/json" if reply.startswith("{") else "application/text")
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Forbidden(BaseHTTPRequestHandler):
    """Cloud Storage for an account without permissions."""

    def do_GET(self) -> None:
        """Refuse the request."""
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Expired(BaseHTTPRequestHandler):
    """Google's server of tokens for a service account whose key was deleted."""

    def do_POST(self) -> None:
        """Refuse the request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}')

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Environment variables with which Google's clients use the emulator."""
    bulk_python()
    storage = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage.start()
    port = storage._api._httpd.socket.getsockname()[1]
    with served(Metadata) as address:
        host = address.removeprefix("http://")
        yield {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "GCE_METADATA_HOST": host,
            "GCE_METADATA_IP": host,
        }
    storage.stop()


def test_files_in_a_bucket_have_the_results_of_local_files(
    environment: dict[str, str], mar: Path, tmp_path: Path
) -> None:
    values = [*texts(300), *BAD.values()]
    (tmp_path / "in").mkdir()
    write_csv(tmp_path / "in" / "tweets.csv", values)
    write_json_lines(tmp_path / "in" / "tweets.jsonl", values)
    write_parquet(tmp_path / "in" / "tweets.parquet", values)
    for path in (tmp_path / "in").iterdir():
        upload(environment, path.relative_to(tmp_path).as_posix(), path.read_bytes())
    upload(environment, "sentiment.mar", mar.read_bytes())
    there = (f"gs://{BUCKET}/in/tweets.*", f"gs://{BUCKET}/out/scored", f"gs://{BUCKET}/sentiment.mar")
    result = bulk(*there, "--json", **environment)
    assert result.returncode == ROW_ERRORS, result.stderr
    counts = summary(result)
    assert (counts["rows"], counts["errors"]) == (3 * len(values), 3 * len(BAD))

    local = bulk(tmp_path / "in" / "tweets.*", tmp_path / "out" / "scored", mar, "--json")
    assert local.returncode == ROW_ERRORS, local.stderr
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert expected
    written = names(environment, "out/")
    assert written == {f"out/{name}" for name in expected} | {"out/scored.run.json"}
    for name, content in expected.items():
        assert download(environment, f"out/{name}") == content, name

    again = bulk(*there, "--json", **environment)
    assert summary(again)["earlier_shards"] == counts["shards"]
    assert names(environment, "out/") == written


def test_a_bucket_without_permission_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    archive = f"gs://{BUCKET}/sentiment.mar"
    with served(Forbidden) as address:
        host = {"STORAGE_EMULATOR_HOST": address}
        result = bulk(tmp_path / "in.csv", tmp_path / "out", archive, **environment | host)
    assert result.returncode == FAILED
    assert result.stderr.startswith(f"error: {archive} cannot be read: 403 "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the key of the service account")
def test_expired_credentials_are_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    archive = f"gs://{BUCKET}/sentiment.mar"
    with served(Expired) as address:
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key": key,
            "client_email": "account@project.invalid",
            "token_uri": f"{address}/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        credentials = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json")}
        result = bulk(tmp_path / "in.csv", tmp_path / "out", archive, **environment | credentials)
    assert result.returncode == FAILED
    assert result.stderr.startswith(f"error: {archive} cannot be read: ('invalid_grant: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server, and give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def upload(environment: dict[str, str], name: str, content: bytes) -> None:
    """Write an object."""
    url = f"{environment['STORAGE_EMULATOR_HOST']}/upload{OBJECTS}"
    query = {"uploadType": "media", "name": name}
    requests.post(url, content, params=query, timeout=10).raise_for_status()


def download(environment: dict[str, str], name: str) -> bytes:
    """Read an object."""
    url = f"{environment['STORAGE_EMULATOR_HOST']}{OBJECTS}/{quote(name, '')}"
    response = requests.get(url, params={"alt": "media"}, timeout=10)
    response.raise_for_status()
    return response.content


def names(environment: dict[str, str], prefix: str) -> set[str]:
    """List objects."""
    url = f"{environment['STORAGE_EMULATOR_HOST']}{OBJECTS}"
    reply = requests.get(url, params={"prefix": prefix}, timeout=10).json()
    return {item["name"] for item in reply.get("items", [])}
