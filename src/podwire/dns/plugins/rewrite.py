"""`rewrite`: the question is changed on its way in, and the answer on its way out.

    rules in order; a match ends them (`stop`, the default) or goes on with the changed question
    the client always gets its own question back; answers change by `answer auto|name|value`

Source: coredns plugin/rewrite/{rewrite,name,ttl,reverter}.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import dns.message
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rrset

from podwire.dns import config, packet
from podwire.dns.request import Failure, Handler, Reply, Request, decode, encode, name_from_text

# Record types whose value is a name, and the attribute it is in.
_VALUE: Final = {
    dns.rdatatype.CNAME: "target",
    dns.rdatatype.DNAME: "target",
    dns.rdatatype.NS: "target",
    dns.rdatatype.PTR: "target",
    dns.rdatatype.SRV: "target",
    dns.rdatatype.MX: "exchange",
    dns.rdatatype.NAPTR: "replacement",
    dns.rdatatype.SOA: "mname",
}

ToName = Callable[[str], str]


def matcher(match: config.Match, source: str, target: str) -> Callable[[str], str | None]:
    """A name in lower case -> the name it becomes; None for no match."""
    if match == "exact":
        return lambda name: target if name == source else None
    if match == "prefix":
        return lambda name: target + name[len(source) :] if name.startswith(source) else None
    if match == "suffix":
        return lambda name: name[: -len(source)] + target if name.endswith(source) else None
    if match == "substring":
        return lambda name: name.replace(source, target) if source in name else None
    pattern = re.compile(source)
    return lambda name: expand(pattern, target, name)


def expand(pattern: re.Pattern[str], target: str, text: str) -> str | None:
    """`{1}` in the target is the first group of the match."""
    found = pattern.search(text)
    if found is None:
        return None
    for index in range(pattern.groups + 1):
        target = target.replace(f"{{{index}}}", found[index] or "")
    return target


class _Answers:
    """What is done to the records of an answer, collected while the rules match."""

    def __init__(self) -> None:
        self.names: list[ToName] = []
        self.values: list[ToName] = []
        self.ttl: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return bool(self.names or self.values or self.ttl)


def _back(source: str, target: str) -> ToName:
    """A rewritten name, and names below it, become the asked one again."""

    def undo(name: str) -> str:
        if name == target:
            return source
        return name[: -len(target)] + source if name.endswith("." + target) else name

    return undo


def _suffix_back(source: str, target: str) -> ToName:
    return lambda name: name[: -len(target)] + source if name.endswith(target) else name


class Rewrite:
    def __init__(self, rules: Sequence[config.RewriteRule], following: Handler) -> None:
        self._following = following
        self._rules = [(rule, _compiled(rule)) for rule in rules]

    def touches(self, name: str, qtype: int, qclass: int) -> bool:
        """Whether any rule matches such a question."""
        return any(
            _applies(rule, match, name, qtype, qclass) is not None for rule, match in self._rules
        )

    async def __call__(self, request: Request) -> Reply:
        asked = request
        answers = _Answers()
        for rule, match in self._rules:
            question = asked.question
            changed = _applies(rule, match, asked.text, question.qtype, question.qclass)
            if changed is None:
                continue
            asked = self._changed(asked, rule, changed, answers)
            if rule.stop:
                break
        reply = await self._following(asked)
        if asked is request and not answers:
            return reply
        renamed = asked.question.name != request.question.name
        live = reply.live or (reply.owned and renamed)
        return reply._replace(wire=_reverted(reply.wire, request, answers), live=live)

    def _changed(
        self, asked: Request, rule: config.RewriteRule, changed: str, answers: _Answers
    ) -> Request:
        if isinstance(rule, config.TtlRule):
            answers.ttl = (rule.low, rule.high)
            return asked
        if isinstance(rule, config.TypeRule):
            return asked.asking(qtype=rule.target)
        if isinstance(rule, config.ClassRule):
            return asked.asking(qclass=rule.target)
        _collect(rule, asked.text, changed, answers)
        try:
            return asked.asking(name_from_text(changed if changed.endswith(".") else changed + "."))
        except ValueError as e:
            raise Failure(
                packet.SERVFAIL, f"invalid name after rewrite: {changed}", "rewrite"
            ) from e


def _compiled(rule: config.RewriteRule) -> Callable[[str], str | None] | None:
    if isinstance(rule, config.NameRule):
        return matcher(rule.match, rule.source, rule.target)
    if isinstance(rule, config.TtlRule):
        return matcher(rule.match, rule.pattern, "")
    return None


def _applies(
    rule: config.RewriteRule,
    match: Callable[[str], str | None] | None,
    name: str,
    qtype: int,
    qclass: int,
) -> str | None:
    """The new name ("" where the rule changes something else); None for no match."""
    if match is not None:
        return match(name)
    if isinstance(rule, config.TypeRule):
        return "" if qtype == rule.source else None
    if isinstance(rule, config.ClassRule):
        return "" if qclass == rule.source else None
    return None


def _collect(rule: config.NameRule, name: str, changed: str, answers: _Answers) -> None:
    if rule.auto:
        back = _suffix_back if rule.match == "suffix" else _back
        pair = (rule.source, rule.target) if rule.match == "suffix" else (name, changed)
        answers.names.append(back(*pair))
        answers.values.append(back(*pair))
    for answer in rule.answers:
        pattern = re.compile(answer.pattern)
        rewriter = _regex(pattern, answer.replacement)
        (answers.names if answer.what == "name" else answers.values).append(rewriter)


def _regex(pattern: re.Pattern[str], replacement: str) -> ToName:
    def rewrite(text: str) -> str:
        changed = expand(pattern, replacement, text)
        return text if changed is None else changed

    return rewrite


def _reverted(wire: bytes, request: Request, answers: _Answers) -> bytes:
    """The response to the client's own question, its records changed back; last rule first."""
    message = decode(wire, "rewrite")
    if message.question:
        message.question = decode(request.failed(packet.NOERROR), "rewrite").question
    if answers:
        for section in (message.answer, message.authority, message.additional):
            section[:] = [_record(rrset, answers) for rrset in section]
    return encode(message, "rewrite")


def _record(rrset: dns.rrset.RRset, answers: _Answers) -> dns.rrset.RRset:
    name = _through(rrset.name, answers.names)
    ttl = rrset.ttl
    if answers.ttl is not None:
        ttl = min(max(ttl, answers.ttl[0]), answers.ttl[1])
    attribute = _VALUE.get(rrset.rdtype)
    rdatas = list(rrset)
    if attribute is not None and answers.values:
        rdatas = [_value(rdata, attribute, answers.values) for rdata in rdatas]
    return dns.rrset.from_rdata_list(name, ttl, rdatas)


def _value(rdata: dns.rdata.Rdata, attribute: str, rewriters: Sequence[ToName]) -> dns.rdata.Rdata:
    old: Any = getattr(rdata, attribute)
    new = _through(old, rewriters)
    return rdata if new == old else rdata.replace(**{attribute: new})


def _through(name: dns.name.Name, rewriters: Sequence[ToName]) -> dns.name.Name:
    text = lowered = name.to_text().lower()
    for rewrite in reversed(rewriters):
        text = rewrite(text)
    if text == lowered:
        return name
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as e:
        raise Failure(packet.SERVFAIL, f"invalid name after rewrite: {text}", "rewrite") from e
