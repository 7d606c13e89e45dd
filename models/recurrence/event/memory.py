"""What a forward writes: the states and values of each update, and the order in which updates came.

Letters: B batch, T steps, H hidden, L layers, K state vectors of a layer, E updates in all rows, S = B + E segments, n
rows of a batch of updates, X and Y as in `Trace`.
"""

import torch
from torch import Tensor

from skipreel.models.recurrence.event.active_rows import ActiveRows
from skipreel.models.recurrence.event.cells import Cell, Layer, Vectors
from skipreel.models.recurrence.interface import ForwardInputs


def initial_vectors(inputs: ForwardInputs) -> list[Vectors]:
    """What each layer starts with, (B, H) each."""
    h, c = inputs.state.h, inputs.state.c
    return [(layer,) for layer in h] if c is None else list(zip(h, c, strict=True))


class Memory:
    """Rows for every segment where a backward will read them; otherwise one for each row, overwritten by each update.

    With `save`: states (L, K, S or more, H), and saved (L, E or more, X). In any case top (S or more, H), the top
    layer's h. Every vector is a matrix of its own, because operators are fastest on contiguous rows.
    """

    def __init__(self, inputs: ForwardInputs, cell: Cell, layers: list[Layer], *, save: bool) -> None:
        num_steps, batch_size, _ = inputs.x.shape
        num_layers, _, size = inputs.state.h.shape
        norm = layers[0].norm
        width = cell.saved_blocks * size + (0 if norm is None else norm.width)
        updates = num_steps * batch_size
        # As if no step were skipped: memory that is never touched costs nothing.
        states, saved = (updates + batch_size, updates) if save else (batch_size, batch_size)
        new = inputs.state.h.new_empty
        self.states = new(num_layers, cell.vectors, states, size)
        self.saved = new(num_layers, saved, width)
        self.top = self.states[-1, 0] if save else new(updates + batch_size, size)
        self._save = save
        self._batch_size = batch_size
        self._vectors = [layer.unbind(0) for layer in self.states.unbind(0)]
        self._vectors[-1] = (self.top, *self._vectors[-1][1:])
        self._saved = self.saved.unbind(0)
        for vectors, initial in zip(self._vectors, initial_vectors(inputs), strict=True):
            for vector, start in zip(vectors, initial, strict=True):
                vector[:batch_size] = start

    def batch(self, start: int, count: int) -> tuple[list[Vectors], list[Tensor]]:
        """States (n, H) and saved values (n, X) of the batch of which `start` is the first segment."""
        if self._save:
            rows = slice(start, start + count)
            update = start - self._batch_size
            planes = [tuple(vector[rows] for vector in vectors) for vectors in self._vectors]
            return planes, [values[update : update + count] for values in self._saved]
        planes = [tuple(vector[:count] for vector in vectors) for vectors in self._vectors]
        planes[-1] = (self.top[start : start + count], *planes[-1][1:])
        return planes, [values[:count] for values in self._saved]


class Held:
    """The recurrent products of states that are held, in the order in which they are made."""

    def __init__(self, inputs: ForwardInputs, cell: Cell, layers: list[Layer]) -> None:
        num_steps, batch_size, _ = inputs.x.shape
        size = inputs.state.h.shape[2]
        self._cell = cell
        self._layers = layers
        self._values = inputs.state.h.new_empty(len(layers), (num_steps + 1) * batch_size, cell.held_blocks * size)
        self._segments: list[Tensor] = []
        self._count = 0

    def make(self, states: list[Vectors], segment: Tensor) -> list[Tensor]:
        """The products of the states (n, H) of `segment` (n,): (n, Y) for each layer."""
        start, self._count = self._count, self._count + segment.shape[0]
        made = [values[start : self._count] for values in self._values.unbind(0)]
        for layer, (h, *_), out in zip(self._layers, states, made, strict=True):
            self._cell.hold(h, layer, out)
        self._segments.append(segment)
        return made

    def finish(self, places: Tensor) -> Tensor:
        """All products, (M, L, Y). Writes the row of each segment into places (S,), −1 if it has none."""
        places.fill_(-1)
        segments = torch.cat(self._segments)
        places[segments] = torch.arange(self._count, device=places.device)
        return self._values[:, : self._count].transpose(0, 1)


class Updates:
    """The updates in the order in which they were made."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._columns: list[tuple[Tensor, Tensor, Tensor]] = []
        self._prob: list[Tensor] = []
        self.count = 0

    def add(self, active: ActiveRows, prob: Tensor) -> None:
        self._columns.append((active.row, active.step, active.segment))
        self._prob.append(prob)
        self.count += len(active)

    def index(self, device: torch.device) -> Tensor:
        """(S, 4) as in `Trace`, with −1 for every row of `held`."""
        index = torch.full((self._batch_size + self.count, 4), -1, device=device)
        index[: self._batch_size, 0] = torch.arange(self._batch_size, device=device)
        for column, values in enumerate(zip(*self._columns, strict=True)):
            torch.cat(values, out=index[self._batch_size :, column])
        return index

    def prob(self, initial: Tensor) -> Tensor:
        """(S,), `initial` (B,) first."""
        return torch.cat([initial, *self._prob])
