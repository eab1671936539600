"""Feature transforms: the operations of DPP's table (arXiv 2108.09373), on the distinct rows of each group.

The config declares them (`features[].transforms`, `derived`), `plan` says what comes out and refuses what does not fit,
`Transforms` runs them, in the worker after deduplication and in the server on a request, by the same code.
"""

from stream.transforms.apply import TRANSFORMS_VERSION, Transforms
from stream.transforms.operation import Ids, Kind, Numbers
from stream.transforms.plan import Planned, TransformError, in_batch, plan
from stream.transforms.transform import Transform

__all__ = [
    "TRANSFORMS_VERSION",
    "Ids",
    "Kind",
    "Numbers",
    "Planned",
    "Transform",
    "TransformError",
    "Transforms",
    "in_batch",
    "plan",
]
