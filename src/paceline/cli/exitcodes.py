"""Exit codes, derived from the exception tree, so that the help and `docs/errors.md` cannot become outdated.

``python -m paceline.cli.exitcodes > docs/errors.md`` regenerates the page.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from paceline.core import errors

__all__ = ["Row", "codes", "epilog", "page", "rows"]

ENDINGS = {
    0: "The command succeeded.",
    1: "A fault in Paceline or in a method's own server code (a traceback is printed), or `doctor` found a fault.",
    2: "The command line is malformed: an unknown command or option, or a missing argument.",
    129: "Ended by SIGHUP, for example because the terminal was closed; otherwise like 130.",
    130: "Interrupted with Ctrl-C (SIGINT). Continue an interrupted run with `paceline resume RUN`.",
    143: "Ended by SIGTERM; otherwise like 130. `paceline server` and `paceline client` end with 0 instead, after saving their state.",
}
"""Exit codes that do not belong to a `PacelineError`."""

HEAD = """# Errors and exit codes

Every error that Paceline raises deliberately is a `PacelineError`. On the command line its message is written to stderr, and the process
ends with the exit code of its class. The option `--debug`, at any position, adds the traceback. With `--json` the error is one JSON
object on stderr, `{"error": CLASS, "message": ..., "exit_code": ...}`, and stdout is empty.

A message states what was wrong, where, and what to do next. Two kinds have a special form:

- An error in a client function is a `ClientError` with the client, the function, the round, the class and message of the exception,
  and `file:line` in *your* code: the innermost frame outside Paceline, torch, numpy and the standard library. With `--on-error drop`
  the run continues: the record of each round in `metrics.jsonl` contains the reasons as `lost`, and each new reason issues one
  warning (`RoundWarning`). In a secure sum of a real federation the server receives no reasons; they are in the client's log.
- A sum or call with too few replies is a `QuorumError`. It contains the number of clients that were late, disconnected, refused or
  failed, and one example client for each of the most frequent reasons:
  `5 of 5 clients gave no reply: 1 late, 4 failed (4 times KeyError: 'mu' (mine.py:12), such as client 0)`.

`python -m paceline.cli.exitcodes > docs/errors.md` generates this page; a test compares the two.
"""


@dataclass(frozen=True)
class Row:
    """One error: exit code, class, base class and meaning."""

    code: int
    name: str
    parent: str
    meaning: str


def rows() -> list[Row]:
    """Return all errors, ordered by exit code, base classes first."""
    found = []
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not (isinstance(cls, type) and issubclass(cls, errors.PacelineError)):
            continue
        above = next((c.__name__ for c in cls.__mro__[1:] if issubclass(c, errors.PacelineError)), "")
        meaning = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
        found.append((cls.exit_code, len(cls.__mro__), Row(cls.exit_code, name, above, meaning)))
    return [row for _, _, row in sorted(found, key=lambda item: (item[0], item[1], item[2].name))]


def codes() -> dict[int, str]:
    """Return the names of the errors of each exit code."""
    texts: dict[int, list[str]] = {}
    for row in rows():
        texts.setdefault(row.code, []).append(row.name)
    return {code: ", ".join(names) for code, names in sorted(texts.items())}


def epilog() -> str:
    """Return the list of exit codes for ``paceline --help``."""
    known = {0: "done", **codes(), 130: "interrupted", 143: "terminated by SIGTERM"}
    return "\b\n" + "\n".join(["Exit codes (docs/errors.md):", *(f"{code:>3}  {text}" for code, text in known.items())])


def page() -> str:
    """Return the content of `docs/errors.md`."""
    lines = [
        HEAD,
        "## Errors\n",
        "| exit code | error | base class | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows():
        above = f"`{row.parent}`" if row.parent else ""
        lines.append(f"| {row.code} | `{row.name}` | {above} | {row.meaning} |")
    lines += ["\n## Other exit codes\n", "| exit code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {text} |" for code, text in ENDINGS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
