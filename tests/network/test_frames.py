"""Frames and messages: what is checked before anything is believed."""

import asyncio
import tracemalloc

import pytest
import torch

from paceline.aggregation.secure.config import Segment
from paceline.aggregation.secure.encoding import unpack
from paceline.aggregation.secure.messages import as_bytes, as_tensors
from paceline.core.errors import WireError
from paceline.core.serialization import NETWORK
from paceline.network import frames as f
from paceline.network.buffers import SMALL, Budget, Buffer
from paceline.network.stream import Link

TREE = {"model": torch.arange(300_000, dtype=torch.float32), "round": 3}


def message(kind=4, tree=TREE, pack=False, first=0):
    return list(f.frames(kind, (f.MessagePart.of({"id": 7}), f.MessagePart.of(tree, pack)), first))


def link(stream, **options):
    """A link that reads frames from a list."""
    left = iter(stream)

    async def read():
        return next(left, None)

    async def write(frame):
        raise AssertionError("nothing is sent here")

    return Link(read, write, **{"limit": 1 << 24, "budget": Budget(), **options})


def receive(stream, **options):
    return asyncio.run(link(stream, **options).receive())


@pytest.mark.parametrize("pack", [False, True])
def test_a_message_comes_as_it_was_sent(pack):
    sent = message(pack=pack)
    assert all(len(frame) <= f.CHUNK + f.HEAD.size for frame in sent)
    got = receive(sent)
    assert (got.kind, got.head) == (4, {"id": 7})
    tree = got.tree(0, NETWORK)
    assert torch.equal(tree["model"], TREE["model"])
    assert tree["round"] == 3
    assert got.opening.parts[1][2] is pack


SMALL_TREE = {"model": torch.arange(300, dtype=torch.float32), "round": 3}


@pytest.mark.parametrize("pack", [False, True])
def test_a_small_message_takes_one_frame(pack):
    sent = message(tree=SMALL_TREE, pack=pack)
    assert len(sent) == 1
    got = receive(sent, limit=sum(wire for wire, _, _ in receive(sent).opening.parts) + (10_000 if pack else 0))
    assert (got.kind, got.head) == (4, {"id": 7})
    tree = got.tree(0, NETWORK)
    assert torch.equal(tree["model"], SMALL_TREE["model"])
    assert got.opening.parts[1][2] is pack
    with pytest.raises(WireError, match="exceeds the limit"):
        receive(sent, limit=got.opening.size - 1)
    assert receive(sent, vet=lambda kind, head, opening: False).parts[0].take() == b""
    least, most = (f.MessagePart(bytes(f.SMALL + more - 20), f.SMALL + more - 20) for more in (0, 1))
    head = f.MessagePart(bytes(20), 20)
    assert [len(list(f.frames(4, (head, part), 0))) for part in (least, most)] == [1, 3]


def whole(*parts, data, flags=f.OPEN | f.WHOLE, count=None):
    import zlib

    text = f._OPENING.pack(4, count or len(parts)) + b"".join(f._PART.pack(*p) for p in parts) + data
    return f.HEAD.pack(f.MAGIC, f.VERSION, flags, 0, zlib.crc32(text)) + text


@pytest.mark.parametrize("extra", [-1, 1, 1000])
def test_a_whole_message_has_the_announced_size(extra):
    head = f.MessagePart.of({"id": 7}).data
    part = (len(head), len(head), 0)
    assert receive([whole(part, data=head)]).head == {"id": 7}
    with pytest.raises(WireError, match="contains"):
        receive([whole(part, (2000, 2000, 0), data=head + bytes(2000 + extra))])
    with pytest.raises(WireError, match="announces 4 parts"):
        receive([whole(part, data=b"", count=4)])


@pytest.mark.parametrize("flags", [f.WHOLE, 4, f.OPEN | 8])
def test_other_flags_are_refused(flags):
    head = f.MessagePart.of({"id": 7}).data
    with pytest.raises(WireError, match="unknown flags"):
        receive([whole((len(head), len(head), 0), data=head, flags=flags)])


