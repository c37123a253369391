"""FRL with a check of every vote (Mozaffari et al., USENIX Security 2023): the paper's robust form.

A sum does not show whether a client sent one permutation or a million votes. Here each client sends its ranking, packed
in ceil(log2 n) bits per edge, and the server counts those without duplicate edges. The algorithm is that of `frl`.

The server sees each client's ranking. Clients store no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from paceline.blocks.ranks import PackedRanks, is_permutation, pack, unpack
from paceline.core.client import Client
from paceline.core.federation import Federation
from paceline.core.method import on_client
from paceline.methods.compression.frl import FRL, FrlState, packed


@dataclass(frozen=True)
class FRLChecked(FRL):
    """FRL with individual rankings, rejected unless they are permutations: the robust form."""

    reveals: ClassVar[str] = "each client's ranking of the edges"
    sum_only: ClassVar[str] = "frl"

    def round(self, fed: Federation, state: FrlState) -> FrlState:
        """Collect individual rankings and sum the valid ones."""
        replies = fed.each(self.vote_openly, (state.seed, packed(state.ranks)), over=fed.sample())
        total = {n: torch.zeros(len(r), dtype=torch.int64) for n, r in state.ranks.items()}
        refused, votes = 0, [reply for reply in replies.values() if reply]
        for reply in votes:
            ranks = {n: unpack(reply[n], len(t), len(t) - self._cut(len(t))) for n, t in total.items()}
            if not all(is_permutation(r, len(total[n])) for n, r in ranks.items()):
                refused += 1
                continue
            for n, r in ranks.items():
                total[n][r] += torch.arange(len(total[n]) - len(r), len(total[n]))
        fed.last.notes["refused"] = float(refused)
        if refused == len(votes):
            return state
        return self._state(state.params.layout, state.seed, {n: torch.argsort(t, stable=True) for n, t in total.items()})

    @on_client(each=True)
    def vote_openly(self, client: Client, message: tuple[int, PackedRanks]) -> PackedRanks:
        """Train scores; return the upper part of the ranking, or nothing if there are no samples."""
        return (
            {}
            if not client.num_samples
            else {n: pack(r[self._cut(len(r)) :], len(r)) for n, r in self.learn(client, message).items()}
        )
