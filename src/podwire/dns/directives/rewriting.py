"""The `rewrite` directive -> its rules. Pure.

    rewrite [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO [answer ...]...
    rewrite [continue|stop] { name regex FROM TO \\n answer name FROM TO }
    rewrite [continue|stop] type|class FROM TO;  ttl [match] NAME SECONDS|LOW-HIGH

Source: coredns plugin/rewrite/{rewrite,name,ttl}.go.
"""

from __future__ import annotations

import re
from typing import Final, Literal, cast, get_args

import dns.exception
import dns.rdataclass
import dns.rdatatype

from podwire.dns import config
from podwire.dns.caddyfile import Line, Token
from podwire.dns.directives.words import Many, Site, Words, compile_regex

_GROUP: Final = re.compile(r"\{(\d+)\}")


def parse_rewrite(line: Line, site: Site) -> tuple[config.RewriteRule, ...]:
    words = Words(line)
    stop = True
    if words.peek() in ("stop", "continue"):
        stop = words.take("").text == "stop"
    tokens = words.rest()
    if line.braces:
        if tokens:
            raise tokens[0].error("rewrite: the rule stands either on the line or in the block")
        # A block is one rule written on several lines.
        tokens = [token for entry in line.body for token in entry.words]
    if not tokens:
        words.fail("wrong argument count: the field is missing")
    field = tokens[0]
    match field.text.lower():
        case "name":
            return (_name(tokens[1:], field, stop),)
        case "type":
            return (_type(tokens[1:], field, stop),)
        case "class":
            return (_class(tokens[1:], field, stop),)
        case "ttl":
            return (_ttl(tokens[1:], field, stop),)
        case "answer":
            raise field.error("rewrite: response rewrites must begin with a name rule")
        case "edns0" | "cname" | "rcode":
            raise field.error(
                f"rewrite: field '{field.text}' is not supported; use name, type, class or ttl"
            )
    raise field.error(f"rewrite: invalid rule type '{field.text}'; use name, type, class or ttl")


def _name(tokens: list[Token], at: Token, stop: bool) -> config.NameRule:
    if len(tokens) < 2:
        raise at.error("rewrite: too few arguments for a name rule")
    match: config.Match = "exact"
    if len(tokens) > 2:
        match = _match(tokens.pop(0), "name rule")
    source, target = tokens[:2]
    if match == "regex":
        _check_groups(compile_regex(source), source, target)
    auto, answers = _answers(match, tokens[2:], at)
    return config.NameRule(
        match,
        source.text if match == "regex" else _normal(source.text, match),
        _normal(target.text, match),
        auto or match == "exact",
        answers,
        stop,
    )


def _match(token: Token, rule: str) -> config.Match:
    if token.text.lower() not in get_args(config.Match):
        raise token.error(
            f"rewrite: {rule} supports only exact, prefix, suffix, substring, and regex name "
            f"matching, received: {token.text}"
        )
    return cast("config.Match", token.text.lower())


def _normal(text: str, match: config.Match) -> str:
    """Names are compared in lower case; a whole name or an end of one has the final dot."""
    text = text.lower()
    return text + "." if match in ("exact", "suffix") and not text.endswith(".") else text


def _answers(
    match: str, tokens: list[Token], at: Token
) -> tuple[bool, tuple[config.AnswerRule, ...]]:
    auto = False
    rules: list[config.AnswerRule] = []
    rest = list(tokens)
    while rest:
        head = rest.pop(0)
        if head.text != "answer":
            raise head.error(
                f"rewrite: exceeded the number of arguments for a non-answer rule argument for "
                f"{match} rule"
            )
        if not rest:
            raise head.error(f"rewrite: type missing for answer rule for {match} rule")
        what = rest.pop(0)
        if what.text == "auto":
            auto = True
        elif what.text in ("name", "value"):
            if len(rest) < 2:
                raise what.error(
                    f"rewrite: {what.text} answer rule for {match} rule: 2 arguments required"
                )
            pattern, replacement = rest.pop(0), rest.pop(0)
            _check_groups(compile_regex(pattern), pattern, replacement)
            kind = cast('Literal["name", "value"]', what.text)
            rules.append(config.AnswerRule(kind, pattern.text, replacement.text.lower()))
        else:
            raise what.error(
                f'rewrite: invalid type "{what.text}" for answer rule for {match} rule; '
                "use auto, name or value"
            )
    if auto and any(rule.what == "name" for rule in rules):
        raise at.error(
            "rewrite: auto name answer rule cannot be combined with explicit name answer rules"
        )
    return auto, tuple(rules)


def _check_groups(pattern: re.Pattern[str], source: Token, target: Token) -> None:
    if any(int(group) > pattern.groups for group in _GROUP.findall(target.text)):
        raise target.error(
            f"rewrite: the rewrite regex pattern ({target.text}) uses more subexpressions than its "
            f"corresponding matching regex pattern ({source.text})"
        )


def _type(tokens: list[Token], at: Token, stop: bool) -> config.TypeRule:
    source, target = _pair(tokens, at)
    return config.TypeRule(_record_type(source), _record_type(target), stop)


def _class(tokens: list[Token], at: Token, stop: bool) -> config.ClassRule:
    source, target = _pair(tokens, at)
    return config.ClassRule(_record_class(source), _record_class(target), stop)


def _pair(tokens: list[Token], at: Token) -> tuple[Token, Token]:
    if len(tokens) != 2:
        raise at.error(f"rewrite: {at.text} rules must have exactly two arguments")
    return tokens[0], tokens[1]


def _record_type(token: Token) -> int:
    try:
        return int(dns.rdatatype.from_text(token.text))
    except (dns.exception.DNSException, ValueError) as e:
        raise token.error(f'rewrite: invalid type "{token.text}"') from e


def _record_class(token: Token) -> int:
    try:
        return int(dns.rdataclass.from_text(token.text))
    except (dns.exception.DNSException, ValueError) as e:
        raise token.error(f'rewrite: invalid class "{token.text}"') from e


def _ttl(tokens: list[Token], at: Token, stop: bool) -> config.TtlRule:
    if len(tokens) < 2:
        raise at.error("rewrite: too few arguments for a ttl rule")
    match: config.Match = "exact"
    if len(tokens) > 2:
        match = _match(tokens.pop(0), "ttl rule")
    if len(tokens) > 2:
        raise tokens[2].error("rewrite: exceeded the number of arguments for a ttl rule")
    source, value = tokens
    if match == "regex":
        compile_regex(source)
    low, high = _ttl_range(value)
    pattern = source.text if match == "regex" else _normal(source.text, match)
    return config.TtlRule(match, pattern, low, high, stop)


def _ttl_range(token: Token) -> tuple[int, int]:
    """`30`, `30-300`, `30-`, `-300`."""
    low, dash, high = token.text.partition("-")
    if not all(part.isdigit() for part in (low, high) if part) or token.text in ("", "-"):
        raise token.error(f"rewrite: invalid TTL {token.text!r}; write 30, 30-300, 30- or -300")
    least = int(low or 0)
    most = int(high) if high else (2**31 - 1 if dash else least)
    if least > most:
        raise token.error(f"rewrite: TTL {token.text!r} has its bounds in the wrong order")
    return least, most


MANY: Final[Many] = {"rewrite": parse_rewrite}
