"""Talking to a Kubernetes API, embedded or real, with the same code.

`Api` is a thin HTTP client, `Informer` a list+watch kept in memory as typed views, `WorkQueue` the
usual keyed queue with retries, `EventRecorder` writes Events. Controllers and agents read
informers and write patches; they never list on a hot path.
"""

from podwire.client.events import EventRecorder
from podwire.client.http import Api, Endpoint, PatchType
from podwire.client.informer import Change, Informer
from podwire.client.queue import WorkQueue

__all__ = ["Api", "Change", "Endpoint", "EventRecorder", "Informer", "PatchType", "WorkQueue"]
