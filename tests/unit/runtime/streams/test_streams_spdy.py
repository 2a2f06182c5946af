"""The SPDY codec and connection over channels in memory: no socket."""

from __future__ import annotations

import asyncio
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.runtime.streams import frames
from podwire.runtime.streams.channel import Inbox
from podwire.runtime.streams.spdy import SpdyConnection

_IDS = st.integers(1, 2**31 - 1)
_HEADERS = st.dictionaries(
    st.text("abcdefghij-", min_size=1, max_size=20), st.text(max_size=50), max_size=5
)
FRAMES = st.one_of(
    st.builds(frames.SynStream, _IDS, _HEADERS, st.sampled_from([0, 1, 2]), _IDS, st.just(3)),
    st.builds(frames.SynReply, _IDS, _HEADERS, st.sampled_from([0, 1])),
    st.builds(frames.HeadersFrame, _IDS, _HEADERS, st.sampled_from([0, 1])),
    st.builds(frames.Data, _IDS, st.binary(max_size=300), st.sampled_from([0, 1])),
    st.builds(frames.RstStream, _IDS, st.integers(1, 11)),
    st.builds(frames.Settings, st.dictionaries(st.integers(1, 8), _IDS, max_size=3)),
    st.builds(frames.Ping, _IDS),
    st.builds(frames.GoAway, _IDS, st.integers(0, 2)),
    st.builds(frames.WindowUpdate, _IDS, _IDS),
)


def test_the_dictionary_is_the_specified_one() -> None:
    assert zlib.adler32(frames.DICTIONARY) == 0xE3C6A7C2


@given(st.lists(FRAMES, max_size=8), st.integers(1, 50))
def test_frames_survive_the_wire_in_any_pieces(sent: list[frames.Frame], piece: int) -> None:
    writer, reader = frames.FrameWriter(), frames.FrameReader()
    wire = b"".join(map(writer.encode, sent))
    pieces = [wire[i : i + piece] for i in range(0, len(wire), piece)]
    assert [frame for part in pieces for frame in reader.feed(part)] == sent


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack(">HHI", 0x8002, 6, 4) + b"\0\0\0\1",
        struct.pack(">HHI", 0x8003, 1, 2) + b"\0\0",
        struct.pack(">HHI", 0x8003, 1, 14) + b"\0" * 14,
        struct.pack(">HHI", 0x8003, 4, 0xFFFFFF),
    ],
    ids=["version 2", "short", "not zlib", "huge"],
)
def test_nonsense_is_an_error_of_ours(wire: bytes) -> None:
    with pytest.raises(frames.SpdyError):
        list(frames.FrameReader().feed(wire))


def test_a_header_bomb_is_refused() -> None:
    bomb = frames.FrameWriter().encode(frames.SynStream(1, {"a": "x" * 1_000_000}))
    with pytest.raises(frames.SpdyError, match="header block"):
        list(frames.FrameReader().feed(bomb))


class Pipe:
    """One direction of a channel in memory."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.wrote = asyncio.Event()


class Side:
    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self.incoming, self.outgoing = incoming, outgoing

    async def read(self) -> bytes:
        return await self.incoming.inbox.get()

    async def write(self, data: bytes) -> None:
        self.outgoing.wrote.set()
        await self.outgoing.inbox.put(data)

    async def close(self) -> None:
        await self.incoming.inbox.end()
        await self.outgoing.inbox.end()


class Pair:
    """A client and a server connection, both running."""

    async def __aenter__(self) -> Pair:
        up, self.down = Pipe(), Pipe()
        self.client = SpdyConnection(Side(self.down, up), server=False)
        self.server = SpdyConnection(Side(up, self.down))
        self.tasks = [asyncio.create_task(c.run()) for c in (self.client, self.server)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await asyncio.gather(*self.tasks)


async def test_data_and_half_close_travel_both_ways() -> None:
    async with Pair() as pair:
        ours = await pair.client.open({"streamType": "stdin"})
        theirs = await pair.server.accept()
        assert theirs is not None
        assert theirs.headers == {"streamtype": "stdin"}
        await theirs.reply()
        await ours.write(b"question")
        await ours.close_write()
        assert await theirs.read() == b"question"
        assert await theirs.read() == b""
        await theirs.write(b"answer")
        await theirs.close_write()
        assert await ours.read() == b"answer"
        assert await ours.read() == b""


async def test_a_peer_without_windows_is_not_waited_for() -> None:
    async with Pair() as pair:
        ours = await pair.client.open({})
        theirs = await pair.server.accept()
        assert theirs is not None
        received = 0
        writing = asyncio.create_task(theirs.write(b"x" * 1_000_000))
        while received < 1_000_000:
            received += len(await ours.read())
        await writing


async def test_windows_are_kept_once_the_peer_shows_them() -> None:
    async with Pair() as pair:
        ours = await pair.client.open({})
        theirs = await pair.server.accept()
        assert theirs is not None
        await pair.client.send(frames.Settings({frames.SETTING_INITIAL_WINDOW: 1000}))
        await pair.client.send(frames.Ping(1))
        await asyncio.wait_for(pair.down.wrote.wait(), 5)
        writing = asyncio.create_task(theirs.write(b"x" * 1500))
        assert len(await ours.read()) == 1000
        assert not writing.done()
        await pair.client.send(frames.WindowUpdate(theirs.stream_id, 500))
        assert len(await ours.read()) == 500
        await writing


async def test_the_end_of_the_channel_ends_streams_and_writers() -> None:
    async with Pair() as pair:
        await pair.client.open({})
        theirs = await pair.server.accept()
        assert theirs is not None
        await pair.client.close()
        assert await theirs.read() == b""
        await pair.server.closed.wait()
        with pytest.raises(ConnectionResetError):
            await theirs.write(b"late")
        assert await pair.server.accept() is None


async def test_reset_refuses_one_stream_only() -> None:
    async with Pair() as pair:
        first, second = await pair.client.open({}), await pair.client.open({})
        refused, kept = await pair.server.accept(), await pair.server.accept()
        assert refused is not None
        assert kept is not None
        await refused.abort()
        assert await first.read() == b""
        with pytest.raises(ConnectionResetError):
            await first.write(b"x")
        await kept.write(b"y")
        assert await second.read() == b"y"
