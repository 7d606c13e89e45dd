"""The rows that still run while a forward goes from update to update, and where each of them is.

Letters: B batch, n rows that have an update before them.
"""

import torch
from torch import Tensor


class ActiveRows:
    """The rows that still run, in ascending order, all (n,) int64.

    row; step, that of the row's next update; end, its number of valid steps; segment, the one that it is in until then;
    since, the step that began the segment.
    """

    def __init__(self, step: Tensor, end: Tensor) -> None:
        self.row = torch.arange(step.shape[0], device=step.device)
        self.step = step
        self.end = end
        self.segment = self.row
        self.since = torch.full_like(step, -1)
        self._batch_size = step.shape[0]
        self._first_end = int(end.min())
        self._step_bounds, self._since_bounds = _bounds(step), (-1, -1)

    def __len__(self) -> int:
        return self.row.shape[0]

    @property
    def common_step(self) -> int | None:
        """The step at which all B rows update together, if they do."""
        lowest, highest = self._step_bounds
        return lowest if lowest == highest and len(self) == self._batch_size else None

    @property
    def any_waited(self) -> bool:
        """Whether any row skipped a step on its way to its update."""
        (lowest, highest), since = self._step_bounds, self._since_bounds
        if lowest == highest and since[0] == since[1]:
            return highest - since[0] > 1
        return bool((self.step - self.since > 1).any())

    def going_on(self) -> Tensor | None:
        """Places of the rows whose update is before their end; None if all are."""
        if self._step_bounds[1] < self._first_end:
            return None
        places = (self.step < self.end).nonzero().flatten()
        return None if places.shape[0] == len(self) else places

    def keep(self, places: Tensor) -> None:
        self.row = self.row.index_select(0, places)
        self.step = self.step.index_select(0, places)
        self.end = self.end.index_select(0, places)
        self.segment = self.segment.index_select(0, places)
        self.since = self.since.index_select(0, places)
        if len(self):
            self._first_end = int(self.end.min())
            self._step_bounds, self._since_bounds = _bounds(self.step), _bounds(self.since)

    def move(self, step: Tensor, segment: Tensor) -> None:
        """All rows have updated, and are in `segment` until `step`."""
        self.since, self.step, self.segment = self.step, step, segment
        self._since_bounds, self._step_bounds = self._step_bounds, _bounds(step)


def _bounds(step: Tensor) -> tuple[int, int]:
    lowest, highest = torch.aminmax(step)
    return int(lowest), int(highest)
