"""The door between the receive loop and the chain: who answers what.

query -> does the chain have to see it? -> None: SlowPath.resolve
      -> the zone's answer -> is it the chain's to complete? -> None
      -> not the zone's -> fresh in the cache, or None
"""

from __future__ import annotations

from typing import Final

from podwire.dns import packet, wire
from podwire.dns.answers import Answers, Entry
from podwire.dns.seam import Client, FastAnswers
from podwire.dns.slowpath import SlowPath
from podwire.dns.wire import MalformedError

# How many names' ways (fast or chain) are remembered.
_REMEMBERED: Final = 10_000


class Front:
    """`FastAnswers` in front of the zone's own: it keeps back what the chain has to see.

    `fast` stays as quick as it is where no plugin could interfere: then `direct` is True, and the
    server looks into the zone's kept answers (`hot`, `cold`) by itself.
    """

    def __init__(self, fast: FastAnswers, slow: SlowPath) -> None:
        self._fast = fast
        self._slow = slow
        self._guards = slow.guards
        self._logs = slow.logs
        self._ways: dict[bytes, bool] = {}
        slow.on_hosts(self._ways.clear)
        self.hot: dict[bytes, Entry] = {}
        self.cold: dict[bytes, Entry] = {}
        if isinstance(fast, Answers) and self.direct:
            self.hot, self.cold = fast.hot, fast.cold

    @property
    def max_udp(self) -> int:
        return packet.OWN_SIZE

    @property
    def direct(self) -> bool:
        return not self._guards

    def owns(self, qname: bytes) -> bool:
        return self._fast.owns(qname)

    def answer(self, query: bytes, client: Client) -> bytes | None:
        if self._guards and self._to_chain(query) and _readable(query):
            return None
        response = self._fast.answer(query, client)
        if response is None:
            return self._slow.answer_now(query, client)
        # Only a denial, or AAAA for dns64, can be the chain's to complete.
        if response and (self._guards or response[3] & 15 == packet.NXDOMAIN):
            question = packet.parse_question(query)
            if question is not None and self._slow.answer_needs_chain(
                question.name, query, response, client
            ):
                self._slow.take(question.qtype, response)
                return None
        return response

    def _to_chain(self, query: bytes) -> bool:
        question = packet.parse_question(query)
        if question is None or self._logs:
            return question is not None
        key = question.name + query[question.end - 4 : question.end]
        way = self._ways.get(key)
        if way is None:
            if len(self._ways) >= _REMEMBERED:
                self._ways.clear()
            # What is not the zone's goes there by itself, but for classes that it refuses.
            asked = self._fast.owns(question.name) or question.qclass != packet.IN
            way = asked and self._slow.name_needs_chain(
                question.name, question.qtype, question.qclass
            )
            self._ways[key] = way
        return way


def _readable(query: bytes) -> bool:
    """What is not is answered by `fast`, whatever the chain would do with it."""
    try:
        wire.parse_query(query)
    except MalformedError:
        return False
    return True
