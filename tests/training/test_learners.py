"""The table of learners in `model_store/README.md`."""

import re
from pathlib import Path

import pytest

from tests.paths import TOY_LABELLED
from tests.training.learners import BEGIN, END, FAILED, KINDS, PAGE, Kind, outcome_of, read_texts


def test_the_table_has_every_kind_and_none_has_failed() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    names = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)[2:]
    assert names == [kind.name for kind in KINDS]
    assert FAILED not in table


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
@pytest.mark.parametrize("kind", [KINDS[0]], ids=lambda kind: kind.name)
def test_a_row_is_measured(kind: Kind, tmp_path: Path) -> None:
    outcome = outcome_of(kind, read_texts(TOY_LABELLED), tmp_path)
    assert outcome.refused == ""
    assert outcome.measured == 5
    assert outcome.served < 0.1
