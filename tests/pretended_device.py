"""A device that no machine has: tests prove with it what a GPU would refuse.

Its tensors say that they live on `pretended:0`, hold their numbers in the CPU's memory, and refuse
to meet the CPU's as CUDA's do. Generators made for it draw the CPU's numbers, so that everything
computed on it equals what the CPU computes. Every operation passes through Python: a fit of few
rows takes some twenty times as long.

It cannot say how fast anything is, what a GPU rounds otherwise, or what its generators draw.

Tests take it from the fixture `pretended`, because torch knows one device of this kind a process.
"""

import contextlib
import traceback
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# this one is experimental: torch may move it, and old versions have none
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

# the host must see these results before it goes on
_WAITED_FOR = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
}
_NO_KERNEL = {
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}
_COPIES = {"aten::_to_copy", "aten::copy_"}
# CUDA takes places from the host, and moves them at every call
_PLACES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Trace:
    """What the device was asked for since `pretended` was entered.

    Attributes
    ----------
    launches : int
        Operations that compute something.
    copies_in, copies_out : int
        Copies from and to the host; places on the host that index the device's tensors are copies.
    synchronisations : int
        Results the host had to wait for, copies to it included.
    places : Counter
        (kind, file, line) to times, of copies and synchronisations, if asked for.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self.launches = self.copies_in = self.copies_out = self.synchronisations = 0
        self.places: Counter = Counter()

    def note(self, kind: str) -> None:
        """Count a copy or a synchronisation against the innermost line below the folder."""
        if kind == "copy in":
            self.copies_in += 1
        else:
            self.synchronisations += 1
            self.copies_out += kind == "copy out"
        if self._folder is None:
            return
        for frame in reversed(traceback.extract_stack()):
            if f"/{self._folder}/" in frame.filename:
                name = frame.filename.rsplit(f"/{self._folder}/", 1)[1]
                self.places[kind, name, frame.lineno] += 1
                return
        self.places[kind, "elsewhere", 0] += 1


_trace = Trace(None)


class PretendedTensor(torch.Tensor):
    """A tensor that says it lives on the device; `held` is the CPU's, with the numbers."""

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    def __repr__(self):
        return f"PretendedTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """A generator that knows which device it was made for and draws the CPU's numbers."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, device="cpu")

    def __init__(self, device="cpu"):
        self.is_pretended = torch.device(device).type == NAME

    @property
    def device(self):
        return DEVICE if self.is_pretended else torch.device("cpu")


def _is_here(value) -> bool:
    return isinstance(value, PretendedTensor)


def _held(value):
    return value.held if _is_here(value) else value


def _lifted(value):
    is_tensor = isinstance(value, torch.Tensor) and not _is_here(value)
    return PretendedTensor(value) if is_tensor else value


def _refuse_the_hosts(func, name, here, there):
    """Raise where CUDA would: of the CPU's tensors it takes single numbers, and these seldom."""
    if not here or not there or name in _COPIES:
        return
    if name in _PLACES:
        _trace.note("copy in")
        return
    takes_numbers = torch.Tag.pointwise in func.tags
    strangers = [tuple(t.shape) for t in there if t.dim() > 0 or not takes_numbers]
    if strangers:
        raise RuntimeError(
            f"{name}: expected all tensors on the same device, found {DEVICE} and, of shapes "
            f"{strangers}, the CPU."
        )


def _run(func, args, kwargs):
    """Run an operation on the numbers held, and give its results the device they would have."""
    name = func._schema.name
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    here = [t for t in tensors if _is_here(t)]
    there = [t for t in tensors if not _is_here(t)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    _refuse_the_hosts(func, name, here, there)
    plain = tree_map(_held, dict(kwargs))
    if asked == NAME:
        plain["device"] = torch.device("cpu")
    result = func(*tree_map(_held, args), **plain)
    stays = asked == NAME or (bool(here) and asked is None)
    if name == "aten::copy_" and here:
        stays = _is_here(args[0])
    if name in _COPIES and stays != bool(here) or name == "aten::copy_" and here and there:
        _trace.note("copy in" if stays else "copy out")
    masked = name in _PLACES and any(t.dtype == torch.bool for t in here[1:])
    if here and (name in _WAITED_FOR or masked):
        _trace.note("synchronisation")
    if not stays:
        return result
    if name not in _NO_KERNEL and not _is_view(func):
        _trace.launches += 1
    return _same_or_lifted(func, args, kwargs, result)


def _is_view(func) -> bool:
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _same_or_lifted(func, args, kwargs, result):
    """Return the tensors that were written to where there are any, else the results, lifted."""
    if func._schema.name.endswith("_") and args and _is_here(args[0]):
        return args[0]
    outs = [kwargs[a.name] for a in func._schema.arguments if a.is_out and a.name in kwargs]
    if outs:
        return outs[0] if len(outs) == 1 else tuple(outs)
    return tree_map(_lifted, result)


class _Operations(TorchDispatchMode):
    """Sees operations that make tensors from none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _indexed(value):
    """Replace the device's name by the device with its number, as CUDA does."""
    is_name = isinstance(value, torch.device | str) and str(value).split(":")[0] == NAME
    return DEVICE if is_name else value


class _Calls(TorchFunctionMode):
    """Sees what never becomes an operation: numbers from the host's memory, and generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = tuple(map(_indexed, args))
        kwargs = {name: _indexed(value) for name, value in (kwargs or {}).items()}
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        is_here = _is_here(first)
        if is_here and func is torch.Tensor.numpy:
            raise TypeError(f"can't convert a tensor on {DEVICE} to numpy; use .cpu() first")
        if is_here and func is torch.Tensor.tolist:
            _trace.note("copy out")
            return first.held.tolist()
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if is_here and func is torch.Tensor.new_tensor and kwargs.get("device") is None:
            options = {"dtype": first.dtype, **kwargs, "device": "cpu"}
            return torch.tensor(*args[1:], **options).to(DEVICE)
        generator = kwargs.get("generator")
        if isinstance(generator, _Generator):
            is_here = is_here or kwargs.get("device") == DEVICE
            if generator.is_pretended != is_here:
                raise RuntimeError(
                    f"{func.__name__}: a generator on {generator.device} for a tensor "
                    f"{'' if is_here else 'not '}on {DEVICE}"
                )
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended(folder: str | None = None):
    """Pretend that the device exists while the block runs; yields a `Trace`.

    Parameters
    ----------
    folder : str or None, default=None
        Copies and synchronisations are located in files below a folder of this name, which takes
        several times as long; None only counts them.
    """
    global _trace
    before = _trace, torch.Generator, torch.__future__.get_swap_module_params_on_conversion()
    n_threads = torch.get_num_threads()
    _trace, torch.Generator = Trace(folder), _Generator
    # else modules keep their parameters and are given other numbers, of another kind here
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.set_num_threads(1)  # other threads, those of backward passes too, know nothing of this
    try:
        with torch.autograd.set_multithreading_enabled(False), _Operations(), _Calls():
            yield _trace
    finally:
        _trace, torch.Generator = before[:2]
        torch.__future__.set_swap_module_params_on_conversion(before[2])
        torch.set_num_threads(n_threads)
