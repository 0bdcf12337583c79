"""The table of the fault tests. `make fault-test`, their long form, writes it into docs/explanation/torchserve.md."""

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
"""Of the whole table."""


def sized(short: int, long: int) -> int:
    """How many: few in `make test`."""
    return long if LONG else short


class Report:
    def __init__(self) -> None:
        self._rows: list[str] = []

    def traffic(self, fault: str, traffic: Traffic, remark: str = "") -> None:
        """A fault, and what became of the requests sent meanwhile."""
        waits = f"{traffic.slowest_s():.1f} s"
        self.add(fault, traffic.sent, len(traffic.right()), traffic.refusals(), f"longest wait {waits}", remark)

    def add(self, fault: str, sent: int, right: int, errors: Counter[tuple[int, str]], *figures: str) -> None:
        told = ", ".join(
            f"{count:,} × {'no answer,' if status == NO_ANSWER else status} `{what}`"
            for (status, what), count in sorted(errors.items())
        )
        figure = "; ".join(filter(None, figures))
        self._rows.append(f"| {fault} | {sent:,} | {right:,} | {told or 'none'} | {figure} |")

    def table(self) -> str:
        head = "| what happens | sent | right answers | errors | figures |\n|---|---|---|---|---|"
        return "\n".join([head, *self._rows])

    def write(self) -> None:
        """Into the page, between its marks; only a whole table, else to standard output."""
        if len(self._rows) != ROWS:
            print(self.table())
            return
        text = f"{BEGIN}\n{time.strftime('%Y-%m-%d')}:\n\n{self.table()}\n{END}"
        page, count = re.subn(f"(?s){BEGIN}.*?{END}", lambda _: text, PAGE.read_text(encoding="utf-8"))
        assert count == 1, f"{PAGE} has {count} places for the table"
        PAGE.write_text(page, encoding="utf-8")
