"""Pictures say what the connections say, and nothing lies over anything else."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from podwire.explain.render.fold import Graph, fold, make_graph
from podwire.explain.render.graph import draw_dot, draw_mermaid
from podwire.explain.render.layers import LANE, Layout, Size, lay_out
from podwire.explain.render.svg import draw_svg

SVG = "{http://www.w3.org/2000/svg}"
WORKLOADS = [f"{ns}/{name}[Deployment]" for ns in ("x", "y") for name in ("a", "b", "c")]
OUTSIDE = ["0.0.0.0-9.255.255.255[External]", "10.0.0.0-255.255.255.255[External]"]
ENDS = [
    pair
    for pair in itertools.permutations([*WORKLOADS, *OUTSIDE, "{ingress-controller}"], 2)
    if not set(pair) <= set(OUTSIDE)
]
graphs = st.builds(
    make_graph,
    st.dictionaries(st.sampled_from(ENDS), st.sampled_from(["TCP 80", "All Connections"])),
    st.just(WORKLOADS),
    st.dictionaries(st.sampled_from(ENDS), st.just("#cf222e"), max_size=3),
)


def _everybody(text: str, *, members: int = 3) -> Graph:
    chosen = WORKLOADS[:members]
    return make_graph(dict.fromkeys(itertools.permutations(chosen, 2), text), WORKLOADS)


@given(graphs)
def test_a_picture_unfolds_to_the_graph(graph: Graph) -> None:
    picture = fold(graph)
    assert sorted(label for box in picture.boxes for label in box.labels) == list(graph.labels)
    edges = {
        pair: (box.within, box.colour)
        for box in picture.boxes
        if box.within
        for pair in itertools.permutations(box.labels, 2)
    }
    for arrow in picture.arrows:
        ends = picture.boxes[arrow.source].labels, picture.boxes[arrow.destination].labels
        for source, destination in itertools.product(*ends):
            edges[source, destination] = arrow.text, arrow.colour
            if arrow.both:
                edges[destination, source] = arrow.text, arrow.colour
    assert edges == {p: (text, graph.colours.get(p, "")) for p, text in graph.edges.items()}


def test_who_is_alike_shares_a_box() -> None:
    together, *others = fold(_everybody("TCP 80")).boxes
    assert together.labels == tuple(WORKLOADS[:3])
    assert (together.namespace, together.within) == ("x", "TCP 80")
    assert [box.labels for box in others] == [tuple(WORKLOADS[3:])]
    assert fold(_everybody("TCP 80")).arrows == ()
    # One of them may open something else to one: all three are told apart.
    graph = _everybody("TCP 80")
    edges = {**graph.edges, (WORKLOADS[0], WORKLOADS[1]): "TCP 81"}
    assert len(fold(make_graph(edges, WORKLOADS)).boxes) == 4


def test_boxes_of_several_namespaces_name_them() -> None:
    (box,) = fold(_everybody("All Connections", members=6)).boxes
    assert box.names()[2:4] == ["x/c (Deployment)", "y/a (Deployment)"]
    text = draw_mermaid(_everybody("All Connections", members=6))
    assert '  n0["x/a (Deployment)<br/>' in text
    assert "subgraph" not in text


# --- where things lie ---------------------------------------------------------------------------

_boxes = st.integers(2, 9)


@st.composite
def _layouts(draw: st.DrawFn) -> Layout:
    count = draw(_boxes)
    pairs = list(itertools.permutations(range(count), 2))
    arrows = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=14))
    heights = draw(st.lists(st.integers(20, 120), min_size=count, max_size=count))
    return lay_out([Size(100, height) for height in heights], arrows)


@given(_layouts())
def test_nothing_lies_over_anything(layout: Layout) -> None:
    for column in layout.columns:
        for above, below in itertools.pairwise(column):
            assert above.y + above.height / 2 <= below.top + 1e-6
        assert all(item.top >= -1e-6 for item in column)
        for item in column:
            for pieces in ([p.y2 for p in item.before], [p.y1 for p in item.after]):
                ends = sorted(pieces)
                assert all(b - a >= LANE - 1e-6 for a, b in itertools.pairwise(ends))
                assert all(item.top <= y <= item.top + item.height for y in ends)


@given(_layouts())
def test_lines_lead_from_box_to_box(layout: Layout) -> None:
    for line, pieces in layout.lines.items():
        assert pieces[0].left.box == line.left
        assert pieces[-1].right.box == line.right
        for one, next_ in itertools.pairwise(pieces):
            assert one.right is next_.left
            assert one.right.box is None
            assert abs(one.y2 - next_.y1) < 1e-6


def _texts(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}text"))


@given(graphs)
def test_every_text_is_on_the_page(graph: Graph) -> None:
    svg = draw_svg(graph)
    root = ET.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for text in _texts(svg):
        x, long = float(text.attrib["x"]), len(text.text or "") * 6.0
        long *= float(text.attrib["font-size"]) / 12
        left = {"start": x, "middle": x - long / 2, "end": x - long}[text.attrib["text-anchor"]]
        assert left >= 0
        assert left + long <= width
        assert 0 < float(text.attrib["y"]) <= height


def test_arrows_and_their_words() -> None:
    edges = {
        (WORKLOADS[0], WORKLOADS[1]): "TCP 80",
        (WORKLOADS[1], WORKLOADS[0]): "TCP 81",
        (WORKLOADS[1], WORKLOADS[2]): "UDP 53",
        (WORKLOADS[2], WORKLOADS[1]): "UDP 53",
        (OUTSIDE[0], WORKLOADS[0]): "TCP 443",
        (WORKLOADS[0], "0.0.0.0-255.255.255.255[External]"): "All Connections",
    }
    svg = draw_svg(make_graph(edges))
    words = [text.text for text in _texts(svg)]
    assert {"TCP 80", "TCP 81", "UDP 53"} <= set(words)
    assert "from 0.0.0.0-9.255.255.255: TCP 443" in words
    assert "to outside: All Connections" in words
    titles = [title.text for title in ET.fromstring(svg).iter(f"{SVG}title")]
    assert "x/a[Deployment] => x/b[Deployment] : TCP 80" in titles
    assert any(" <=> " in str(title) for title in titles)


def test_who_has_no_connections_is_there() -> None:
    words = [text.text for text in _texts(draw_svg(make_graph({}, WORKLOADS[:2])))]
    assert words == ["x", "a (Deployment)", "b (Deployment)", "no connections"]


def test_ranges_that_are_alike_have_a_letter() -> None:
    edges = {(label, WORKLOADS[0]): "TCP 443" for label in OUTSIDE}
    words = [text.text for text in _texts(draw_svg(make_graph(edges)))]
    assert "from outside A: TCP 443" in words
    assert "outside A: 0.0.0.0-9.255.255.255, 10.0.0.0-255.255.255.255" in words


def test_many_arrows_become_a_table() -> None:
    labels = [f"x/w{i:02}[Deployment]" for i in range(9)]
    edges = {
        pair: "All Connections" if i % 5 == 0 else f"TCP {i}"
        for i, pair in enumerate(itertools.permutations(labels, 2))
    }
    svg = draw_svg(make_graph(edges))
    titles = {title.text for title in ET.fromstring(svg).iter(f"{SVG}title")}
    assert {f"{a} => {b} : {text}" for (a, b), text in edges.items()} <= titles
    long = {pair: f"TCP {n},UDP 53,SCTP 9000-9100" for n, pair in enumerate(edges)}
    words = [text.text for text in _texts(draw_svg(make_graph(long)))]
    assert words.count("ports 1") == 1
    assert "ports 1: TCP 0, UDP 53, SCTP 9000-9100" in words


@given(graphs)
def test_mermaid_and_dot_are_well_formed(graph: Graph) -> None:
    """By the grammar of what is used of them."""
    mermaid = draw_mermaid(graph).splitlines()
    assert mermaid[0] == "flowchart LR"
    node, text = r"n\d+", r'"[^"]*"'
    forms = (
        rf"subgraph s\d+\[{text}\]",
        "end",
        rf"{node}\[{text}\]",
        rf"{node} <?-->\|{text}\| {node}",
        r"linkStyle \d+ stroke:#[0-9a-f]{6}",
    )
    for line in mermaid[1:]:
        assert any(re.fullmatch(form, line.strip()) for form in forms), line
    assert draw_dot(graph).count("{") == draw_dot(graph).count("}")


def test_words_of_other_people_are_quoted() -> None:
    label = 'x/a"]<b>[Pod]'
    graph = make_graph({(label, "x/b[Pod]"): "TCP 80"})
    assert "#quot;" in draw_mermaid(graph)
    assert '\\"' in draw_dot(graph)
    ET.fromstring(draw_svg(graph))
