"""config.json, users and programs: everything decided before a runtime is asked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from podwire.errors import ContainerError
from podwire.runtime.containers import ContainerSpec, Mount, User
from podwire.runtime.oci import bundle, inside
from podwire.runtime.oci.probe import id_ranges
from podwire.runtime.oci.store import ImageConfig

SPEC = ContainerSpec(
    pod_uid="u",
    pod_namespace="ns",
    pod_name="p",
    name="c",
    attempt=0,
    image="img",
    netns=Path("/pins/p"),
    hostname="p",
    hosts_path=Path("/n/hosts"),
    resolv_conf_path=Path("/n/resolv"),
    log_path=Path("/n/log"),
    termination_path=Path("/n/term"),
)
ROOT = bundle.Place(pause_pid=7, shm_dir=Path("/n/shm"), rootless=False)
ROOTLESS = replace(ROOT, rootless=True)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ["ep", "cmd"]),
        (("c",), (), ["c"]),
        ((), ("a",), ["ep", "a"]),
        (("c",), ("a", "b"), ["c", "a", "b"]),
    ],
)
def test_command_and_args_follow_kubernetes(
    command: tuple[str, ...], args: tuple[str, ...], expected: list[str]
) -> None:
    image = ImageConfig(entrypoint=["ep"], cmd=["cmd"])
    assert bundle.process_args(replace(SPEC, command=command, args=args), image) == expected


@pytest.mark.parametrize("empty", [None, []])
def test_nothing_to_run_is_an_error(empty: list[str] | None) -> None:
    with pytest.raises(ContainerError, match="no command specified"):
        bundle.process_args(SPEC, ImageConfig(entrypoint=empty, cmd=empty))


def test_environment_later_wins() -> None:
    image = ImageConfig(env=["PATH=/p", "A=image", "B=image"])
    env = bundle.environment(replace(SPEC, env=(("B", "pod"),), tty=True), image, "/home")
    assert env == {
        "PATH": "/p", "HOSTNAME": "p", "HOME": "/home", "TERM": "xterm", "A": "image", "B": "pod",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "count", "has", "lacks"),
    [
        ((), (), False, 14, "CAP_CHOWN", "CAP_NET_ADMIN"),
        (("NET_ADMIN",), (), False, 15, "CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
        ((), ("ALL",), False, 0, None, "CAP_CHOWN"),
        (("cap_chown",), ("ALL",), False, 1, "CAP_CHOWN", "CAP_KILL"),
        (("ALL",), ("KILL",), False, 40, "CAP_BPF", "CAP_KILL"),
        ((), (), True, 41, "CAP_BPF", None),
    ],
)
def test_capabilities(
    add: tuple[str, ...],
    drop: tuple[str, ...],
    privileged: bool,
    count: int,
    has: str | None,
    lacks: str | None,
) -> None:
    spec = replace(SPEC, capabilities_add=add, capabilities_drop=drop, privileged=privileged)
    found = bundle.capabilities(spec)
    assert len(found) == count
    assert has is None or has in found
    assert lacks not in found


def _config(spec: ContainerSpec, place: bundle.Place = ROOT) -> dict[str, object]:
    identity = bundle.Identity(5, 6, (7,))
    process = bundle.process(spec, identity, bundle.Program(["x"], {"A": "b"}, "/"), place)
    return bundle.config_json(spec, process, place)


def test_namespaces_are_the_pods() -> None:
    def paths(spec: ContainerSpec) -> dict[str, str]:
        linux = _config(spec)["linux"]
        assert isinstance(linux, dict)
        return {n["type"]: n.get("path", "new") for n in linux["namespaces"]}

    expected = {"mount": "new", "pid": "new", "ipc": "/proc/7/ns/ipc", "uts": "/proc/7/ns/uts"}
    assert paths(SPEC) == expected | {"network": "/pins/p"}
    assert paths(replace(SPEC, netns=None)) == expected
    assert paths(replace(SPEC, share_process_namespace=True))["pid"] == "/proc/7/ns/pid"


def test_rootless_leaves_out_what_is_not_mapped() -> None:
    text = str(_config(SPEC, ROOTLESS))
    assert "gid=5" not in text
    assert "additionalGids" not in text
    assert "gid=5" in str(_config(SPEC))
    assert "'additionalGids': [7]" in str(_config(SPEC))
    for config in (_config(SPEC), _config(SPEC, ROOTLESS)):
        assert "cgroup" not in str(config)
        assert "resources" not in str(config)


def test_mounts_of_the_pod_win_and_nest() -> None:
    spec = replace(
        SPEC,
        mounts=(
            Mount("/a/b", Path("/v/b"), read_only=True),
            Mount("/a", Path("/v/a"), recursive=False),
            Mount("/etc/hosts", Path("/v/hosts")),
            Mount("/t", None, size_bytes=9),
        ),
    )
    mounts = _config(spec)["mounts"]
    assert isinstance(mounts, list)
    by_path = {m["destination"]: m for m in mounts}
    assert len(by_path) == len(mounts)
    assert by_path["/etc/hosts"]["source"] == "/v/hosts"
    assert by_path["/a/b"]["options"] == ["rbind", "rprivate", "ro"]
    assert by_path["/a"]["options"] == ["bind", "rprivate", "rw"]
    assert "size=9" in by_path["/t"]["options"]
    order = [m["destination"] for m in mounts]
    assert order.index("/a") < order.index("/a/b")


def test_only_root_has_capabilities_at_once() -> None:
    place = ROOT
    own = bundle.process(SPEC, bundle.Identity(), bundle.Program(["x"], {}, "/"), place)
    other = bundle.process(SPEC, bundle.Identity(5), bundle.Program(["x"], {}, "/"), place)
    assert own["capabilities"]["effective"] == own["capabilities"]["bounding"]
    assert other["capabilities"]["effective"] == []
    assert other["capabilities"]["bounding"]


# --- inside the image -----------------------------------------------------------------------------


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    lower, upper = tmp_path / "0", tmp_path / "1"
    for path in (lower / "etc", upper / "etc"):
        path.mkdir(parents=True)
    (lower / "etc/passwd").write_text("old:x:1:1::/:\n")
    (upper / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n#junk\napp:x:10:11::/app:\n")
    (upper / "etc/group").write_text("app:x:11:\nmore:x:12:app,z\n")
    return [lower, upper]


@pytest.mark.parametrize(
    ("image_user", "user", "expected"),
    [
        ("", User(), bundle.Identity(0, 0, (), "/root")),
        ("app", User(), bundle.Identity(10, 11, (12,), "/app")),
        ("app:more", User(), bundle.Identity(10, 12, (12,), "/app")),
        ("10", User(), bundle.Identity(10, 11, (12,), "/app")),
        ("99:98", User(), bundle.Identity(99, 98, (), "/")),
        ("app", User(5, 6, (7,)), bundle.Identity(5, 6, (7,), "/")),
        ("app:more", User(10), bundle.Identity(10, 11, (12,), "/app")),
        ("10", User(must_not_be_root=True), bundle.Identity(10, 11, (12,), "/app")),
    ],
)
def test_users(layers: list[Path], image_user: str, user: User, expected: bundle.Identity) -> None:
    assert inside.identify(replace(SPEC, user=user), image_user, layers) == expected


@pytest.mark.parametrize(
    ("image_user", "user", "text"),
    [
        ("old", User(), "unable to find user old"),
        ("app:none", User(), "unable to find group none"),
        ("", User(must_not_be_root=True), "will run as root"),
        ("app", User(must_not_be_root=True), "non-numeric user"),
    ],
)
def test_users_that_cannot_be(layers: list[Path], image_user: str, user: User, text: str) -> None:
    with pytest.raises(ContainerError, match=text) as caught:
        inside.identify(replace(SPEC, user=user), image_user, layers)
    assert caught.value.reason == "CreateContainerConfigError"


def test_programs_are_looked_up_as_the_container_sees_them(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")
    program = tmp_path / "usr/bin/real"
    program.write_text("x")
    program.chmod(0o755)
    (tmp_path / "usr/bin/link").symlink_to("/bin/real")
    (tmp_path / "usr/bin/out").symlink_to("/../../../../bin/sh")
    (tmp_path / "usr/bin/loop").symlink_to("loop")
    (tmp_path / "usr/bin/data").write_text("x")

    def why(name: str) -> str:
        return inside.program_missing(tmp_path, name, "/nowhere:/bin", "/usr")

    for name in ("real", "link", "/bin/link", "bin/real", "./bin/../bin/real"):
        assert why(name) == ""
    for name in ("out", "loop", "none"):
        assert "not found in $PATH" in why(name)
    assert "no such file" in why("/none")
    assert "permission denied" in why("data")
    assert os.path.exists("/bin/sh")


def test_id_ranges() -> None:
    assert id_ranges("         0       1000          1\n") == ((0, 1),)
    assert id_ranges("0 1000 1\n1 100000 65536\n") == ((0, 1), (1, 65536))
