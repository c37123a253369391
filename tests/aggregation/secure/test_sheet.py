"""Checks of the specification that need another process, or many runs."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import pack, unpack
from paceline.aggregation.secure.simulate import arithmetic_sum, secure_sum
from paceline.core.errors import ProtocolError, QuorumError
from tests.aggregation.secure.test_protocol import CONFIG, STEPS, check, vectors

MASKED = """
import hashlib, sys
import numpy as np
from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.encoding import pack
from paceline.aggregation.secure.masks import apply_all
for bits in (23, 32, 40, 64):
    segment = Segment("main", 70_001, bits)
    words = (np.arange(70_001) * 12_345).astype(np.dtype(segment.dtype).newbyteorder(sys.argv[1]))
    apply_all(words, [(bytes(range(32)), 1), (b"x" * 32, -1)], "main")
    print(hashlib.sha256(pack(words, segment)).hexdigest())
"""


def test_s11_two_processes_of_different_byte_orders_agree(capsys, monkeypatch):
    other = subprocess.run([sys.executable, "-c", MASKED, ">"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setattr(sys, "argv", ["", "<"])
    exec(MASKED, {})
    assert capsys.readouterr().out == other
    assert len(set(other.split())) == 4


@pytest.mark.parametrize("bits", [1, 8, 9, 16, 17, 24, 25, 32, 33, 40, 48, 56, 64])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_packing_takes_each_width_to_its_last_byte(bits, length):
    segment = Segment("s", length, bits)
    words = np.full(length, segment.mask, dtype=segment.dtype)
    data = pack(words, segment)
    assert data == int(segment.mask).to_bytes(segment.width, "little") * length
    assert np.array_equal(unpack(data, segment), words)


@pytest.mark.slow
def test_s9_in_full_every_client_may_leave_at_every_step():
    """All 6^5 cases of n = 5, t = 3."""
    inputs = vectors(5, length=3)
    right = 0
    for steps in product((None, *STEPS), repeat=5):
        gone = {c: step for c, step in enumerate(steps) if step}
        try:
            words, alive, _ = secure_sum(inputs, CONFIG, gone)
        except (QuorumError, ProtocolError):
            assert len(gone) >= 2, gone
        else:
            assert alive == arithmetic_sum(inputs, gone)[1]
            check(words, inputs, alive)
            right += 1
    assert right >= 26


@pytest.mark.slow
def test_a_large_ring_opens_the_sum():
    inputs = vectors(300, length=4)
    gone = {c: STEPS[c % 5] for c in range(0, 300, 30)}
    words, alive, _ = secure_sum(inputs, SecureConfig(gamma=0.05, delta=0.05), gone)
    assert alive == arithmetic_sum(inputs, gone)[1]
    check(words, inputs, alive)
