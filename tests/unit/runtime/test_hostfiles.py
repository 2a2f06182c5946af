"""/etc/hosts and host names, against what kubelet writes; the whole table of KEP-4762."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from dns_worlds import World, headless, rows, slice_of

from podwire.apiserver.validation.pod import validate_pod_spec
from podwire.controllers.endpoints.members import compile_member
from podwire.controllers.views import Pod as ControllersPod
from podwire.dns.views import Endpoint
from podwire.errors import ContainerError
from podwire.objects import core
from podwire.objects.core import Pod
from podwire.runtime.hostfiles import (
    hostname,
    kernel_hostname,
    render_host_network_hosts,
    render_hosts,
)

DOMAIN = "cluster.local"


def pod(**spec: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}, Pod)


def test_hosts_has_every_address_and_the_aliases() -> None:
    aliased = pod(hostAliases=[{"ip": "10.1.2.3", "hostnames": ["foo.local", "bar.local"]}])
    text = render_hosts(["10.244.0.5", "fd00:244::5"], "web-0", "", aliased.spec.host_aliases)
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
    assert "10.244.0.5\tweb-0\nfd00:244::5\tweb-0\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n10.1.2.3\tfoo.local\tbar.local\n")


def test_hosts_of_a_pod_with_subdomain_has_the_full_name_first() -> None:
    name, domain = hostname(pod(hostname="db", subdomain="data"), DOMAIN)
    line = render_hosts(["10.244.0.5"], name, domain).splitlines()[-1]
    assert line == "10.244.0.5\tdb.data.shop.svc.cluster.local\tdb"


def test_host_network_hosts_begin_with_the_node_file() -> None:
    text = render_host_network_hosts("127.0.0.1 localhost\n")
    assert text == "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"


NODE, ADDRESS = "node-1", "10.244.0.5"
FQDN = "busybox1.busybox-subdomain.shop.svc.cluster.local"
OWN_FQDN = "web-0.busybox-subdomain.shop.svc.cluster.local"
ANY = "www.example.com"
REFUSED = "refused by the API"

FIELDS: dict[str, Any] = {
    "hostname": "busybox1",
    "subdomain": "busybox-subdomain",
    "setHostnameAsFQDN": True,
    "hostNetwork": True,
    "hostnameOverride": ANY,
}

# KEP-4762's table with every combination of the five fields: `hostname`, `hostname -f`, the name
# cluster DNS is asked for (it is served where a headless Service is called like the subdomain).
# The KEP's own rows are those with hostname, and ANY alone. Its draft let the override win over
# setHostnameAsFQDN; the API came to refuse the two together (pkg/apis/core/validation).
TRUTH = [
    # host sub    asFQDN hostNet override -> hostname, hostname -f, DNS record
    (0, 0, 0, 0, 0, "web-0", "web-0", None),
    (1, 0, 0, 0, 0, "busybox1", "busybox1", None),
    (0, 1, 0, 0, 0, "web-0", OWN_FQDN, None),
    (1, 1, 0, 0, 0, "busybox1", FQDN, FQDN),
    (0, 0, 1, 0, 0, "web-0", "web-0", None),
    (1, 0, 1, 0, 0, "busybox1", "busybox1", None),
    (0, 1, 1, 0, 0, OWN_FQDN, OWN_FQDN, None),
    (1, 1, 1, 0, 0, FQDN, FQDN, FQDN),
    (0, 0, 0, 1, 0, NODE, NODE, None),
    (1, 0, 0, 1, 0, NODE, NODE, None),
    (0, 1, 0, 1, 0, NODE, NODE, None),
    (1, 1, 0, 1, 0, NODE, NODE, FQDN),
    (0, 0, 1, 1, 0, NODE, NODE, None),
    (1, 0, 1, 1, 0, NODE, NODE, None),
    (0, 1, 1, 1, 0, NODE, NODE, None),
    (1, 1, 1, 1, 0, NODE, NODE, FQDN),
    (0, 0, 0, 0, 1, ANY, ANY, None),
    (1, 0, 0, 0, 1, ANY, ANY, None),
    (0, 1, 0, 0, 1, ANY, ANY, None),
    (1, 1, 0, 0, 1, ANY, ANY, FQDN),
    (0, 0, 1, 0, 1, REFUSED, REFUSED, None),
    (1, 0, 1, 0, 1, REFUSED, REFUSED, None),
    (0, 1, 1, 0, 1, REFUSED, REFUSED, None),
    (1, 1, 1, 0, 1, REFUSED, REFUSED, None),
    (0, 0, 0, 1, 1, REFUSED, REFUSED, None),
    (1, 0, 0, 1, 1, REFUSED, REFUSED, None),
    (0, 1, 0, 1, 1, REFUSED, REFUSED, None),
    (1, 1, 0, 1, 1, REFUSED, REFUSED, None),
    (0, 0, 1, 1, 1, REFUSED, REFUSED, None),
    (1, 0, 1, 1, 1, REFUSED, REFUSED, None),
    (0, 1, 1, 1, 1, REFUSED, REFUSED, None),
    (1, 1, 1, 1, 1, REFUSED, REFUSED, None),
]


def test_the_truth_table_has_every_combination() -> None:
    assert {row[:5] for row in TRUTH} == set(itertools.product((0, 1), repeat=5))


def _fields(row: tuple[Any, ...]) -> list[str]:
    return [name for name, there in zip(FIELDS, row[:5], strict=True) if there]


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: ", ".join(_fields(row)) or "none")
def test_host_names_of_kep_4762(row: tuple[Any, ...]) -> None:
    kernel, canonical, record = row[5:]
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "busybox"}]}
    spec |= {name: FIELDS[name] for name in _fields(row)}
    clashing = {"spec.hostNetwork", "spec.setHostnameAsFQDN"}
    found = {error.field for error in validate_pod_spec(spec, "spec")} & clashing
    assert bool(found) == (kernel == REFUSED)
    if kernel == REFUSED:
        return
    this = pod(**spec)
    assert kernel_hostname(this, DOMAIN, NODE) == kernel
    assert _canonical(this) == canonical
    assert _record(this) == record


def _canonical(this: Pod) -> str:
    """`hostname -f`: the first name of the line of /etc/hosts that has the kernel's host name."""
    if this.spec.host_network:
        return NODE
    kernel = kernel_hostname(this, DOMAIN, NODE)
    hosts = render_hosts([ADDRESS], *hostname(this, DOMAIN))
    return next(line.split()[1] for line in hosts.splitlines() if kernel in line.split()[1:])