def test_a_whole_message_inside_another_one_is_refused():
    start = message()[:2]
    inner = message(tree=SMALL_TREE, first=2)
    with pytest.raises(WireError, match="inside another"):
        receive([*start, *inner])


def test_sequence_numbers_go_on_from_message_to_message():
    one = message()
    two = message(first=len(one))

    async def both():
        at = link([*one, *two])
        return await at.receive(), await at.receive(), await at.receive()

    first, second, end = asyncio.run(both())
    assert first.head == second.head
    assert end is None


def changed(stream, place, at, value):
    frame = bytearray(stream[place])
    frame[at] ^= value
    return [*stream[:place], bytes(frame), *stream[place + 1 :]]


BAD = {
    "dropped": (lambda s: [*s[:2], *s[3:]], "is missing"),
    "twice": (lambda s: [*s[:2], s[1], *s[2:]], "was repeated"),
    "swapped": (lambda s: [s[0], s[2], s[1], *s[3:]], "is missing"),
    "replayed": (lambda s: [*s, *s], None),
    "corrupt": (lambda s: changed(s, 2, 100, 1), "corrupted"),
    "corrupt opening": (lambda s: changed(s, 0, f.HEAD.size + 3, 1), "corrupted"),
    "cut": (lambda s: [*s[:-1], s[-1][:10]], "truncated"),
    "ended": (lambda s: s[:-1], "ended inside"),
    "other protocol": (lambda s: changed(s, 0, 0, 1), "not a Paceline frame"),
    "newer": (lambda s: changed(s, 0, 2, 3), "upgrade"),
    "flags": (lambda s: changed(s, 0, 3, 8), "flags"),
    "no opening": (lambda s: message()[1:], "is missing"),
    "nothing": (lambda s: [b""], "truncated"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_break_the_stream(name):
    change, match = BAD[name]
    stream = change(message())
    if match is None:  # the second copy of a whole message
        with pytest.raises(WireError, match="was repeated"):
            asyncio.run(twice(link(stream)))
    else:
        with pytest.raises(WireError, match=match):
            receive(stream)


async def twice(at):
    await at.receive()
    await at.receive()


def opened(*parts, kind=4, first=0):
    """An opening frame that announces whatever it likes."""
    import zlib

    text = f._OPENING.pack(kind, len(parts)) + b"".join(f._PART.pack(*p) for p in parts)
    return f.HEAD.pack(f.MAGIC, f.VERSION, f.OPEN, first, zlib.crc32(text)) + text


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (((100, 100, 0), (1 << 40, 1 << 40, 0)), "exceeds the limit"),
        (((100, 100, 0), (1000, 1 << 40, 1)), "exceeds the limit"),
        (((1 << 22, 1 << 22, 0),), "head of a message"),
        (((100, 200, 1),), "head of a message"),
        (((0, 0, 0),), "invalid"),
        (((100, 100, 2),), "invalid"),
        (((100, 99, 0),), "invalid"),
        (tuple((9, 9, 0) for _ in range(5)), "announces 5 parts"),
        ((), "announces 0 parts"),
    ],
)
def test_impossible_announcements_are_refused_before_anything_is_kept(parts, match):
    with pytest.raises(WireError, match=match):
        receive([opened(*parts)])


def test_a_gigabyte_that_is_only_announced_takes_no_memory():
    head = f.MessagePart.of({"id": 7})
    start = opened((len(head.data), head.raw, 0), (1 << 30, 1 << 30, 0))
    rest = list(f.frames(4, (head,), 0))[1:]
    tracemalloc.start()
    with pytest.raises(WireError, match="ended inside"):
        receive([start, *rest], limit=1 << 31)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_packed_data_that_would_grow_beyond_what_was_announced_are_refused():
    import zstandard

    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24))
    assert len(bomb) < 1 << 13
    with pytest.raises(WireError, match="announced"):
        f.unpack(bomb, 1 << 20)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    with pytest.raises(WireError, match="announced"):
        f.unpack(unsized, 1 << 20)
    with pytest.raises(WireError, match=r"decompressed|announced"):
        f.unpack(b"nothing of the kind", 10)


