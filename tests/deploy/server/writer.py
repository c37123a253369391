"""Writes a server's state as fast as it can, and prints what has been committed; to be killed."""

from __future__ import annotations

import sys

from paceline.deploy.server.database import AnswerRow, ServerState


def main(path: str) -> None:
    state = ServerState(path)
    state.begin_run("r", {"method": "fedavg"})
    for number in range(state.last_round("r") + 1, 100_000):
        state.begin_round("r", number)
        state.begin_phase("r", number, 0, "train", range(5))
        state.answer("r", number, 0, "train", *(AnswerRow(c, "ok", 0.5, 100, 200) for c in range(5)))
        state.event("round", "r", detail={"round": number}, key=f"round-{number}")
        state.end_phase("r", number, 0, "train")
        state.end_round("r", number, 0, record={"loss": 1 / number})
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
