"""CuPy without a GPU: a stand-in on NumPy's memory, as strict as CuPy where it matters.

Its arrays are a class of their own that refuses to become a NumPy array or to
meet one, they live on one of two devices and may only be worked on while that
device is current (CuPy would go over the bus, or refuse), kernels are
interpreted from the very strings that CuPy would compile, and every launch and
every read by the host is counted. What it cannot show is whether a kernel
compiles, or how fast anything is.
"""

import collections
import contextlib
import importlib.util
import operator
import re
import sys
import types

import numpy as np
import scipy.linalg
import scipy.sparse

DEVICES = 2
LACKING = ["block", "insert", "matvec", "spacing", "unstack", "vecdot", "vecmat"]
counts = collections.Counter()  # launches by name of the kernel, reads and waits by the host
state = types.SimpleNamespace(device=0, linalg="ignore", devices=DEVICES)


class CUDARuntimeError(RuntimeError):
    pass


class Device:
    __hash__ = None

    def __init__(self, device=None):
        self.id = state.device if device is None else int(device)
        if not 0 <= self.id < state.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return self.id == other.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        self._before = [*getattr(self, "_before", []), state.device]
        state.device = self.id
        return self

    def __exit__(self, *error):
        state.device = self._before.pop()


class Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


def unwrap(x):
    if isinstance(x, ndarray):
        assert x.device.id == state.device, f"work on an array of {x.device!r} while {Device()!r} is current"
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, (list, tuple)):
        return type(x)(map(unwrap, x)) if type(x) in (list, tuple) else x
    return x


def wrap(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    if isinstance(x, (list, tuple)):
        return type(x)(*map(wrap, x)) if hasattr(x, "_fields") else type(x)(map(wrap, x))
    return x


def lifted(function):
    """A function of NumPy's as CuPy has it."""

    def run(*args, **options):
        with np.errstate(all="ignore"):
            return wrap(function(*map(unwrap, args), **{name: unwrap(value) for name, value in options.items()}))

    run.__name__ = getattr(function, "__name__", "function")
    return run


def view(x, host):
    """An array over memory of ``x``, which is no work and may be made anywhere."""
    with x.device:
        return ndarray(host)


class ndarray:  # noqa: N801
    """One array, always on the device that was current when it was made."""

    __module__ = "cupy"
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, host):
        self._host, self.device = host, Device()

    def get(self):
        counts["read"] += 1
        return self._host.copy()

    def item(self):
        return self.get().item()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __bool__(self):
        return bool(self.item())

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return lifted(getattr(ufunc, method))(*inputs, **options)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, (ndarray, list)) for k in keys):
            return lifted(np.ndarray.__getitem__)(self, key)
        host = self._host[key]
        return view(self, host if isinstance(host, np.ndarray) else self._host[(*keys, ...)])

    def __setitem__(self, key, value):
        unwrap(self)[unwrap(key)] = unwrap(value)

    def __dlpack__(self, **options):
        return self._host.__dlpack__()

    def __dlpack_device__(self):
        return self._host.__dlpack_device__()

    def __repr__(self):
        return repr(self._host)

    def copy(self, order="C"):
        return array(self, order=order)

    flags = property(lambda self: Flags(self._host.flags))


for name in ("shape", "ndim", "size", "dtype", "itemsize", "nbytes", "strides"):
    setattr(ndarray, name, property(operator.attrgetter(f"_host.{name}")))
for name in ("T", "mT"):
    setattr(ndarray, name, property(lambda self, name=name: view(self, getattr(self._host, name))))
for name in ("reshape", "astype", "sum", "prod", "max", "min", "mean", "any", "all", "dot", "ravel", "transpose"):
    setattr(ndarray, name, lifted(getattr(np.ndarray, name)))
for name in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"]:
    for form in (f"__{name}__", f"__r{name}__"):
        setattr(ndarray, form, lifted(getattr(np.ndarray, form)))

    def update(self, other, form=f"__i{name}__"):
        getattr(unwrap(self), form)(unwrap(other))
        return self

    setattr(ndarray, f"__i{name}__", update)
for name in ["lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"]:
    setattr(ndarray, f"__{name}__", lifted(getattr(np.ndarray, f"__{name}__")))


