"""Command-line interface `paceline`. Importing it, or printing its help, imports neither torch nor NumPy."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its exit code."""
    from paceline.cli.app import app
    from paceline.cli.signals import listen
    from paceline.core.allocator import keep_freed

    listen()
    keep_freed()
    app()
