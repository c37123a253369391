"""Every method tells the main result of its own paper, and its card shows it."""

from pathlib import Path

import pytest

from paceline.cli.listing import card
from paceline.registry import find_method, method_names


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_headline_of_its_own_paper(name):
    cls = find_method(name)
    owner = next(c for c in cls.__mro__ if "headline" in vars(c))
    assert owner.paper == cls.paper, f"{cls.__name__} shows the headline of {owner.__name__}, which is of another paper"
    assert 20 <= len(cls.headline) <= 120
    assert not cls.headline.endswith(".")
    assert card(cls, name)["headline"] == cls.headline


@pytest.mark.parametrize("name", [name for name in method_names() if find_method(name).differs])
def test_the_page_of_a_method_begins_with_how_it_differs_from_the_paper(name):
    cls = find_method(name)
    page = Path(__file__).parents[2] / "docs" / "methods" / f"{cls.family}.md"
    assert f"- `{name}`: {cls.differs}.\n" in page.read_text().partition("\n## ")[0]
    assert card(cls, name)["differs"] == cls.differs
    assert len(cls.differs) <= 130
