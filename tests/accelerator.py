"""A pretend accelerator: tensors that say they lie on another device, and refuse what CUDA refuses.

There is no GPU where these tests run. A tensor of the pretended device computes on the CPU with the tensor that it holds,
but an operation on tensors of two devices, a CPU tensor that is indexed by one of the device, a generator of the wrong
device and ``numpy()`` of a device tensor raise, as on CUDA; and it is counted where the host would wait for the device.
Not covered: kernels that CUDA has not, and memory formats.
"""

import linecache
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ssl_weighting.terms import Distance

DEVICE = torch.device("meta")
"""A device type that torch knows, and that no code of the project asks for."""
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
TAKES_CPU_SCALARS = {aten.where.self, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
READS_BACK = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
}
"""Operations whose result the host must know: a value, or how many there are."""

FEWER_BITS = {"linear", "conv2d", "matmul", "mm", "bmm", "baddbmm", "scaled_dot_product_attention"}
MORE_BITS = {"softmax", "log_softmax", "nll_loss", "cross_entropy", "layer_norm", "exp", "log", "pow", "sum"}
"""What autocast computes in bfloat16, and in float32."""


class OtherDeviceError(RuntimeError):
    """What CUDA would refuse."""


@dataclass
class Waits:
    """Where the host waited for the device: by line of the project's code, how often."""

    lines: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.lines.total()

    def note(self) -> None:
        self.lines[_line()] += 1


waits = Waits()


class OnDevice(torch.Tensor):
    """A tensor of the pretended device."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, host):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})

    def __repr__(self):
        return f"OnDevice({self.host})"

    def __deepcopy__(self, memo):
        copy = OnDevice(self.host.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def __reduce_ex__(self, protocol):
        """In a checkpoint it is a tensor of the CPU."""
        return self.host.detach().__reduce_ex__(protocol)

    def tolist(self):
        waits.note()
        return self.host.tolist()

    def numpy(self, *_, **__):
        raise OtherDeviceError(f"numpy() of a tensor of the device, {_line()}")

    __array__ = numpy

    def new_tensor(self, data, dtype=None, device=None, **_):
        return _upload(torch.Tensor.new_tensor(self.host, data, dtype=dtype or self.dtype), device or DEVICE)


class Pretending(TorchDispatchMode):
    """Makes what is asked for on the device, even where no tensor of it takes part."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


def _compute(operation, args, kwargs):
    flat = [
        x
        for part in (*args, *kwargs.values())
        for x in (part if isinstance(part, (list, tuple)) else (part,))
    ]
    ours = [x for x in flat if isinstance(x, OnDevice)]
    hosts = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
    device = kwargs.get("device")
    there = bool(ours) if device is None else torch.device(device).type == DEVICE.type
    _check_generator(operation, flat, there)
    if ours and hosts and operation not in COPIES:
        _check_mixture(operation, args, hosts)
    if _waits(operation, args, kwargs, ours, there):
        waits.note()
    held = {id(x.host): x for x in ours}
    args = [_mapped(part, OnDevice, lambda x: x.host) for part in args]
    kwargs = {name: _mapped(part, OnDevice, lambda x: x.host) for name, part in kwargs.items()}
    if there and device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if "pin_memory" in kwargs:
        kwargs = kwargs | {"pin_memory": None}
    result = operation(*args, **kwargs)
    into_host = operation in COPIES - {aten._to_copy.default} and isinstance(args[0], torch.Tensor)
    into_host = into_host and id(args[0]) not in held

    def returned(x):
        if id(x) in held:  # an operation in place gives back its own tensor
            return held[id(x)]
        return OnDevice(x) if there and not into_host else x

    return _mapped(result, torch.Tensor, returned)


def _mapped(part, kind, change):
    """What of an operation's argument or result is of a kind, changed; they are tensors, and lists of them."""
    if isinstance(part, (list, tuple)):
        return type(part)([change(x) if isinstance(x, kind) else x for x in part])
    return change(part) if isinstance(part, kind) else part


def _waits(operation, args, kwargs, ours, there):
    """Whether the host must know a value, or how many there are, or copies and does not go on meanwhile."""
    if operation is aten._to_copy.default:
        return bool(ours) != there and not kwargs.get("non_blocking")
    if operation is aten.copy_.default:
        return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and args[2:] != (True,)
    masked = operation in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
    return bool(ours) and (operation in READS_BACK or masked)


