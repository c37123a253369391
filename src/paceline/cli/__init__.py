"""Command-line interface `paceline`. Importing it, or printing its help, imports neither torch nor NumPy."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["main", "plain_warnings"]


def plain_warnings() -> None:
    """Show the warnings of Paceline as messages on stderr, without the line of its source; others as Python does."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not category.__module__.startswith("paceline."):
            usual(message, category, *place, **more)
            return
        from paceline.cli.show import show_warning

        show_warning(category.__name__, str(message))

    warnings.showwarning = show


def main() -> None:
    """Run the command line and exit with its exit code."""
    from paceline.cli.app import app
    from paceline.cli.signals import listen
    from paceline.core.allocator import keep_freed

    plain_warnings()
    listen()
    keep_freed()
    app()
