"""Fuzz tests: every request gets a response that handler/openapi.yaml describes.

Schemathesis generates valid and invalid requests from that description.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection

from handler.errors import RequestError
from tests.e2e.report import Report, sized
from tests.e2e.server_process import Server
from tests.paths import ROOT

# A request over a limit gets 413, also a limit that no schema states, and an unknown version gets 404.
# PUT, which `curl -T` sends, is treated as POST and not described.
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "negative_data_rejection": {"expected-statuses": ["400", "404", "413"]},
            "positive_data_acceptance": {"expected-statuses": ["200", "404", "413"]},
            "unsupported_method": {"enabled": False},
            "allow_header_conformance": {"enabled": False},
        }
    }
)
DESCRIPTION = (ROOT / "handler" / "openapi.yaml").read_text(encoding="utf-8")
MODEL_PARAMETER = {"$ref": "#/components/parameters/Model"}


def named(description: dict[str, Any], model: str) -> dict[str, Any]:
    """The description with the name of one model filled in. Most names that a fuzzer generates would get 404."""
    paths = {}
    for path, operations in description["paths"].items():
        others = [parameter for parameter in operations.get("parameters", []) if parameter != MODEL_PARAMETER]
        paths[path.replace("{model}", model)] = operations | {"parameters": others}
    return description | {"paths": paths}


SCHEMA = schemathesis.openapi.from_dict(named(yaml.safe_load(DESCRIPTION), "sentiment"), config=CONFIG)

VERSION_PATHS = ".*/versions/.*"
EXAMPLES = sized(60, 5_000)
"""The number of requests for each operation."""
FEW_EXAMPLES = sized(10, 500)
"""The number of requests for each operation on a version; the handler reads their bodies as those without a version."""


@pytest.fixture(scope="module")
def answers(report: Report) -> Iterator[Counter[tuple[int, str]]]:
    seen: Counter[tuple[int, str]] = Counter()
    yield seen
    right = sum(count for (status, _), count in seen.items() if status == 200)
    errors = Counter({answer: count for answer, count in seen.items() if answer[0] != 200})
    report.add(f"{seen.total():,} requests of a fuzzer", seen.total(), right, errors, "right: as documented")


def agree(request: Any) -> None:
    """Make a request of the Open Inference Protocol consistent, which no schema can express.

    The shape of the input becomes that of its data. No output is requested twice, and no `value`, because the served
    models have labels.
    """
    outputs = request.get("outputs") or []
    outputs[:] = [output for output in outputs if output["name"] != "value"]
    if len({output["name"] for output in outputs}) < len(outputs):
        del outputs[1:]
    for tensor in request["inputs"]:
        is_nested = any(isinstance(element, list) for element in tensor["data"])
        tensor["shape"] = [len(tensor["data"]), 1] if is_nested else [len(tensor["data"])]


@SCHEMA.exclude(path_regex=VERSION_PATHS).parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_a_response_as_described(
    case: schemathesis.Case[Any], server: Server, answers: Counter[tuple[int, str]]
) -> None:
    ask(case, server, answers)


@SCHEMA.include(path_regex=VERSION_PATHS).parametrize()
@settings(max_examples=FEW_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_to_a_version_gets_a_response_as_described(
    case: schemathesis.Case[Any], server: Server, answers: Counter[tuple[int, str]]
) -> None:
    ask(case, server, answers)


def ask(case: schemathesis.Case[Any], server: Server, answers: Counter[tuple[int, str]]) -> None:
    if case.operation.path.endswith("/infer") and case.meta and case.meta.generation.mode.is_positive:
        agree(case.body)
    response = case.call(base_url=server.project.inference)
    kind = "" if response.status_code == 200 else response.json().get("type", "error")
    answers[response.status_code, kind] += 1
    # The content of a multipart form's part is always a text, so the server cannot refuse another type there.
    is_multipart = case.media_type == "multipart/form-data"
    case.validate_response(response, excluded_checks=[negative_data_rejection] if is_multipart else [])


def test_the_description_names_every_error_and_has_no_merge_keys() -> None:
    """Swagger UI, which shows the description, ignores YAML's merge keys."""
    for error in RequestError.__subclasses__():
        assert f"`{error.__name__}`" in DESCRIPTION, error
    assert "<<:" not in DESCRIPTION
