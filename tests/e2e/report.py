"""A table of the results of the fault tests. `make fault-test`, their long form, writes it into the documentation."""

import os
import re
import time
from collections import Counter
from typing import Final

from tests.e2e.traffic import NO_ANSWER, Traffic
from tests.paths import ROOT

LONG: Final = os.environ.get("FAULTS") == "long"
PAGE: Final = ROOT / "docs" / "explanation" / "torchserve.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"

ROWS: Final = 22
"""The number of rows of a complete table."""


def sized(short: int, long: int) -> int:
    """The number of repetitions: `short` in `make test`, `long` in `make fault-test`."""
    return long if LONG else short


class Report:
    """The rows of the table."""

    def __init__(self) -> None:
        self._rows: list[str] = []

    def traffic(self, fault: str, traffic: Traffic, remark: str = "") -> None:
        """Add the row of a fault: the outcomes of the requests that were sent during it."""
        slowest = f"longest wait {traffic.slowest_s():.1f} s"
        self.add(fault, traffic.sent, len(traffic.right()), traffic.refusals(), slowest, remark)

    def add(self, fault: str, sent: int, right: int, errors: Counter[tuple[int, str]], *figures: str) -> None:
        """Add a row.

        Args:
            fault: what happens during the test.
            sent: the number of requests.
            right: the number of correct predictions.
            errors: the number of each error, by status and type.
            figures: further results.
        """
        listed_errors = ", ".join(
            f"{count:,} × {'no response,' if status == NO_ANSWER else status} `{kind}`"
            for (status, kind), count in sorted(errors.items())
        )
        figure = "; ".join(filter(None, figures))
        self._rows.append(f"| {fault} | {sent:,} | {right:,} | {listed_errors or 'none'} | {figure} |")

    def table(self) -> str:
        """The table in Markdown."""
        head = "| fault | sent | right answers | errors | figures |\n|---|---|---|---|---|"
        return "\n".join([head, *self._rows])

    def write(self) -> None:
        """Write a complete table into the page, between its marks; print an incomplete one."""
        if len(self._rows) != ROWS:
            print(self.table())
            return
        text = f"{BEGIN}\n{time.strftime('%Y-%m-%d')}:\n\n{self.table()}\n{END}"
        page, count = re.subn(f"(?s){BEGIN}.*?{END}", lambda _: text, PAGE.read_text(encoding="utf-8"))
        assert count == 1, f"{PAGE} has {count} places for the table"
        PAGE.write_text(page, encoding="utf-8")
