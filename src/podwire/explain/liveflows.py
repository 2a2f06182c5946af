"""The flow logs of all nodes as one document, and what they are told to note."""

from __future__ import annotations

import asyncio

from podwire.client import Api
from podwire.explain.nodes import ask_nodes, ready_nodes
from podwire.explain.staticworld import Origins
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.policy.flowdocument import FlowLogDocument, merge_documents
from podwire.policy.model import OBSERVE_ANNOTATION


async def read_flows(api: Api) -> FlowLogDocument:
    """A node that cannot be asked is named in the document."""
    answers = await ask_nodes(api, await ready_nodes(api), "policies/flows", FlowLogDocument)
    silent = {node: answer for node, answer in answers.items() if isinstance(answer, str)}
    told = [answer for answer in answers.values() if isinstance(answer, FlowLogDocument)]
    return merge_documents(told, silent)


def find_places(document: FlowLogDocument, origins: Origins) -> dict[str, str]:
    """`file:line` of the policies and rules the records name, of those the manifests have."""
    named = {name for record in document.records for name in record.named()}
    found = {name: origins.find(name) for name in sorted(named)}
    return {name: place for name, place in found.items() if place}


async def observe(api: Api, on: bool) -> list[str]:
    """Have every node note connections that pass, or no more; the nodes that were told."""
    nodes: list[Node] = list((await api.list(kinds.NODE))[0])
    change = {"metadata": {"annotations": {OBSERVE_ANNOTATION: "true" if on else None}}}
    names = [node.metadata.name for node in nodes]
    await asyncio.gather(*(api.patch(kinds.NODE, name, change) for name in names))
    return names
