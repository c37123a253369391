import math

import pytest

from paceline.core.errors import ConfigError
from paceline.devices import COMPUTE, Profile


def test_seconds_follow_from_work_and_bytes() -> None:
    device = Profile(compute=2e9, up=1.5e6, down=50e6, latency=0.03, overhead=0.5)
    assert device.compute_seconds(8e9) == 4.5
    assert device.upload_seconds(5_880_000) == pytest.approx(0.03 + 31.36)
    assert device.download_seconds(5_880_000) == pytest.approx(0.03 + 0.9408)
    assert device.upload_seconds(0) == 0.03


def test_the_sheets_straggler_times() -> None:
    """VGG-9 of 5.88 MB at 32 bit over 1.5 Mbit/s, 40 s of work and 1 s on top: 72.4 s."""
    device = Profile(compute=1e9, up=1.5e6, latency=0.0, overhead=1.0)
    assert device.compute_seconds(40e9) + device.upload_seconds(5_880_000) == pytest.approx(72.4, abs=0.05)


def test_measured_seconds_take_the_slowdown() -> None:
    assert Profile(slowdown=2.5, overhead=1.0).measured_seconds(4.0) == 11.0


def test_a_local_epoch_of_vgg9_takes_some_tens_of_seconds() -> None:
    macs = 3 * 9 * 32 * 1024 + 32 * 9 * 32 * 1024 + (32 + 64) * 9 * 64 * 256 + (64 + 128) * 9 * 128 * 64
    macs += 2048 * 512 + 512 * 256 + 256 * 10
    assert 40 < 400 * 3 * 2 * macs / COMPUTE < 60


def test_endless_bandwidth_is_free() -> None:
    assert Profile(up=math.inf, latency=0.0).upload_seconds(10**9) == 0.0


def test_all_faults_are_named() -> None:
    with pytest.raises(ConfigError, match=r"compute=0.*up=nan.*latency=-1.*availability=2"):
        Profile(compute=0, up=math.nan, latency=-1, availability=2)
