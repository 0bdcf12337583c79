"""The table of learners in `docs/reference/learners.md`."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.paths import TOY_LABELLED
from tests.training.learners import BEGIN, END, FAILED, KINDS, PAGE, outcome_of, read_texts


def test_the_table_has_every_kind_and_none_has_failed() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    names = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)[1:]
    assert names == [kind.name for kind in KINDS]
    assert FAILED not in table


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
def test_a_row_is_measured(tmp_path: Path) -> None:
    table = pd.concat([read_texts(TOY_LABELLED)] * 4)
    outcome = outcome_of(KINDS[0], table, tmp_path)
    assert outcome.refused == ""
    assert outcome.measured == 20
    assert outcome.served < 0.1
