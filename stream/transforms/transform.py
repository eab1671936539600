"""One entry of a feature's `transforms` list in the config: the name of an operation and its parameters."""

from __future__ import annotations

import msgspec

from stream.transforms.hours import GetLocalHour
from stream.transforms.ids import Clamp, Enumerate, FirstX, MapId, NGram, PositiveModulus, SigridHash
from stream.transforms.numbers import BoxCox, Bucketize, Logit, Onehot
from stream.transforms.operation import Operation
from stream.transforms.pairs import Cartesian, ComputeScore, IdListTransform


class Transform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Exactly one operation with its parameters, for example `{sigrid_hash: {buckets: 1000}}`."""

    sigrid_hash: SigridHash | None = None
    positive_modulus: PositiveModulus | None = None
    first_x: FirstX | None = None
    clamp: Clamp | None = None
    bucketize: Bucketize | None = None
    logit: Logit | None = None
    box_cox: BoxCox | None = None
    onehot: Onehot | None = None
    map_id: MapId | None = None
    ngram: NGram | None = None
    cartesian: Cartesian | None = None
    enumerate: Enumerate | None = None
    compute_score: ComputeScore | None = None
    id_list_transform: IdListTransform | None = None
    get_local_hour: GetLocalHour | None = None

    def __post_init__(self) -> None:
        """One and only one."""
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none (an operation without parameters is written NAME: {})"
            raise ValueError(f"expected one operation, got {what}")

    @property
    def name(self) -> str:
        """Name of the operation."""
        return next(name for name in self.__struct_fields__ if getattr(self, name) is not None)

    @property
    def operation(self) -> Operation:
        """The operation."""
        operation: Operation = getattr(self, self.name)
        return operation
