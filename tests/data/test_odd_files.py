"""Every odd file of `docs/data.md` is read right, or refused with what to do."""

import contextlib
import re
import warnings
from pathlib import Path

import pytest

from paceline.core.errors import DataFormatError, PacelineError
from paceline.data.columns import ColumnWarning
from paceline.data.files import read_files
from tests.data.odd_files import CASES

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("odd", CASES, ids=lambda odd: odd.title)
def test_odd_file(odd, tmp_path):
    name = odd.make(tmp_path)
    if odd.says:
        with pytest.raises(PacelineError, match=odd.says) as caught:
            read_files(name)
        assert str(tmp_path) in str(caught.value)
        assert isinstance(caught.value, DataFormatError)
        return
    expected = pytest.warns(ColumnWarning, match=odd.warns) if odd.warns else contextlib.nullcontext()
    with warnings.catch_warnings(), expected:
        if not odd.warns:
            warnings.simplefilter("error", ColumnWarning)
        _, data = read_files(name)
    assert odd.check(data), data.notes


def test_the_page_lists_each_of_them_once():
    table = PAGE.read_text().partition("## Odd files")[2].partition("\n## ")[0]
    listed = [re.split(r" (?<!\\)\| ", line.removeprefix("| "))[0] for line in table.splitlines() if line.startswith("| ")][2:]
    assert listed == [odd.title for odd in CASES]
    assert len(listed) >= 40


def test_the_page_says_of_each_what_happens():
    table = PAGE.read_text().partition("## Odd files")[2]
    rows = {odd.title: next(line for line in table.splitlines() if line.startswith(f"| {odd.title} |")) for odd in CASES}
    for odd in CASES:
        outcome = rows[odd.title].removeprefix(f"| {odd.title} |").strip()
        assert outcome.startswith("refused" if odd.says else "read"), odd.title
        assert ("warning" in outcome) == bool(odd.warns), odd.title
