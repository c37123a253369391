"""A small federation: an authority whose clock can be turned."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from paceline.deploy.identity import pki
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import begin, finish


@dataclass
class Clock:
    now: datetime = field(default_factory=pki.utc_now)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> None:
        self.now += timedelta(**span)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.create(tmp_path / "ca", "hospitals", clock=clock)


def enrol(ca: Authority, name: str, folder: Path, **options: object) -> int:
    """Enrol a client in `folder` and return its number."""
    token = ca.token(name, **options)  # type: ignore[arg-type]
    ask = begin(folder, token)
    return finish(folder, token, ca.redeem(ask.token, ask.request, ask.identity, ask.proof)).id
