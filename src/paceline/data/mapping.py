"""How a site's names differ from a schema's: its own columns and values, each with the schema's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paceline.core.errors import ConfigError, nearest
from paceline.data.schema import Schema
from paceline.data.tables import Table

__all__ = ["Names"]


@dataclass(frozen=True)
class Names:
    """Names of a site's file.

    Args:
        columns: the schema's name of a column, by the file's.
        values: for a column of the schema: the schema's category or class, by the file's. The classes of folders are those
            of the column ``""``, or of the target's name.

    Example:
        >>> Names({"sexe": "sex"}, {"sex": {"femme": "female"}}).value("sex", "femme")
        'female'
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def value(self, column: str, text: str) -> str:
        """Return the schema's name of a value."""
        return self.values.get(column, {}).get(text, text)

    def renamed(self, table: Table, schema: Schema) -> Table:
        """Return a table with the schema's names of columns.

        Raises:
            ConfigError: the mapping names a column that the file or the schema does not have, or two columns become one.
        """
        wanted = [*(column.name for column in schema.columns), schema.target.name]
        for own, name in self.columns.items():
            if own not in table.columns:
                raise ConfigError(f"[data.columns]: {table.where} has no column {own!r}{nearest(own, table.columns)}")
            if name not in wanted:
                raise ConfigError(f"[data.columns]: the schema has no column {name!r}{nearest(name, wanted)}")
        self._check_values(wanted)
        after = [self.columns.get(name, name) for name in table.columns]
        if twice := sorted({name for name in after if after.count(name) > 1}):
            raise ConfigError(f"[data.columns]: more than one column of {table.where} becomes {twice[0]!r}; rename or drop one")
        return table.renamed(self.columns)

    def own(self, column: str) -> str:
        """Return the file's name of a column of the schema."""
        return next((own for own, name in self.columns.items() if name == column), column)

    def _check_values(self, wanted: Sequence[str]) -> None:
        for column in self.values:
            if column not in wanted:
                raise ConfigError(f"[data.values.{column}]: the schema has no column {column!r}{nearest(column, wanted)}")
