"""Some scenes of a batch: taken out of nested NamedTuples, and put back. Masks have the batch axes [*]."""

from typing import TypeVar

from torch import Tensor

from sensing.containers import map_tensors

T = TypeVar("T")


def chosen(whole: T, where: Tensor) -> T:
    """The scenes of a mask, along one axis."""
    return map_tensors(whole, lambda tensor: tensor[where])


def put(whole: T, where: Tensor, part: T) -> T:
    """The whole with the scenes of a mask replaced."""
    flat: list[Tensor] = []
    map_tensors(part, lambda tensor: flat.append(tensor) or tensor)  # type: ignore[func-returns-value]
    parts = iter(flat)

    def mixed(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[where] = next(parts)
        return result

    return map_tensors(whole, mixed)


def joined(where: Tensor, part: T, others: T) -> T:
    """The whole of which `part` are the scenes of a mask and `others` the rest."""
    empty = map_tensors(part, lambda tensor: tensor.new_empty(where.shape + tensor.shape[1:]))
    return put(put(empty, where, part), ~where, others)