def _check_generator(operation, flat, there):
    for generator in (x for x in flat if isinstance(x, torch.Generator)):
        if there != (generator.device.type == DEVICE.type):
            raise OtherDeviceError(f"{operation} with a generator of {generator.device}, {_line()}")


def _check_mixture(operation, args, hosts):
    if operation in INDEXED:
        if not isinstance(args[0], OnDevice):
            raise OtherDeviceError(f"a tensor of the CPU is indexed by one of the device, {_line()}")
        values = args[2] if len(args) > 2 else None
        if any(values is x and x.dim() for x in hosts):
            raise OtherDeviceError(f"values of the CPU are put into a tensor of the device, {_line()}")
        return
    scalars = all(x.dim() == 0 for x in hosts)
    if not (scalars and (torch.Tag.pointwise in operation.tags or operation in TAKES_CPU_SCALARS)):
        raise OtherDeviceError(f"{operation} on tensors of two devices, {_line()}")


def _line():
    """The innermost line of the package that is being run, or of whatever else runs this."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    outside = frame
    while frame and "/ssl_weighting/" not in frame.f_code.co_filename:
        frame = frame.f_back
    frame = frame or outside
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{name.rpartition('/ssl_weighting/')[2]}:{line} {linecache.getline(name, line).strip()}"


def _upload(tensor, device):
    if device is None or torch.device(device).type != DEVICE.type:
        return tensor
    return tensor.to(DEVICE)


class Autocast(TorchFunctionMode):
    """Stands for ``torch.autocast``, which has no rules for this device: a part of CUDA's."""

    def __init__(self, device_type, dtype=None, enabled=True, **_):
        super().__init__()
        if device_type != DEVICE.type:
            raise OtherDeviceError(f"autocast of {device_type}, {_line()}")
        self.enabled = enabled

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        wanted = torch.bfloat16 if name in FEWER_BITS else torch.float32 if name in MORE_BITS else None
        if self.enabled and wanted is not None:

            def cast(x):
                return x.to(wanted) if x.dtype in (torch.float32, torch.bfloat16) else x

            args = [_mapped(part, torch.Tensor, cast) for part in args]
        return function(*args, **kwargs)


class _DeviceModule:
    """What ``torch.get_device_module`` gives."""

    manual_seed = staticmethod(lambda seed: None)


def _without_modes(method):
    """Closed forms by ``torch.func``, which does not look through a subclass of tensors."""

    def computed(self, *tensors):
        if not any(isinstance(x, OnDevice) for x in tensors):
            return method(self, *tensors)
        if not all(isinstance(x, OnDevice) for x in tensors):
            raise OtherDeviceError(f"a distance of tensors of two devices, {_line()}")
        with _disable_current_modes():
            return OnDevice(method(self, *[x.host.detach() for x in tensors]))

    return computed


@contextmanager
def pretending(monkeypatch):
    """The pretended device is there, inside; gives the count of waits, from 0.

    Args:
        monkeypatch: Takes torch's functions in Python that make tensors, or ask for a device's module.
    """
    tensor, as_tensor = torch.tensor, torch.as_tensor
    enabled, module = torch.is_autocast_enabled, torch.get_device_module

    def is_autocast_enabled(device_type=None):
        if device_type == DEVICE.type:
            return False
        return enabled() if device_type is None else enabled(device_type)

    def make(data, *, dtype=None, device=None, requires_grad=False, **_):
        return _upload(tensor(data, dtype=dtype), device).requires_grad_(requires_grad)

    def make_as(data, dtype=None, device=None):
        made = data if isinstance(data, torch.Tensor) else as_tensor(data)
        return made.to(dtype=dtype or made.dtype, device=made.device if device is None else device)

    def device_module(device=None):
        kind = device if device is None else torch.device(device).type
        return _DeviceModule if kind == DEVICE.type else module(device)

    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", is_autocast_enabled)
    monkeypatch.setattr(torch, "tensor", make)
    monkeypatch.setattr(torch, "as_tensor", make_as)
    monkeypatch.setattr(torch, "get_device_module", device_module)
    # A subclass of tensors that holds another has no inference mode.
    monkeypatch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad() if mode else nullcontext())
    for name in ("gradient", "hessian_product"):
        monkeypatch.setattr(Distance, name, _without_modes(getattr(Distance, name)))
    waits.lines.clear()
    with Pretending():
        yield waits


class _Accelerator(CPUAccelerator):
    """Lightning's for the CPU, which takes any device."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass


def strategy():
    """Lightning's strategy for one device: the pretended one."""
    return SingleDeviceStrategy(device=DEVICE, accelerator=_Accelerator())