def array(obj, dtype=None, copy=True, order="K", **options):
    """A new array on the current device, from an array of any device or from the host."""
    host = obj._host if isinstance(obj, ndarray) else obj
    if isinstance(obj, (list, tuple)):
        host = [x._host if isinstance(x, ndarray) else x for x in obj]
    if not copy and isinstance(obj, ndarray) and obj.device == Device() and dtype in (None, obj.dtype):
        return obj
    return ndarray(np.array(host, dtype=dtype, order=order))


def asnumpy(a):
    assert a.device.id == state.device
    return a.get()


def from_dlpack(x):
    return ndarray(np.from_dlpack(x))


def _parameters(text):
    return [tuple(part.split()) for part in text.split(",")]


class ElementwiseKernel:
    """Runs operations that are one assignment, in C and Python alike."""

    def __init__(self, in_params, out_params, operation, name):
        self.inputs, self.outputs = _parameters(in_params), _parameters(out_params)
        self.operation, self.name = operation, name

    def __call__(self, *args):
        parameters = self.inputs + self.outputs
        assert len(args) == len(parameters)
        types_ = {kind: x.dtype for (kind, _), x in zip(parameters, args, strict=True) if isinstance(x, ndarray)}
        values = {}
        for (kind, name), x in zip(parameters, args, strict=True):
            if isinstance(x, ndarray) and x.dtype != types_[kind]:
                raise TypeError(f"Type is mismatched. {name} {x.dtype} {types_[kind]} {kind}")
            if not isinstance(x, ndarray) and not np.isscalar(x):
                raise TypeError(f"Unsupported type {type(x)}")
            values[name] = unwrap(x) if isinstance(x, ndarray) else np.dtype(types_[kind]).type(x)
        out = args[-1]
        if np.broadcast_shapes(*(np.shape(value) for value in values.values())) != out.shape:
            raise ValueError("Out shape is mismatched")
        counts[self.name] += 1
        target = self.outputs[0][1]
        with np.errstate(all="ignore"):
            exec(self.operation, {}, values)
        assert values[target].dtype == out.dtype
        out._host[...] = values[target]
        return out


class ReductionKernel:
    """Runs sums, of terms that are an expression in C and, but for ``(double)``, in Python."""

    def __init__(self, in_params, out_params, map_expr, reduce_expr, post_map_expr, identity, name, reduce_type):
        assert (reduce_expr, post_map_expr, identity, reduce_type) == ("a + b", "z = a", "0", "double")
        assert out_params == "float64 z"
        self.inputs, self.name = _parameters(in_params), name
        self.term = re.sub(r"\(double\)(\w+)", r"\1.astype('float64')", map_expr)

    def __call__(self, *args, axis):
        assert len({x.dtype for x in args}) == 1
        counts[self.name] += 1
        with np.errstate(all="ignore"):
            terms = eval(self.term, {}, {name: unwrap(x) for (_, name), x in zip(self.inputs, args, strict=True)})
            return wrap(np.sum(terms, axis=axis))


class Stream:
    def synchronize(self):
        counts["wait"] += 1


# cupyx


@contextlib.contextmanager
def errstate(linalg=None):
    before, state.linalg = state.linalg, linalg
    yield
    state.linalg = before


def unchecked(function):
    """What cuSOLVER finds wrong is only raised when asked for; what comes back otherwise is of no use, but finite."""

    def run(a, *rest):
        try:
            return lifted(function)(a, *rest)
        except np.linalg.LinAlgError:
            if state.linalg == "raise":
                raise
            return wrap(np.ones_like(unwrap(rest[0] if rest else a)))

    return run


def solve_triangular(a, b, trans="N", lower=False):
    try:
        x = scipy.linalg.solve_triangular(unwrap(a), unwrap(b), trans=trans, lower=lower, check_finite=False)
    except np.linalg.LinAlgError:  # cuBLAS divides by zero, and says nothing
        x = np.full_like(unwrap(b), np.inf)
    return wrap(x)


