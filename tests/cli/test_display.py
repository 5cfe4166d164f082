"""What is printed of texts that somebody else wrote."""

from __future__ import annotations

import pytest
from slmrank.cli.display import print_table
from slmrank.cli.main import report_error
from slmrank.errors import DataError

STEERING = "Nurse\x1b[1A\x1b[2K\x1b]52;c;ZXZpbA==\x07 \x9b2J \u202eknab"


def test_titles_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(STEERING, ["title"], [[STEERING], ["two\nlines"]])
    report_error(DataError(f"{STEERING}\nis no title", STEERING), as_json=False)
    shown = "".join(capsys.readouterr())
    assert shown.count("Nurse\ufffd[1A\ufffd[2K") == 4
    assert not set(shown) & set("\x07\x9b\u202e")
    assert "\x1b[1A" not in shown
    assert "two" in shown
