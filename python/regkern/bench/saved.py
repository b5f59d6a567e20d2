"""The memory that a call keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def saved_for_backward(call: Callable[[], Any], inputs: Iterable[torch.Tensor]) -> int:
    """Bytes that ``call`` saves for its backward, beyond ``inputs``, which are alive anyway.

    Each storage counts once and whole, however many views of it were saved.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Holding the storage keeps its address from being given to a later one.
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    size = sum(storage.nbytes() for storage in storages.values())
    del result
    return size
