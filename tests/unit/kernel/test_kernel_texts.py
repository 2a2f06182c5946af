"""What is pure about nft, tc and the fake: texts in, texts out."""

from __future__ import annotations

import errno

from podwire.kernel import features, nft, tc
from podwire.kernel.fake import split_commands


def test_tc_batch_golden() -> None:
    classes = [
        tc.Class(minor=0x10, leaf=tc.Netem(delay_ms=10, jitter_ms=2, loss_percent=1)),
        tc.Class(minor=0x11, rate_bit=5_000_000, leaf=tc.Tbf(rate_bit=1_000_000)),
    ]
    assert tc.render("eth0", classes) == (
        "qdisc replace dev eth0 root handle 1: htb default ffff\n"
        "class replace dev eth0 parent 1: classid 1:10 htb rate 32000000000bit "
        "ceil 32000000000bit quantum 60000\n"
        "qdisc replace dev eth0 parent 1:10 netem limit 10000 delay 10ms 2ms loss 1%\n"
        "class replace dev eth0 parent 1: classid 1:11 htb rate 5000000bit "
        "ceil 5000000bit quantum 60000\n"
        "qdisc replace dev eth0 parent 1:11 tbf rate 1000000bit burst 32768b latency 50ms\n"
        "class replace dev eth0 parent 1: classid 1:ffff htb rate 32000000000bit "
        "ceil 32000000000bit quantum 60000\n"
    )


def test_nft_reports_become_errors() -> None:
    text = "add table ip x\nadd chain ip y c\n"
    report = (
        "/proc/self/fd/5:2:14-14: Error: No such file or directory; "
        "did you mean table 'x' in family ip?\nadd chain ip y c\n             ^\n"
    )
    error = nft._error(text, report, None)
    assert error.errno == errno.ENOENT
    assert str(error).startswith("nftables: line 2: 'add chain ip y c': No such file")
    assert nft._error("", "", None).errno == 0


def test_split_commands() -> None:
    text = "add table ip a; add table ip b\n# c\ntable ip d {\n  chain e { accept; }\n}\n"
    assert split_commands(text) == [
        "add table ip a",
        "add table ip b",
        "table ip d {\n  chain e { accept; }\n}",
    ]


def test_every_feature_is_explained_in_one_line() -> None:
    assert set(features.EXPLAIN) == set(features.Features.__struct_fields__)
    assert all("\n" not in text and len(text) < 100 for text in features.EXPLAIN.values())
