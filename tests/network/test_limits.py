"""A model above what one side accepts is found before the first round, with the option to raise."""

import re

import pytest
from torch import nn

from paceline.core.errors import CohortError, ConfigError, QuorumError
from paceline.network.interfaces import check_limit
from tests.conftest import make_task

RUN = {"clients": 3, "cohort": 3, "rounds": 1}
SIZE = 4 * (12 * 512 + 512 + 512 * 4 + 4)


@pytest.fixture
def large(loopback):
    loopback.task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 512), nn.ReLU(), nn.Linear(512, 4)))
    return loopback


def test_a_limit_says_which_option_to_raise_and_how_far():
    check_limit("a reply", 100, 100, "server.limit")
    with pytest.raises(
        ConfigError, match=r"a reply needs at least 101 bytes, but server.limit is 100; set server.limit to about 128"
    ):
        check_limit("a reply", 101, 100, "server.limit")


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_server_that_could_not_take_a_reply_does_not_start(large, aggregation):
    with pytest.raises(ConfigError, match=r"a client's reply needs at least \d+ bytes, but server.limit is 8192"):
        large.serve({**RUN, "aggregation": aggregation}, {"limit": 8192})
    assert not large.server_lines.of("phase")


def test_a_client_that_could_not_take_the_model_refuses_the_run(large):
    large.serve(RUN)
    for number in range(3):
        large.client(number, limit=8192)
    with pytest.raises(CohortError, match=rf"the model of this run needs at least {SIZE} bytes, but client.limit is 8192"):
        large.result.result(10)
    assert not large.server_lines.of("phase")


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_limit_that_was_raised_as_told_is_enough(large, aggregation):
    large.serve({**RUN, "aggregation": aggregation}, {"limit": 1 << 16})
    for number in range(3):
        large.client(number, limit=1 << 16)
    assert large.finish().rounds == 1


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_call_above_the_limit_is_refused_with_the_limit(large, aggregation):
    """A message of scaffold is twice the model, which fits."""
    large.serve({**RUN, "method": "scaffold", "aggregation": aggregation}, {"limit": 1 << 17}, {"phase": 6})
    for number in range(3):
        large.client(number, limit=1 << 16)
    with pytest.raises(QuorumError, match=r"3 refused \(.*needs at least \d+ bytes, but client.limit is 65536") as error:
        large.result.result(30)
    assert not large.client_lines.of("broken")
    [told] = re.findall(r"set client.limit to about (\d+)", str(error.value))
    assert int(told) == 1 << 17
    assert large.client_lines.of("not_answered")[0]["why"].startswith("refused: the message of")


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_limit_that_was_raised_as_a_refused_call_told_is_enough(large, aggregation):
    large.serve({**RUN, "method": "scaffold", "aggregation": aggregation}, {"limit": 1 << 17})
    for number in range(3):
        large.client(number, limit=1 << 17)
    assert large.finish().rounds == 1


def test_a_method_with_small_messages_is_not_held_to_the_model(large):
    large.serve({**RUN, "method": "localtuning"}, {"limit": 8192})
    assert large.server.engine is not None
