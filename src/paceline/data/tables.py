"""A table as it was read: named columns of texts, whatever the file's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from paceline.core.errors import UnknownNameError

__all__ = ["Table", "Typed"]

Typed = Literal["number", "text", "date"]


@dataclass(frozen=True)
class Table:
    """Columns of texts of equal length; an empty text is a missing value.

    Args:
        where: name of the file, for messages.
        columns: cells by column.
        lines: position of each row in the file.
        unit: what `lines` counts: ``line`` or ``row``.
        notes: what was recognised or skipped.
        types: types of columns that the file itself declares.
    """

    where: str
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    unit: str = "row"
    notes: tuple[str, ...] = ()
    types: Mapping[str, Typed] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.where}, {self.unit} {self.lines[row]}"

    def check(self, *names: str) -> None:
        """Raise `UnknownNameError` for a column that does not exist."""
        for name in names:
            if name not in self.columns:
                raise UnknownNameError(f"column of {self.where}", name, self.columns)

    def renamed(self, names: Mapping[str, str]) -> Table:
        """Return the table with other names of columns.

        Args:
            names: new name of each column to rename.
        """
        columns = {names.get(name, name): cells for name, cells in self.columns.items()}
        return replace(self, columns=columns, types={names.get(name, name): kind for name, kind in self.types.items()})