def _record(this: Pod) -> str | None:
    """The pod's name that cluster DNS serves: through the slice it is in of a headless Service that
    is called like the subdomain."""
    sub = FIELDS["subdomain"]
    body = {"clusterIP": "None", "selector": {"app": "web"}}
    service = msgspec.convert(
        {"metadata": {"name": sub, "namespace": "shop"}, "spec": body}, core.Service
    )
    status = {"podIPs": [{"ip": ADDRESS}], "conditions": [{"type": "Ready", "status": "True"}]}
    member = compile_member(
        service,
        msgspec.convert({**msgspec.to_builtins(this), "status": status}, ControllersPod),
        msgspec.convert({"metadata": {"name": NODE}}, core.Node),
    )
    assert member is not None
    told = msgspec.convert(msgspec.to_builtins(member.endpoints["IPv4"]), Endpoint)
    world = World(
        namespaces=("shop",),
        services=(headless("shop", sub),),
        slices=(slice_of("shop", sub, told),),
    )
    hosts = {FIELDS["hostname"], "web-0", ANY.partition(".")[0]}
    names = [f"{host}.{sub}.shop.svc.{DOMAIN}" for host in sorted(hosts)]
    found = [name for name in names if rows(world.ask(f"{name}.").answer)]
    assert len(found) < 2
    return found[0] if found else None


OVERRIDE = "override-host"
WINS, FAILS = "fields will have hostnameOverride as hostname", "will fail to be created"
# test/e2e/common/node/pod_hostnameoverride.go, "Override hostname of Pod", under its names.
OVERRIDES: dict[str, tuple[dict[str, Any], str | None]] = {
    "a pod has hostnameOverride field with value that is a valid DNS subdomain.": (
        {"hostnameOverride": "override.example.host"},
        "override.example.host",
    ),
    f"a pod with hostname and hostnameOverride {WINS}": (
        {"hostname": "custom-host", "hostnameOverride": OVERRIDE},
        OVERRIDE,
    ),
    f"a pod with only hostnameOverride {WINS.replace('fields', 'field')}": (
        {"hostnameOverride": OVERRIDE},
        OVERRIDE,
    ),
    f"a pod with subdomain and hostnameOverride {WINS}": (
        {"subdomain": "t", "hostnameOverride": OVERRIDE},
        OVERRIDE,
    ),
    f"a pod with setHostnameAsFQDN and hostnameOverride fields {FAILS}": (
        {"setHostnameAsFQDN": True, "hostnameOverride": OVERRIDE},
        None,
    ),
    f"a pod with hostNetwork and hostnameOverride fields {FAILS}": (
        {"hostNetwork": True, "hostnameOverride": OVERRIDE},
        None,
    ),
    f"a pod with non-RFC1123 subdomain string for hostnameOverride field {FAILS}": (
        {"hostNetwork": False, "hostnameOverride": "Not-RFC1123"},
        None,
    ),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_override_hostname_of_pod(case: str) -> None:
    spec, shown = OVERRIDES[case]
    whole = {"containers": [{"name": "c", "image": "agnhost"}], **spec}
    refused = [error.field.removeprefix("spec.") for error in validate_pod_spec(whole, "spec")]
    assert bool(set(refused) & set(FIELDS)) == (shown is None)
    if shown is not None:
        this = pod(**whole)
        assert (kernel_hostname(this, DOMAIN, NODE), _canonical(this)) == (shown, shown)


def test_a_name_without_room_in_the_kernel_does_not_start() -> None:
    long = pod(hostname="h" * 40, subdomain="s" * 10, setHostnameAsFQDN=True)
    fqdn = f"{'h' * 40}.{'s' * 10}.shop.svc.cluster.local"
    with pytest.raises(ContainerError) as caught:
        kernel_hostname(long, DOMAIN, NODE)
    assert str(caught.value) == (
        f"failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long "
        f"(64 characters is the max, {len(fqdn)} characters requested)"
    )


def test_a_name_of_exactly_64_characters_starts() -> None:
    rest = len(".s.shop.svc.cluster.local")
    fits = pod(hostname="h" * (64 - rest), subdomain="s", setHostnameAsFQDN=True)
    assert len(kernel_hostname(fits, DOMAIN, NODE)) == 64


@pytest.mark.parametrize("field", ["name", "override"])
def test_a_long_name_is_cut_and_never_ends_in_a_dash_or_dot(field: str) -> None:
    long = "a" * 61 + ".-" + "b"
    this = pod(hostnameOverride=long) if field == "override" else pod()
    if field == "name":
        this = msgspec.convert({"metadata": {"name": long, "namespace": "shop"}}, Pod)
    assert hostname(this, DOMAIN) == ("a" * 61, "")
