"""Corefiles: what people really write, what is refused and how, and there and back again."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.dns import config
from podwire.dns.caddyfile import parse_blocks
from podwire.dns.corefile import parse_corefile
from podwire.dns.render import render_corefile
from podwire.dns.zones import matching_zone, parse_zone, parse_zone_key
from podwire.errors import CorefileError

# coredns/deployment kubernetes/coredns.yaml.sed, with its words filled in.
DEFAULT = """
.:53 {
    errors
    health {
      lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9153
    forward . /etc/resolv.conf {
      max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
"""

# kubernetes/kubernetes cluster/addons/dns/nodelocaldns, its first two blocks.
NODE_LOCAL = """
cluster.local:53 {
    errors
    cache {
            success 9984 30
            denial 9984 5
    }
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.96.0.11 {
            force_tcp
    }
    prometheus :9253
    health 169.254.20.10:8080
    }
in-addr.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.96.0.11 {
            force_tcp
    }
    prometheus :9253
    }
"""


def only(text: str) -> config.Block:
    (block,) = parse_corefile(text).blocks
    return block


def test_the_default_corefile() -> None:
    block = only(DEFAULT)
    assert block == config.Block(
        zones=(".",),
        port=53,
        errors=config.Errors(),
        health=config.Health(lameduck_s=5.0),
        ready=config.Ready(),
        kubernetes=config.Kubernetes(
            zones=("cluster.local.", "in-addr.arpa.", "ip6.arpa."),
            fallthrough=("in-addr.arpa.", "ip6.arpa."),
        ),
        prometheus=":9153",
        forward=(config.Forward(".", ("/etc/resolv.conf",), max_concurrent=1000),),
        cache=config.Cache((".",), success_ttl=30, denial_ttl=30),
        loop=True,
        reload=config.Reload(),
        loadbalance=True,
    )


def test_the_node_local_corefile() -> None:
    cluster, reverse = parse_corefile(NODE_LOCAL).blocks
    assert cluster.bind == ("169.254.20.10", "10.96.0.10")
    assert cluster.cache is not None
    assert (cluster.cache.success_ttl, cluster.cache.denial_ttl) == (30, 5)
    assert cluster.forward[0].force_tcp
    assert reverse.zones == ("in-addr.arpa.",)


def test_stub_domains_are_further_blocks() -> None:
    corefile = parse_corefile(
        DEFAULT
        + """
        consul.local:53 corp.example {
            forward . 10.150.0.1 [fd00::1]:1053 fd00::2
        }
        .:5353 {
            forward . 10.0.0.1
        }
        """
    )
    assert corefile.ports == (53, 5353)
    assert [block.zones for block in corefile.on_port(53)] == [
        (".",),
        ("consul.local.", "corp.example."),
    ]
    assert corefile.blocks[1].forward[0].to == ("10.150.0.1", "[fd00::1]:1053", "fd00::2")


def test_one_block_with_two_ports_is_two() -> None:
    assert [b.port for b in parse_corefile("a.example:53 b.example:1053 {\n errors\n}").blocks] == [
        53,
        1053,
    ]


def test_snippets_and_files_stand_where_they_are_imported() -> None:
    text = """
    (common) {
        errors
        cache 30 {
            prefetch 5
        }
    }
    .:53 {
        import common
        import custom/*.override
        forward . 10.0.0.1
    }
    import custom/*.server
    """
    files = {
        "custom/a.override": "log",
        "custom/b.server": "b.example {\n forward . 10.0.0.2\n}",
        "other/c.override": "nonsense",
    }
    first, second = parse_corefile(text, files=files).blocks
    assert first.log == (config.Log(),)
    assert first.cache is not None
    assert first.cache.prefetch == config.Prefetch(5)
    assert second.zones == ("b.example.",)


def test_variables_quotes_and_comments() -> None:
    block = only('. {\n log . "{proto} said \\"{name}\\"" # words\n # errors\n}')
    assert block.log[0].format == '{proto} said "{name}"'
    parsed = parse_corefile("{$ZONE} {\n errors\n}", environment={"ZONE": "a.example"})
    assert parsed.blocks[0].zones == ("a.example.",)


def test_a_single_server_needs_no_braces() -> None:
    block = only("example.org\nerrors\nforward . 10.0.0.1\n")
    assert block.zones == ("example.org.",)
    assert block.errors is not None


def test_every_option_of_kubernetes() -> None:
    block = only(
        """cluster.local {
            kubernetes {
                pods verified
                endpoint_pod_names
                ttl 30
                namespaces a b
                labels environment in (staging, qa),application=nginx
                noendpoints
                ignore empty_service
                fallthrough
                startup_timeout 1m30s
            }
        }"""
    )
    settings = block.kubernetes
    assert settings is not None
    assert settings.zones == ("cluster.local.",)
    assert (settings.pods, settings.ttl, settings.namespaces) == ("verified", 30, ("a", "b"))
    assert (settings.fallthrough, settings.startup_timeout_s) == ((), 90.0)
    assert settings.labels is not None
    assert settings.labels.matches({"environment": "qa", "application": "nginx"})
    assert not settings.labels.matches({"environment": "prod", "application": "nginx"})


def test_rewrite_in_all_its_forms() -> None:
    block = only(
        r"""
        . {
            rewrite name foo.example.com foo.default.svc.cluster.local
            rewrite continue name suffix .Example.com .cluster.local answer auto
            rewrite stop {
                name regex (.*)-(eu)\.example\.org {1}.service.{2}.consul
                answer name (.*)\.service\.(eu)\.consul {1}-{2}.example.org
            }
            rewrite type ANY HINFO
            rewrite class CH IN
            rewrite ttl suffix .example.org 30-300
        }
        """
    )
    assert block.rewrite == (
        config.NameRule("exact", "foo.example.com.", "foo.default.svc.cluster.local.", auto=True),
        config.NameRule("suffix", ".example.com.", ".cluster.local.", auto=True, stop=False),
        config.NameRule(
            "regex",
            r"(.*)-(eu)\.example\.org",
            "{1}.service.{2}.consul",
            answers=(
                config.AnswerRule("name", r"(.*)\.service\.(eu)\.consul", "{1}-{2}.example.org"),
            ),
        ),
        config.TypeRule(255, 13),
        config.ClassRule(3, 1),
        config.TtlRule("suffix", ".example.org.", 30, 300),
    )


@pytest.mark.parametrize(
    ("body", "place", "words"),
    [
        ("etcd", "2:5", "plugin 'etcd' is not supported; serve the zone elsewhere"),
        ("template ANY ANY", "2:5", "plugin 'template' is not supported; write single names"),
        ("proxy . 1.1.1.1", "2:5", "plugin 'proxy' is not supported; use `forward`"),
        ("acl", "2:5", "NetworkPolicy"),
        ("forwrad . 1.1.1.1", "2:5", "Unknown directive 'forwrad'; known are"),
        ("errors\n    errors", "3:5", "can only be used once per Server Block"),
        ("forward .", "2:5", "an upstream is missing"),
        ("forward . dns.google", "2:15", "not an IP address or file: 'dns.google'"),
        ("forward . tls://9.9.9.9", "2:15", "encrypted upstreams are not supported"),
        ("forward . 1.1.1.1 {\n      policy best\n    }", "3:14", "unknown policy 'best'"),
        ("forward . 1.1.1.1 {\n      tls\n    }", "3:7", "is not supported"),
        ("forward . 1.1.1.1 {\n      fast\n    }", "3:7", "unknown property 'fast'; known are"),
        ("forward . 1.1.1.1 {\n      max_fails -1\n    }", "3:7", "can't be negative"),
        ("forward . 1.1.1.1 {\n      expire ten\n    }", "3:14", "duration 'ten' is not valid"),
        ("forward . 1.1.1.1 {\n      next NOERROR\n    }", "3:12", "NOERROR cannot be used"),
        ("cache 0", "2:5", "cache TTL can not be zero or negative: 0"),
        ("cache {\n      success\n    }", "3:7", "the capacity is missing"),
        ("cache {\n      servfail 6m\n    }", "3:7", "over 5 minutes is not permitted"),
        ("cache {\n      serve_stale 1h verified\n    }", "3:7", "refresh mode: verified"),
        ("cache {\n      prefetch 1 1m 5%\n    }", "3:21", "range [10, 90]: 5"),
        ("cache {\n      prefetch 1 1m 10\n    }", "3:21", "last character of percentage"),
        ("cache {\n      disable most\n    }", "3:15", "must be success or denial"),
        ("kubernetes in-addr.arpa", "2:5", "non-reverse zone name must be used"),
        ("kubernetes {\n      pods yes\n    }", "3:12", "wrong value for pods: yes"),
        ("kubernetes a {\n      ttl 3601\n    }", "3:7", "[0, 3600]: 3601"),
        ("kubernetes a {\n      endpoint http://x\n    }", "3:7", "endpoint: is not supported"),
        ("kubernetes a {\n      multicluster\n    }", "3:7", "multicluster: is not supported"),
        ("health {\n      lameduck\n    }", "3:7", "the duration is missing"),
        ("reload 1s", "2:5", "greater or equal to 2s"),
        ("loop 5", "2:10", "'5' is too many"),
        ("loadbalance weighted f", "2:5", "'weighted' is not supported; use round_robin"),
        ("hosts {\n      example.org 10.0.0.1\n    }", "3:7", "neither an address nor"),
        ("hosts {\n      ttl 0\n    }", "3:7", "ttl provided is invalid"),
        ("rewrite", "2:5", "the field is missing"),
        ("rewrite name a", "2:13", "too few arguments"),
        ("rewrite name regex ( b", "2:24", "invalid regex matching pattern"),
        ("rewrite name regex a {1}", "2:26", "more subexpressions"),
        ("rewrite name fuzzy a b", "2:18", "received: fuzzy"),
        ("rewrite edns0 local set 0xffee 1", "2:13", "'edns0' is not supported"),
        ("rewrite answer name a b", "2:13", "must begin with a name rule"),
        ("log {\n      class most\n    }", "3:13", "unknown class 'most'"),
        ("autopath @file", "2:14", "plugin @file has no search path"),
        ("dns64 64:ff9b::/97", "2:11", "97"),
        ("bind eth0", "2:10", "'eth0' is not an IP address"),
        ("errors {", "1:3", "'{' is never closed"),
        ('log . "x', "2:11", "is not closed"),
        ("import nothing", "2:12", "File to import not found: nothing"),
    ],
)
def test_faults_say_where_and_what_instead(body: str, place: str, words: str) -> None:
    with pytest.raises(CorefileError) as caught:
        parse_corefile(f". {{\n    {body}\n}}\n")
    assert str(caught.value).startswith(f"Corefile:{place}: "), str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{\n}", "names no zone"),
        ("}", "closes nothing"),
        ("a:99999 {\n}", "'99999' is not a port"),
        ("tls://a {\n}", "transport tls:// is not supported"),
        ("a..b {\n}", "is not a domain name"),
        ("a {\n}\na {\n}", "already served by the block in line 1"),
        ("(s) {\n import s\n}\n. {\n import s\n}", "maximum import depth"),
        ("(s) {\n}\n(s) {\n}", "redeclaration"),
        ("(s)\n", "has no braces"),
        (". { errors }", "a new line has to begin"),
        (". {\n errors } \n", "has to stand in a line of its own"),
        ("a,\n", "has to follow the comma"),
    ],
)
def test_faults_of_syntax(text: str, words: str) -> None:
    with pytest.raises(CorefileError, match=r"^Corefile:\d+:\d+: ") as caught:
        parse_corefile(text)
    assert words in str(caught.value)


def test_everything_that_is_not_supported_is_told_at_once() -> None:
    text = ". {\n errors\n route53 a:b\n}\na {\n template ANY ANY\n nosuch\n}\n"
    with pytest.raises(CorefileError) as caught:
        parse_corefile(text)
    first, second, third = str(caught.value).split("; line ")
    assert first.startswith("Corefile:3:2: plugin 'route53' is not supported")
    assert second.startswith("6: plugin 'template' is not supported")
    assert third.startswith("7: Unknown directive 'nosuch'")


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        ("10.0.0.0/24", ("0.0.10.in-addr.arpa.",)),
        ("10.96.0.0/15", ("96.10.in-addr.arpa.", "97.10.in-addr.arpa.")),
        ("fd00:96::/32", ("6.9.0.0.0.0.d.f.ip6.arpa.",)),
        ("Example.ORG", ("example.org.",)),
        (".", (".",)),
    ],
)
def test_ranges_are_reverse_zones(text: str, zones: tuple[str, ...]) -> None:
    assert parse_zone(text) == zones


def test_ports_of_keys() -> None:
    assert parse_zone_key("dns://.:1053") == ((".",), 1053)
    assert parse_zone_key(":53") == ((".",), 53)
    assert parse_zone_key("fd00::/8") == (("d.f.ip6.arpa.",), None)


def test_the_longest_zone_wins() -> None:
    zones = (".", "example.org.", "a.example.org.")
    assert matching_zone("x.a.example.org.", zones) == "a.example.org."
    assert matching_zone("ba.example.org.", zones) == "example.org."


NAMES = st.sampled_from(["a.example.", "b.a.example.", "cluster.local."])
ZONES = st.lists(NAMES, min_size=1, max_size=2, unique=True).map(tuple)
SECONDS = st.integers(2, 7200).map(float)
FALL = st.none() | st.just(()) | ZONES

FORWARDS = st.builds(
    config.Forward,
    source=NAMES,
    to=st.lists(
        st.sampled_from(["10.0.0.1", "[fd00::1]:1053", "/etc/resolv.conf"]), min_size=1, unique=True
    ).map(tuple),
    exclude=st.just(()) | ZONES,
    force_tcp=st.booleans(),
    prefer_udp=st.booleans(),
    expire_s=SECONDS,
    max_fails=st.integers(0, 9),
    policy=st.sampled_from(["random", "round_robin", "sequential"]),
    health_check_s=SECONDS,
    health_recursion=st.booleans(),
    health_domain=NAMES,
    max_concurrent=st.integers(0, 2000),
    next_rcodes=st.frozensets(st.sampled_from([2, 3, 5])),
    failover_rcodes=st.frozensets(st.sampled_from([2, 5])),
    failfast=st.booleans(),
)
CACHES = st.builds(
    config.Cache,
    zones=ZONES,
    success_capacity=st.integers(1, 20000),
    success_ttl=st.integers(1, 3600),
    success_min_ttl=st.integers(0, 60),
    denial_ttl=st.integers(1, 3600),
    prefetch=st.none()
    | st.builds(config.Prefetch, st.integers(1, 9), SECONDS, st.integers(10, 90)),
    stale_s=st.just(0.0) | SECONDS,
    servfail_s=st.integers(0, 300).map(float),
    disable_success=st.just(()) | ZONES,
    disable_denial=st.just(()) | ZONES,
    keep_ttl=st.booleans(),
)
KUBERNETES = st.builds(
    config.Kubernetes,
    zones=ZONES,
    pods=st.sampled_from(["disabled", "insecure", "verified"]),
    endpoint_pod_names=st.booleans(),
    ttl=st.integers(0, 3600),
    namespaces=st.just(()) | st.just(("a", "b")),
    noendpoints=st.booleans(),
    ignore_empty_service=st.booleans(),
    fallthrough=FALL,
    startup_timeout_s=SECONDS,
)
HOSTS = st.builds(
    config.Hosts,
    zones=ZONES,
    inline=st.just(()) | st.just(("10.0.0.1 a.example b.example", "fd00::1 c.example")),
    ttl=st.integers(1, 65535),
    reverse=st.booleans(),
    reload_s=SECONDS,
    fallthrough=FALL,
)
RULES = st.one_of(
    st.builds(
        config.NameRule,
        match=st.just("suffix"),
        source=st.just(".a.example."),
        target=st.just(".b.example."),
        auto=st.booleans(),
        answers=st.just(()) | st.just((config.AnswerRule("value", "(.*)x", "{1}y"),)),
        stop=st.booleans(),
    ),
    st.builds(config.TypeRule, st.just(255), st.just(13), st.booleans()),
    st.builds(config.ClassRule, st.just(3), st.just(1), st.booleans()),
    st.builds(
        config.TtlRule,
        st.just("exact"),
        NAMES,
        st.integers(0, 30),
        st.integers(30, 300),
        st.booleans(),
    ),
)
LOGS = st.builds(
    config.Log,
    ZONES,
    st.sampled_from(["{common}", "{combined}", '{proto} "{name}"']),
    st.just(frozenset({"all"})) | st.just(frozenset({"denial", "error"})),
)
BLOCKS = st.builds(
    config.Block,
    zones=ZONES,
    port=st.integers(1, 65535),
    bind=st.just(()) | st.just(("127.0.0.1", "::1")),
    errors=st.none()
    | st.just(config.Errors((config.Consolidate(30.0, '^read "udp"', "warning"),))),
    log=st.lists(LOGS, max_size=2).map(tuple),
    health=st.none() | st.builds(config.Health, st.just(":8080"), SECONDS),
    ready=st.none() | st.just(config.Ready()),
    prometheus=st.none() | st.just(":9153"),
    reload=st.none() | st.just(config.Reload(10.0, 5.0)),
    kubernetes=st.none() | KUBERNETES,
    forward=st.lists(FORWARDS, max_size=2).map(tuple),
    cache=st.none() | CACHES,
    loop=st.booleans(),
    loadbalance=st.booleans(),
    hosts=st.none() | HOSTS,
    rewrite=st.lists(RULES, max_size=3).map(tuple),
    autopath=st.none() | st.builds(config.Autopath, ZONES),
    dns64=st.none()
    | st.builds(config.Dns64, st.just("64:1337::/96"), st.booleans(), st.booleans()),
)


@given(BLOCKS)
def test_what_is_rendered_reads_as_the_same(block: config.Block) -> None:
    corefile = config.Corefile((block,))
    assert parse_corefile(render_corefile(corefile)) == corefile


@given(st.text(alphabet='. {}\n"#(),a:1/$%*', max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    with contextlib.suppress(CorefileError):
        parse_corefile(text)


@given(st.text(max_size=200))
def test_syntax_alone_never_crashes(text: str) -> None:
    with contextlib.suppress(CorefileError):
        parse_blocks(text)
