"""The benchmark of bulk scoring: the guide quotes its results."""

import json

import pytest

from benchmarks.bulk import PAGE, RESULTS, table, with_table


def test_the_guide_has_the_table_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_the_table_compares_the_rates() -> None:
    def size(texts: int, seconds: float) -> dict[str, object]:
        figures = {
            "seconds": seconds,
            "processor_seconds": 2 * seconds,
            "starter_megabytes": 240.0,
            "worker_megabytes": 290.0,
            "worker_megabytes_by_quarter": [280.0, 290.0, 290.0, 290.0],
        }
        loop = {"tokenizer_us": 100.0, "engine_us": 500.0}
        return {"texts": texts, "loop": loop, "bulk": figures, "score": {"seconds": 2 * seconds}}

    text = table({"date": "2026-11-29", "cores": 2, "sizes": [size(10_000, 5.0), size(110_000, 35.0)]})
    assert "| a loop around the engine, tokens given | 2,000 | 2,000 |" in text
    assert "| **`python -m bulk`**, the whole command | 1,000 | 1,571 |" in text
    assert "| `sentiment score` with one server | 500 | 786 |" in text
    assert "| bulk against the engine's loop (goal: 85 %) | 50 % | 79 % |" in text
    assert "without the start of the command: 1,667 texts per second and core, 83 % of the engine's loop" in text


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected once"):
        with_table("# A page", json.loads(RESULTS.read_text(encoding="utf-8")))
