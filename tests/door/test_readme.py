"""door/README.md: each limit of its table is one of the configuration."""

import re

from tests.door.conftest import FOLDER


def test_every_limit_has_its_setting_in_the_configuration() -> None:
    configuration = "".join((FOLDER / name).read_text() for name in ("shared.cfg", "haproxy.cfg", "large.cfg"))
    table = (FOLDER / "README.md").read_text().partition("## Limits")[2].partition("\n\nEvery refusal")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 22
    for row in rows:
        settings = re.findall(r"`([^`]+)`", row[4])
        assert settings, row
        for setting in settings:
            assert re.search(rf"{re.escape(setting)}(?![0-9])", configuration), setting
