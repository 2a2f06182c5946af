"""SPDY/3.1 frames: bytes to values and back, without I/O.

    bytes -> FrameReader.feed -> SynStream | SynReply | Data | ...
    SynStream | SynReply | Data | ... -> FrameWriter.encode -> bytes

kubectl up to 1.29 speaks SPDY for exec, attach and port-forward, and newer ones still send SPDY
frames inside a WebSocket for port-forward. Header blocks share one zlib stream per direction,
primed with a fixed dictionary, so frames have to be encoded and decoded in the order they travel.

Source: https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from podwire.errors import PodwireError

VERSION: Final = 3
FLAG_FIN: Final = 0x01
FLAG_UNIDIRECTIONAL: Final = 0x02
INITIAL_WINDOW: Final = 64 * 1024
SETTING_INITIAL_WINDOW: Final = 7
# Kubernetes sends four short headers; a block past this is an attack on memory, not a request.
_MAX_HEADER_BLOCK: Final = 64 * 1024
_MAX_CONTROL_FRAME: Final = 128 * 1024

_DICTIONARY_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base content-encoding "
    "content-language content-length content-location content-md5 content-range content-type date "
    "etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified location max-forwards pragma proxy-authenticate "
    "proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url "
    "public set-cookie keep-alive origin"
)
_DICTIONARY_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    "Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _length_prefixed(word: str) -> bytes:
    raw = word.replace("_", " ").encode()
    return struct.pack(">I", len(raw)) + raw


DICTIONARY: Final = (
    b"".join(map(_length_prefixed, _DICTIONARY_WORDS.split())) + _DICTIONARY_TAIL.encode()
)

Headers = Mapping[str, str]


class SpdyError(PodwireError):
    """The peer broke the protocol; the connection cannot go on."""


@dataclass(frozen=True)
class SynStream:
    stream_id: int
    headers: Headers = field(default_factory=dict)
    flags: int = 0
    associated: int = 0
    priority: int = 0


@dataclass(frozen=True)
class SynReply:
    stream_id: int
    headers: Headers = field(default_factory=dict)
    flags: int = 0


@dataclass(frozen=True)
class HeadersFrame:
    stream_id: int
    headers: Headers = field(default_factory=dict)
    flags: int = 0


@dataclass(frozen=True)
class Data:
    stream_id: int
    data: bytes = b""
    flags: int = 0


@dataclass(frozen=True)
class RstStream:
    """`status`: 1 protocol error, 3 refused, 5 cancel, 6 internal error (section 2.6.3)."""

    stream_id: int
    status: int


@dataclass(frozen=True)
class Settings:
    values: Mapping[int, int]


@dataclass(frozen=True)
class Ping:
    ping_id: int


@dataclass(frozen=True)
class GoAway:
    last_good_stream_id: int
    status: int = 0


@dataclass(frozen=True)
class WindowUpdate:
    """Stream 0 is the whole session."""

    stream_id: int
    delta: int


Frame = (
    SynStream | SynReply | HeadersFrame | Data | RstStream | Settings | Ping | GoAway | WindowUpdate
)

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS = 1, 2, 3, 4
_PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 6, 7, 8, 9
_ID_MASK: Final = 0x7FFFFFFF


class FrameWriter:
    """Encodes frames; holds the compressor of one direction."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 8, 0, DICTIONARY)

    def encode(self, frame: Frame) -> bytes:
        match frame:
            case Data(stream_id, data, flags):
                return struct.pack(">II", stream_id, flags << 24 | len(data)) + data
            case SynStream(stream_id, headers, flags, associated, priority):
                head = struct.pack(">IIH", stream_id, associated, priority << 13)
                return _control(_SYN_STREAM, flags, head + self._block(headers))
            case SynReply(stream_id, headers, flags):
                head = struct.pack(">I", stream_id)
                return _control(_SYN_REPLY, flags, head + self._block(headers))
            case HeadersFrame(stream_id, headers, flags):
                head = struct.pack(">I", stream_id)
                return _control(_HEADERS, flags, head + self._block(headers))
            case RstStream(stream_id, status):
                return _control(_RST_STREAM, 0, struct.pack(">II", stream_id, status))
            case Settings(values):
                entries = b"".join(struct.pack(">II", k & 0xFFFFFF, v) for k, v in values.items())
                return _control(_SETTINGS, 0, struct.pack(">I", len(values)) + entries)
            case Ping(ping_id):
                return _control(_PING, 0, struct.pack(">I", ping_id))
            case GoAway(last, status):
                return _control(_GOAWAY, 0, struct.pack(">II", last, status))
            case WindowUpdate(stream_id, delta):
                return _control(_WINDOW_UPDATE, 0, struct.pack(">II", stream_id, delta))

    def _block(self, headers: Headers) -> bytes:
        parts = [struct.pack(">I", len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                parts += (struct.pack(">I", len(text)), text)
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(payload)) + payload


class FrameReader:
    """Decodes frames from whatever pieces arrive; holds the decompressor of one direction."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS, DICTIONARY)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames completed by `data`; raises `SpdyError` when they make no sense."""
        self._buffer += data
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            control = bool(first & 0x80000000)
            if control and length > _MAX_CONTROL_FRAME:
                raise SpdyError(f"spdy: control frame of {length} bytes")
            if len(self._buffer) < 8 + length:
                return
            payload = bytes(memoryview(self._buffer)[8 : 8 + length])
            del self._buffer[: 8 + length]
            if not control:
                yield Data(first, payload, flags)
            elif first >> 16 != 0x8000 | VERSION:
                raise SpdyError(f"spdy: version {first >> 16 & 0x7FFF} is not spoken here, only 3")
            else:
                yield from self._control(first & 0xFFFF, flags, payload)

    def _control(self, kind: int, flags: int, payload: bytes) -> Iterator[Frame]:
        try:
            frame = self._decode(kind, flags, payload)
        except (struct.error, zlib.error, UnicodeDecodeError) as e:
            raise SpdyError(f"spdy: malformed frame of type {kind}: {e}") from e
        # Unknown control frames are ignored (section 2.2.1).
        if frame is not None:
            yield frame

    def _decode(self, kind: int, flags: int, payload: bytes) -> Frame | None:
        word = struct.Struct(">I").unpack_from
        if kind == _SYN_STREAM:
            stream_id, associated, priority = struct.unpack_from(">IIH", payload)
            headers = self._headers(payload[10:])
            return SynStream(stream_id & _ID_MASK, headers, flags, associated, priority >> 13)
        if kind == _SYN_REPLY:
            return SynReply(word(payload)[0] & _ID_MASK, self._headers(payload[4:]), flags)
        if kind == _HEADERS:
            return HeadersFrame(word(payload)[0] & _ID_MASK, self._headers(payload[4:]), flags)
        if kind == _RST_STREAM:
            return RstStream(word(payload)[0] & _ID_MASK, word(payload, 4)[0])
        if kind == _SETTINGS:
            pairs = struct.iter_unpack(">II", payload[4 : 4 + 8 * word(payload)[0]])
            return Settings({key & 0xFFFFFF: value for key, value in pairs})
        if kind == _PING:
            return Ping(word(payload)[0])
        if kind == _GOAWAY:
            return GoAway(word(payload)[0] & _ID_MASK, word(payload, 4)[0])
        if kind == _WINDOW_UPDATE:
            return WindowUpdate(word(payload)[0] & _ID_MASK, word(payload, 4)[0] & _ID_MASK)
        return None

    def _headers(self, block: bytes) -> dict[str, str]:
        raw = self._zlib.decompress(block, _MAX_HEADER_BLOCK)
        if self._zlib.unconsumed_tail:
            raise SpdyError(f"spdy: header block of more than {_MAX_HEADER_BLOCK} bytes")
        (count,) = struct.unpack_from(">I", raw)
        if count > len(raw) // 8:
            raise SpdyError(f"spdy: {count} headers in {len(raw)} bytes")
        offset, texts = 4, []
        for _ in range(2 * count):
            (length,) = struct.unpack_from(">I", raw, offset)
            if length > len(raw) - offset - 4:
                raise SpdyError("spdy: a header is longer than its block")
            texts.append(raw[offset + 4 : offset + 4 + length].decode())
            offset += 4 + length
        return dict(zip(texts[::2], texts[1::2], strict=True))
