"""Any request at all gets an answer that handler/openapi.yaml describes: schemathesis makes them, right ones and wrong
ones, from that description."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection

from handler.headers import FORM_TYPES
from tests.e2e.report import Report, sized
from tests.e2e.server_process import Server
from tests.paths import ROOT

# Over a limit is 413, also over that of all texts together; TorchServe routes methods and paths as it will.
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "negative_data_rejection": {"expected-statuses": ["400", "413"]},
            "positive_data_acceptance": {"expected-statuses": ["200", "413"]},
            "unsupported_method": {"enabled": False},
        }
    }
)
SCHEMA = schemathesis.openapi.from_path(ROOT / "handler" / "openapi.yaml", config=CONFIG)

EXAMPLES = sized(100, 5_000)
"""For each of the two operations."""

BROKEN_FORM = "ErrorDataDecoderException"
"""What TorchServe itself answers, with 500, to a form that it cannot read."""


@pytest.fixture(scope="module")
def answers(report: Report) -> Iterator[Counter[tuple[int, str]]]:
    seen: Counter[tuple[int, str]] = Counter()
    yield seen
    right = sum(count for (status, _), count in seen.items() if status == 200)
    errors = Counter({answer: count for answer, count in seen.items() if answer[0] != 200})
    report.add(f"{seen.total():,} requests of a fuzzer", seen.total(), right, errors, "right: as described")


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_an_answer_as_described(
    case: schemathesis.Case[Any], server: Server, answers: Counter[tuple[int, str]]
) -> None:
    response = case.call(base_url=server.project.inference)
    body = response.json()
    kind = "" if response.status_code == 200 else body["type"]
    answers[response.status_code, kind] += 1
    if kind == BROKEN_FORM and case.media_type in FORM_TYPES:
        return
    # Whatever a part of a multipart form holds is a text, so no other type can be refused there.
    is_multipart = case.media_type == "multipart/form-data"
    case.validate_response(response, excluded_checks=[negative_data_rejection] if is_multipart else [])
