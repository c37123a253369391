"""Tables fit into the console: whole words, and no vertical lines where there is no room for them."""

import io

import pytest
from rich.console import Console

from paceline.results.display import table


def rendered(width: int) -> list[str]:
    shown = table("Results", "method", "accuracy", "time to target", "about", right=("accuracy",))
    shown.add_row("fedprox:mu=0.1", "62.3 ± 4.9 %", "0.201 ± 0 s", "a proximal term that limits drift from the global model")
    shown.add_row("fedavg", "61.0 ± 4.9 %", "0.201 ± 0 s", "averages")
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue().splitlines()


def test_a_wide_console_has_the_ordinary_table():
    lines = rendered(140)
    assert any("│ fedprox:mu=0.1 │" in line for line in lines)
    assert len(lines) == 7


@pytest.mark.parametrize("width", [80, 62, 54])
def test_a_narrow_console_has_whole_words_and_no_vertical_lines(width):
    lines = rendered(width)
    assert all(len(line) <= width for line in lines)
    assert not any("│" in line for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {"method", "accuracy", "target", "fedprox:mu=0.1", "proximal", "averages", "62.3", "global"} <= words


def test_where_words_do_not_fit_they_are_broken():
    assert all(len(line) <= 20 for line in rendered(20))
