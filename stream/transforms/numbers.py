"""Operations on dense columns, and between them and ids.

Sources: DPP's table of operations (arXiv 2108.09373); Bucketize as TorchArrow defines it, Logit and BoxCox with the
limits of Caffe2's operators. NaN means missing: it stays NaN, and has no bucket.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from dedup_cache import Jagged
from dedup_cache.arrays import AnyArray, Float32
from stream.transforms.ids import FLOAT32_MAX
from stream.transforms.operation import Ids, Kind, Numbers, Operation

MIN_BOX_COX = 1e-6
MAX_COLUMNS = 4096


class Bucketize(Operation, frozen=True):
    """The number of `borders` below a number, as an id: bucket i holds (borders[i-1], borders[i]].

    A border may stand twice in a row: the value itself then has the bucket between the two, and what is below it the
    one before. Infinities fall into the outer buckets, NaN into none. Borders are compared in 32 bits, as the numbers
    are. Columns of one feature become one list, in their order.
    """

    takes: ClassVar = (Numbers,)
    borders: tuple[float, ...]

    def __post_init__(self) -> None:
        """Sorted, at most two alike, and different numbers different in 32 bits too."""
        if not self.borders:
            raise ValueError("borders is empty")
        for i, border in enumerate(self.borders):
            if not abs(border) <= FLOAT32_MAX:
                raise ValueError(f"borders[{i}] must be a 32-bit number, got {border}")
            if i and border < self.borders[i - 1]:
                raise ValueError(f"borders must ascend, but borders[{i}] {border} is below {self.borders[i - 1]}")
            if i and border != self.borders[i - 1] and np.float32(border) == np.float32(self.borders[i - 1]):
                raise ValueError(f"borders[{i}] {border} is the same 32-bit number as {self.borders[i - 1]}")
            if i > 1 and border == self.borders[i - 2]:
                raise ValueError(f"a border may stand twice, not three times: borders[{i}] {border}")

    def kind(self, numbers: Numbers) -> Kind:
        """One id a column."""
        return Ids(numbers.width, len(self.borders) + 1)

    def run(self, column: Float32) -> Jagged:
        """Compact lists."""
        borders = np.array(self.borders, np.float32)
        present = ~np.isnan(column)
        numbers = column[present]
        below = np.searchsorted(borders, numbers)
        is_pair = np.searchsorted(borders, numbers, side="right") - below == 2
        return Jagged.from_lengths((below + is_pair).astype(np.int64), present.sum(axis=1, dtype=np.int32))


class Logit(Operation, frozen=True):
    """log(x / (1 - x)), x first limited to [eps, 1 - eps], so that 0, 1 and what is outside stay finite."""

    takes: ClassVar = (Numbers,)
    merges: ClassVar = False
    eps: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] = 1e-6

    def kind(self, numbers: Numbers) -> Kind:
        """As many columns."""
        return numbers

    def run(self, column: Float32) -> Float32:
        """Computed in 64 bits."""
        x = np.clip(column.astype(np.float64), self.eps, 1.0 - self.eps)
        return np.log(x / (1.0 - x)).astype(np.float32)


class BoxCox(Operation, frozen=True):
    """(y^lambda - 1) / lambda with y = max(x + shift, 1e-6); log(y) where `lambda` is 0 (Box and Cox, 1964).

    The limit under y keeps zero and negative numbers finite; what exceeds 32 bits becomes the greatest number.
    """

    takes: ClassVar = (Numbers,)
    merges: ClassVar = False
    lambda_: Annotated[float, msgspec.Meta(ge=-100, le=100)] = msgspec.field(name="lambda")
    shift: Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] = 0.0

    def kind(self, numbers: Numbers) -> Kind:
        """As many columns."""
        return numbers

    def run(self, column: Float32) -> Float32:
        """Computed in 64 bits."""
        logs = np.log(np.maximum(column.astype(np.float64) + self.shift, MIN_BOX_COX))
        if self.lambda_ == 0:
            return logs.astype(np.float32)
        with np.errstate(over="ignore"):
            powers = np.expm1(self.lambda_ * logs) / self.lambda_
        return np.clip(powers, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


class Onehot(Operation, frozen=True):
    """`size` dense columns: column i is 1 where the list holds the id i, else 0; other ids are left out (DPP)."""

    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_COLUMNS)]

    def kind(self, _ids: Ids) -> Kind:
        """One column an id."""
        return Numbers(self.size)

    def run(self, column: Jagged) -> Float32:
        """An id that stands twice counts once; no ids, all zeros."""
        values, lengths = column.compact()
        rows: AnyArray = np.repeat(np.arange(column.num_rows), lengths)
        known = (values >= 0) & (values < self.size)
        columns = np.zeros((column.num_rows, self.size), np.float32)
        columns[rows[known], values[known]] = 1.0
        return columns
