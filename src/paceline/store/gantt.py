"""Gantt charts of a round: which client computes, sends or waits, and in which phase of the protocol.

A timeline is a list of phases in order, as in ``timeline.json``::

    {"name": "masked", "start": 0.3, "seconds": 21.0, "clients": {"0": [12.1, 3.4]}, "out": [3]}

Times are virtual seconds since the start of the round; a client's are those of its work and of both transfers. `out` are the
clients that sat out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.patches import Patch

from paceline.core.errors import StoreError
from paceline.store.plots import STYLE, Picture, layout

__all__ = ["Timeline", "draw_rounds"]

Timeline = Sequence[Mapping[str, Any]]

_COMPUTES, _SENDS, _WAITS = "#4C78A8", "#F2A65A", "#E4E4E4"
_PHASES = {
    "advertise": ("keys", "#7FB77E"),
    "share": ("shares of secrets", "#9D7AB5"),
    "masked": ("training, masked reply", "#56B4E9"),
    "consistency": ("list of survivors", "#C9635F"),
    "unmask": ("opening the sum", "#E6C229"),
    "report": ("exchange of times", "#7FB77E"),
    "train": ("training", "#56B4E9"),
    "evaluate": ("evaluation", "#B9B9B9"),
}
"""Names and colours of phases; others have their function's name and the next colour."""

_OTHERS = ("#E69F00", "#CC79A7", "#009E73", "#777777")
_MOST = 40
"""Largest number of clients that are drawn."""


def draw_rounds(timelines: Mapping[str, Timeline], title: str | None = None) -> Picture:
    """Draw a round of each method, below each other and on one scale.

    Clients are sorted by the time at which they were done, the slowest at the top; of more than 40, the slowest 40 are drawn.

    Args:
        timelines: by label.
        title: title of the figure.

    Raises:
        StoreError: there is no timeline.
    """
    shown = {label: phases for label, phases in timelines.items() if phases}
    if not shown:
        raise StoreError("nothing to draw: no run has the timeline of a round; it is kept for runs of up to 200 clients a round")
    rows = {label: _clients(phases) for label, phases in shown.items()}
    heights = [max(1.6, 0.5 + 0.13 * len(clients)) for clients in rows.values()]
    end = max(phase["start"] + phase["seconds"] for phases in shown.values() for phase in phases)
    colours = _colours(shown)
    with rc_context(STYLE):
        figure = Picture(figsize=(11.5, sum(heights) + 1.5), layout=layout())
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (label, phases) in zip(axes, shown.items(), strict=True):
            _round(ax, label, phases, rows[label], colours)
        axes[-1].set(xlim=(0, end * 1.01), xlabel="virtual seconds since the start of the round")
        figure.legend(handles=_legend(colours), loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    return figure


def _clients(phases: Timeline) -> list[int]:
    """Return the clients, the slowest first."""
    done: dict[int, float] = {}
    for phase in phases:
        for client in phase["out"]:
            done.setdefault(int(client), 0.0)
        for client, spent in phase["clients"].items():
            done[int(client)] = done.get(int(client), 0.0) + sum(spent)
    return sorted(done, key=lambda client: (-done[client], client))[:_MOST]


def _colours(shown: Mapping[str, Timeline]) -> dict[str, tuple[str, str]]:
    """Return name and colour of each phase, by its function."""
    names = list(dict.fromkeys(phase["name"] for phases in shown.values() for phase in phases))
    free = (_OTHERS[number % len(_OTHERS)] for number in range(len(names)))
    return {name: _PHASES[name] if name in _PHASES else (name.replace("_", " "), next(free)) for name in names}


def _legend(colours: Mapping[str, tuple[str, str]]) -> list[Patch]:
    work = [("computes", _COMPUTES), ("receives and sends", _SENDS), ("waits", _WAITS)]
    phases = [(f"phase: {name}", colour) for name, colour in dict.fromkeys(colours.values())]
    return [Patch(color=colour, label=name) for name, colour in (*work, *phases)]


def _round(ax: Any, label: str, phases: Timeline, clients: Sequence[int], colours: Mapping[str, tuple[str, str]]) -> None:
    places = {client: place for place, client in enumerate(clients)}
    ends = [phase["start"] + phase["seconds"] for phase in phases]
    for phase, end in zip(phases, ends, strict=True):
        start = phase["start"]
        ax.barh(-1.7, phase["seconds"], left=start, height=1.0, color=colours[phase["name"]][1], lw=0)
        if start:
            ax.axvline(start, color="#999999", lw=0.6, zorder=3)
        for client, (work, network) in phase["clients"].items():
            if (place := places.get(int(client))) is None:
                continue
            work, network = min(work, end - start), max(min(network, end - start - work), 0.0)
            ax.barh(place, end - start, left=start, height=0.8, color=_WAITS, lw=0)
            ax.barh(place, work, left=start, height=0.8, color=_COMPUTES, lw=0)
            ax.barh(place, network, left=start + work, height=0.8, color=_SENDS, lw=0)
    out = {int(client) for phase in phases for client in phase["out"]}
    for client in out & places.keys():
        ax.annotate(
            "sits out", (max(ends), places[client]), (-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8
        )
    ax.set_yticks([-1.7, *places.values()], ["phase", *map(str, places)], fontsize=8)
    ax.set(ylim=(len(clients) - 0.4, -2.5), title=f"{label}: {max(ends):.3g} s", ylabel="client")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
