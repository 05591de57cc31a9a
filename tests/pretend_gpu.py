"""A GPU for machines that have none: the CPU computes, and what lies on the GPU is remembered.

It finds the mistakes that otherwise only a GPU shows: tensors of two devices in one operation, an
array asked of a tensor on the GPU, a CPU's generator for it. Of CUDA's own kernels it says nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "Pretend GPU"
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = ("_local_scalar_dense", "nonzero", "masked_select")  # what comes of them the CPU must know
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # by indices on the CPU too
FROM_ELSEWHERE = (torch.tensor, torch.as_tensor, torch.asarray)  # which copy what they are given


class OnGpu:
    """The storages that are on the GPU: a view or a parameter is where its storage is."""

    def __init__(self) -> None:
        # Weak references, which keep an address from being given to another storage.
        self.storages: set[StorageWeakRef] = set()
        self.new = False  # whether what is made of nothing, inside a function, belongs there
        self.waits = 0  # how often the CPU waited for the GPU

    def __contains__(self, x: Tensor) -> bool:
        return StorageWeakRef(x.untyped_storage()) in self.storages

    def put(self, x: Tensor, on_gpu: bool) -> None:
        change = self.storages.add if on_gpu else self.storages.discard
        change(StorageWeakRef(x.untyped_storage()))

    def moved(self, x: Tensor, on_gpu: bool) -> Tensor:
        if (x in self) == on_gpu:
            return x
        self.waits += 1
        copy = x.clone()
        self.put(copy, on_gpu)
        return copy


ON_GPU = OnGpu()  # also of tensors that are kept from one test to the next


class Operations(TorchDispatchMode):
    """Refuse tensors of two devices, and leave what is made where it is made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [x in ON_GPU for x in given]
        if name == "copy_":  # from one device to the other
            ON_GPU.waits += len(set(there)) > 1
            return func(*args, **(kwargs or {}))
        # A number on the CPU goes with any tensor.
        apart = any(there) and not all(on for on, x in zip(there, given, strict=True) if x.ndim)
        if apart and not (name in INDEXED and there[0]):
            places = ", ".join(str(GPU if on else CPU) for on in there)
            raise RuntimeError(f"Expected all tensors to be on the same device, got {places}")
        made = func(*args, **(kwargs or {}))
        masks = name in INDEXED and any(x.dtype == torch.bool for x in given[1:])
        ON_GPU.waits += any(there) and (masks or name in WAITS)
        if any(there) or (not given and ON_GPU.new):
            for x in tree_leaves(made):
                if isinstance(x, Tensor):
                    ON_GPU.put(x, True)
        return made


class Functions(TorchFunctionMode):
    """Put tensors where they are asked to be, and tell where they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return GPU if args[0] in ON_GPU else CPU
        if func in (Tensor.numpy, Tensor.__array__) and args[0] in ON_GPU:
            raise TypeError(f"can't convert {GPU} device type tensor to numpy")
        if func == Tensor.cpu:
            return ON_GPU.moved(args[0], False)
        if func == Tensor.to:
            return self.to(*args, **kwargs)
        if kwargs.get("device") is None:
            given = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            ON_GPU.new = any(x in ON_GPU for x in given)
            try:
                return func(*args, **kwargs)
            finally:
                ON_GPU.new = False
        on_gpu = torch.device(kwargs["device"]).type == GPU.type
        if on_gpu and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a '{GPU}' device type for generator but found '{CPU}'")
        made = func(*args, **{**kwargs, "device": CPU})
        if made in ON_GPU or func in FROM_ELSEWHERE:
            return ON_GPU.moved(made, on_gpu)
        ON_GPU.put(made, on_gpu)
        return made

    def to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):  # the type and the device of another
            return ON_GPU.moved(x.to(args[0].dtype), args[0] in ON_GPU)
        device, dtype, _, form = torch._C._nn._parse_to(*args, **kwargs)
        if form is not None:
            x = x.contiguous(memory_format=form)
        x = x if dtype is None else x.to(dtype)
        return x if device is None else ON_GPU.moved(x, device.type == GPU.type)


@contextmanager
def pretend_gpu() -> Iterator[OnGpu]:
    """Let PyTorch find one GPU, with autocast as on a CPU."""
    autocast = torch.autocast

    def on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast(CPU.type, *args, **kwargs)

    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (7, 0),
        "is_bf16_supported": True,
        "mem_get_info": (1 << 40, 1 << 40),
        "set_device": None,
        "empty_cache": None,
    }
    with pytest.MonkeyPatch.context() as patch, Operations(), Functions():
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patch.setattr(torch, "autocast", on_cpu)
        yield ON_GPU