def test_parts_that_are_not_wanted_pass_unread():
    got = receive(message(), vet=lambda kind, head, opening: False)
    assert got.parts[0].take() == b""


def test_a_head_must_be_a_dict_of_names():
    with pytest.raises(WireError, match="must be a dict"):
        receive(list(f.frames(4, (f.MessagePart.of([1, 2]),), 0)))
    with pytest.raises(WireError):
        receive(list(f.frames(4, (f.MessagePart(b"garbage" * 9, 63),), 0)))


def test_memory_is_bounded_and_what_is_over_goes_to_a_file(tmp_path):
    budget = Budget(100_000, str(tmp_path))
    buffers = [Buffer(60_000, budget) for _ in range(3)]
    for number, buffer in enumerate(buffers):
        assert not buffer.add(memoryview(bytes([number]) * 30_000))
        assert buffer.add(memoryview(bytes([number]) * 30_000))
    assert budget.most == 60_000
    assert [buffer.take() for buffer in buffers] == [bytearray([n]) * 60_000 for n in range(3)]
    for buffer in buffers:
        buffer.close()
        buffer.close()
    assert budget.used == 0
    assert list(tmp_path.iterdir()) == []


def test_small_buffers_are_not_counted_and_too_much_is_refused():
    budget = Budget(10)
    buffer = Buffer(SMALL, budget)
    assert budget.used == 0
    with pytest.raises(WireError, match="exceeds its announced"):
        buffer.add(memoryview(bytes(SMALL + 1)))


@pytest.mark.parametrize("tree", [TREE, SMALL_TREE])
def test_a_message_above_the_limit_is_skipped_where_its_kind_may_be(tree):
    sent = message(kind=4, tree=tree)
    size = receive(sent).opening.raw
    one = link([*sent, *message(kind=5, tree=None, first=len(sent))], limit=size - 1, skips=(4,))

    async def both():
        return await one.receive(), await one.receive()

    first, second = asyncio.run(both())
    assert first.excess
    assert (first.head, first.opening.raw, first.parts[0].take()) == ({"id": 7}, size, b"")
    assert (second.excess, second.tree(0, NETWORK)) == (False, None)
    assert not receive(sent, limit=size, skips=(4,)).excess
    with pytest.raises(WireError, match="exceeds the limit"):
        receive(sent, limit=size - 1, skips=(5,))


def test_vectors_of_more_than_twenty_million_coordinates_cross():
    """Masked words lie behind the header of their message, whose own limit is 64 MiB."""
    segment = Segment("main", 24_000_000, 20)
    reply = {"segments": as_tensors([bytes(segment.size - 3) + b"\x05\x06\x07"]), "signature": bytes(64)}
    part = f.MessagePart.of(reply)
    assert int.from_bytes(part.data[8:16], "little") < 1000
    got = receive(f.frames(4, (f.MessagePart.of({}), part), 0), limit=1 << 27)
    (data,) = as_bytes(got.tree(0, NETWORK)["segments"])
    words = unpack(data, segment)
    assert (len(words), int(words[-2]), int(words[-1])) == (24_000_000, 0, 0x070605)
    assert not words[:-1].any()


def test_byte_strings_may_be_as_large_as_the_receiver_allows():
    raw = bytes((64 << 20) + 5)
    sent = list(f.frames(4, (f.MessagePart.of({}), f.MessagePart.of({"ranks": raw})), 0))
    assert receive(sent, limit=1 << 27).tree(0, NETWORK)["ranks"] == raw
    with pytest.raises(WireError, match="exceeds the limit"):
        receive(sent, limit=1 << 24)
