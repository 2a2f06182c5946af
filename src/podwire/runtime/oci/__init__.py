"""OCI containers in a lab: images from archives, and crun or runc to run them.

podwire image load FILE -> ImageStore -> layer directories
ContainerSpec -> OciRuntime -> pause (shared namespaces), shim (one per container) -> crun | runc
"""

from podwire.runtime.oci.reference import Reference, parse_reference
from podwire.runtime.oci.runtime import OciRuntime
from podwire.runtime.oci.store import ImageStore

__all__ = ["ImageStore", "OciRuntime", "Reference", "parse_reference"]
