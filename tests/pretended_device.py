"""A device that no machine has: tests prove with it what a GPU would refuse.

Its tensors say that they live on `pretended:0`, hold their numbers in the CPU's memory, and refuse
to meet the CPU's as CUDA's do. Generators made for it draw the CPU's numbers, so that everything
computed on it equals what the CPU computes. Every operation passes through Python: a fit of few
rows takes some twenty times as long.

It cannot say how fast anything is, what a GPU rounds otherwise, or what its generators draw.

Tests take it from the fixture `pretended`, in processes of their own: `test_pretended_device.py`
starts these, and `SKLVEBM_PRETENDED=1 pytest tests/test_devices.py` is one.
"""

import contextlib
import functools
import traceback
from collections import Counter
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Taped(NamedTuple):
    """An operation as it was run, with the tensors that hold the numbers."""

    func: object
    args: tuple
    kwargs: dict
    result: object

    def signature(self):
        """Return its name and the shapes of its tensors."""
        shapes = [tuple(t.shape) for t in _tensors([*self.args, *self.kwargs.values()])]
        return self.func._schema.name, shapes


def replay(tape):
    """Run taped operations again on the tensors they had; results go where they went before.

    As a CUDA graph does: no code of the recorded function is run.
    """
    for func, args, kwargs, result in tape:
        again = func(*args, **kwargs)
        if any(r.alias_info is not None for r in func._schema.returns):
            continue  # a view of what has been renewed, or changed in place
        for old, new in zip(_tensors([result]), _tensors([again]), strict=True):
            if old is not new:
                old.copy_(new)


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
    tape : list of Taped or None
        Where operations are recorded; None records nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self.launches = self.copies_in = self.copies_out = self.synchronisations = 0
        self.places: Counter = Counter()
        self.tape: list[Taped] | None = None

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


def _tensors(values) -> list:
    """Return the tensors among arguments, those in lists included."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _held(value):
    if isinstance(value, list | tuple):
        return type(value)(map(_held, value))
    return value.held if _is_here(value) else value


def _lifted(value):
    if isinstance(value, list | tuple):
        return type(value)(map(_lifted, value))
    is_tensor = isinstance(value, torch.Tensor) and not _is_here(value)
    return PretendedTensor(value) if is_tensor else value


class _Kind(NamedTuple):
    """What matters of an operation; asking its schema is slow."""

    name: str
    takes_numbers: bool  # of the host, beside tensors of the device
    launches: bool
    in_place: bool
    reshapes: bool  # in place, as `squeeze_` does
    outs: tuple[str, ...]


@functools.cache
def _kind_of(func) -> _Kind:
    schema = func._schema
    name, aliases = schema.name, [r.alias_info for r in schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return _Kind(
        name,
        torch.Tag.pointwise in func.tags,
        not is_view and name not in _NO_KERNEL,
        name.endswith("_"),
        torch.Tag.inplace_view in func.tags,
        tuple(argument.name for argument in schema.arguments if argument.is_out),
    )


def _refuse_the_hosts(kind, there):
    """Raise where CUDA would: of the CPU's tensors it takes single numbers, and these seldom."""
    if kind.name in _COPIES:
        return
    if kind.name in _PLACES:
        _trace.note("copy in")
        return
    strangers = [tuple(t.shape) for t in there if t.dim() > 0 or not kind.takes_numbers]
    if strangers:
        raise RuntimeError(
            f"{kind.name}: expected all tensors on the same device, found {DEVICE} and, of shapes "
            f"{strangers}, the CPU."
        )


def _run(func, args, kwargs):
    """Run an operation on the numbers held, and give its results the device they would have."""
    tensors = _tensors([*args, *kwargs.values()])
    here = [t for t in tensors if _is_here(t)]
    there = [t for t in tensors if not _is_here(t)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    if not here and asked != NAME:
        return func(*args, **kwargs)
    kind = _kind_of(func)
    if here and there:
        _refuse_the_hosts(kind, there)
    plain = {key: _held(value) for key, value in kwargs.items()}
    if asked == NAME:
        plain["device"] = torch.device("cpu")
    held = tuple(map(_held, args))
    result = func(*held, **plain)
    if _trace.tape is not None:
        _trace.tape.append(Taped(func, held, plain, result))
    stays = asked == NAME or asked is None
    if kind.name == "aten::copy_":
        stays = _is_here(args[0])
    if kind.name in _COPIES and (there or not stays):
        _trace.note("copy in" if stays else "copy out")
    masked = kind.name in _PLACES and any(t.dtype == torch.bool for t in here[1:])
    if here and (kind.name in _WAITED_FOR or masked):
        _trace.note("synchronisation")
    if not stays:
        return result
    _trace.launches += kind.launches
    if kind.reshapes:  # of what the tensor says about itself, only torch can change the shape
        with no_dispatch():
            func(*args, **kwargs)
    if kind.in_place and args and _is_here(args[0]):
        return args[0]
    outs = [kwargs[name] for name in kind.outs if name in kwargs]
    if outs:
        return outs[0] if len(outs) == 1 else tuple(outs)
    return _lifted(result)


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
        if is_here and func is torch.Tensor.__deepcopy__:  # torch would copy memory of a view's
            memo = args[1]
            if id(first) not in memo:
                memo[id(first)] = first.detach().clone().requires_grad_(first.requires_grad)
            return memo[id(first)]
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
