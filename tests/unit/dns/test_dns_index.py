"""The index against one made anew: slices that change in every way, told of or not."""

from __future__ import annotations

from collections.abc import Sequence

from dns_worlds import cluster_ip, endpoint, meta, slice_of
from hypothesis import given
from hypothesis import strategies as st

from podwire.dns.index import Index
from podwire.dns.names import reverse_wire
from podwire.dns.views import Endpoint, Namespace, Slice
from podwire.objects.meta import Key

ADDRESSES = ("10.1.0.1", "10.1.0.2", "10.1.0.3", "fd00::1", "fd00:0::1", "no address")
SERVICES = ("web", "db")

endpoints = st.builds(
    endpoint,
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    host=st.sampled_from((None, "a", "b")),
    ready=st.sampled_from((None, True, False)),
    pod=st.sampled_from(("", "p-1", "p-2")),
)
contents = st.lists(endpoints, max_size=5)
# Of two slices: which, of which Service, and what is in it; None deletes it.
steps = st.lists(
    st.tuples(st.sampled_from("xy"), st.sampled_from(SERVICES), st.none() | contents), max_size=8
)

View = tuple[list[object], ...]


def new_index() -> Index:
    index = Index()
    index.set_namespace(Key("", "shop"), Namespace(metadata=meta("shop")))
    for number, name in enumerate(SERVICES):
        index.set_service(Key("shop", name), cluster_ip("shop", name, f"10.96.0.{number + 1}"))
    return index


def slice_named(suffix: str, service: str, inside: Sequence[Endpoint]) -> Slice:
    made = slice_of("shop", service, *inside, suffix=suffix)
    metadata = meta(f"slice-{suffix}", "shop", dict(made.metadata.labels))
    return Slice(metadata=metadata, endpoints=made.endpoints, ports=made.ports)


def seen(index: Index) -> View:
    """All it can be asked about endpoints."""
    return (
        *(sorted(index.targets_at(address)) for address in ADDRESSES),
        *(list(index.targets(Key("shop", name))) for name in SERVICES),
        *(sorted(index.hosts(Key("shop", name)).items()) for name in SERVICES),
    )


@given(steps, st.booleans())
def test_as_if_made_anew_after_every_change(
    script: list[tuple[str, str, list[Endpoint] | None]], telling: bool
) -> None:
    index = new_index()
    index.telling = telling
    there: dict[Key, Slice] = {}
    for suffix, service, inside in script:
        key = Key("shop", f"slice-{suffix}")
        new = None if inside is None else slice_named(suffix, service, inside)
        before = {address: set(index.targets_at(address)) for address in ADDRESSES}
        changes = index.set_slice(key, new)
        there.pop(key, None)
        if new is not None:
            there[key] = new
        fresh = new_index()
        for each in there.values():
            fresh.set_slice(each.key, each)
        assert seen(index) == seen(fresh)
        if not telling:
            assert not changes
            continue
        for address in ADDRESSES[:4]:
            if set(index.targets_at(address)) != before[address]:
                assert changes.covers(reverse_wire(address))
    for key in list(there):
        index.set_slice(key, None)
    assert seen(index) == seen(new_index())
    assert not index._by_address, "nothing is left behind"


def test_one_endpoint_of_a_hundred_names_one_address() -> None:
    inside = [endpoint(f"10.1.0.{number}") for number in range(100)]
    index = new_index()
    index.set_slice(Key("shop", "slice-x"), slice_named("x", "web", inside))
    inside[50] = endpoint("10.1.0.50", ready=False)
    changes = index.set_slice(Key("shop", "slice-x"), slice_named("x", "web", inside))
    reverse = {root for root in changes.subtrees if root.endswith(b"\x04arpa\x00")}
    assert reverse == {reverse_wire("10.1.0.50")}