class csr_matrix:  # noqa: N801
    __module__ = "cupyx.scipy.sparse._csr"

    def __init__(self, matrix):
        self._m = scipy.sparse.csr_array(matrix)
        self.data = ndarray(self._m.data)

    shape = property(lambda self: self._m.shape)
    dtype = property(lambda self: self._m.dtype)
    nnz = property(lambda self: self._m.nnz)
    T = property(lambda self: csr_matrix(self._m.T))

    def tocsr(self):
        return self

    def astype(self, dtype):
        return csr_matrix(self._m.astype(dtype))

    def max(self):
        return wrap(self._m.max())

    def argmax(self):
        return wrap(np.asarray(self._m.argmax()))

    def __abs__(self):
        return csr_matrix(abs(self._m))

    def __sub__(self, other):
        return csr_matrix(self._m - other._m)

    def __matmul__(self, x):
        unwrap(self.data)
        return wrap(self._m @ unwrap(x))


class LinearOperator:
    __module__ = "cupyx.scipy.sparse.linalg._interface"

    def __init__(self, shape, matvec, rmatvec=None, matmat=None, dtype=None, rmatmat=None):
        self.shape, self.dtype = shape, dtype
        self._functions = {"matvec": matvec, "rmatvec": rmatvec, "matmat": matmat, "rmatmat": rmatmat}

    def _apply(self, name, x, size):
        if x.shape[0] != size:
            raise ValueError("dimension mismatch")
        if self._functions[name] is None:
            raise NotImplementedError(f"{name} is not defined")
        return self._functions[name](x)

    def matvec(self, x):
        return self._apply("matvec", x, self.shape[1]).reshape(self.shape[0], *x.shape[1:])

    def rmatvec(self, x):
        return self._apply("rmatvec", x, self.shape[0]).reshape(self.shape[1], *x.shape[1:])

    def matmat(self, x):
        return self._apply("matmat", x, self.shape[1])

    def rmatmat(self, x):
        return self._apply("rmatmat", x, self.shape[0])


# modules


def _module(name, **content):
    made = types.ModuleType(name)
    made.__spec__ = importlib.util.spec_from_loader(name, None)
    made.__path__ = []
    made.__dict__.update(content)
    made.__all__ = list(content)
    return made


def _like(module):
    """The public names of a module of NumPy's, lifted."""
    content = {}
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("_") or isinstance(value, types.ModuleType) or name in LACKING:
            continue
        content[name] = value if isinstance(value, type) or not callable(value) else lifted(value)
    return content


def modules():
    """By name, the modules that CuPy would put in ``sys.modules``."""

    def count():
        if state.devices == 0:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return state.devices

    runtime = _module(
        "cupy.cuda.runtime",
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: state.device,
        getDeviceCount=count,
        getDeviceProperties=lambda number: {"name": b"a stand-in"},
    )
    device = _module("cupy.cuda.device", Device=Device)
    cuda = _module("cupy.cuda", Device=Device, device=device, runtime=runtime, get_current_stream=Stream)
    linalg = _module("cupy.linalg", **_like(np.linalg))
    for name in ("cholesky", "solve", "eigh"):
        setattr(linalg, name, unchecked(getattr(np.linalg, name)))
    fft = _module("cupy.fft", **_like(np.fft))
    own = {"ndarray": ndarray, "array": array, "asnumpy": asnumpy, "from_dlpack": from_dlpack}
    own |= {"asarray": lambda a, **o: array(a, copy=False, **o), "cuda": cuda, "linalg": linalg, "fft": fft}
    own |= {"ElementwiseKernel": ElementwiseKernel, "ReductionKernel": ReductionKernel}
    cupy = _module("cupy", **(_like(np) | own))
    cupy.__version__ = "stand-in"
    sparse_linalg = _module("cupyx.scipy.sparse.linalg", LinearOperator=LinearOperator)
    sparse = _module("cupyx.scipy.sparse", csr_matrix=csr_matrix, linalg=sparse_linalg)
    dense = _module("cupyx.scipy.linalg", solve_triangular=solve_triangular)
    scipy_ = _module("cupyx.scipy", sparse=sparse, linalg=dense)
    made = [cupy, cuda, device, runtime, linalg, fft, sparse_linalg, sparse, dense, scipy_]
    return {module.__name__: module for module in [*made, _module("cupyx", errstate=errstate, scipy=scipy_)]}


def install():
    """Put the stand-in where ``import cupy`` finds it."""
    sys.modules.update(modules())


def remove():
    """Take it out again, with what was made on top of it."""
    roots = {"cupy", "cupyx", "linop_gn_cupy"}
    for name in list(sys.modules):
        if name.partition(".")[0] in roots or name.startswith("array_api_compat.cupy"):
            del sys.modules[name]
