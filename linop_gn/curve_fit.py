"""The fit of a model to data, as ``scipy.optimize.curve_fit``, by :func:`linop_gn.least_squares`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from .arguments import called
from .dispatch import backend_of, how_to_bring, owner_of
from .given import as_tree
from .least_squares import least_squares
from .protocols import Array, Vector
from .records import replace

__all__ = ["curve_fit"]

_NUMPY = np.ndarray, np.generic
_LIKE = "(xdata, *params)"
_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
_ABSCISSAS = {"x", "xs", "xdata", "x_data", "t", "ts", "time", "times"}


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool = True,
    bounds: Any = (-math.inf, math.inf),
    jac: Any = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Fit ``f(xdata, *params)`` to ``ydata``: the parameters and their covariance, as ``scipy.optimize.curve_fit``.

    Parameters
    ----------
    f
        The model, whose parameters are separate arguments.
    xdata
        Whatever f takes first; a list or tuple of numbers as an array. Where f's last argument bears a name such as x
        or t, and its first does not, a warning says how f is called.
    ydata
        An array (m,) of any framework, or a list of numbers.
    p0
        Start; None: ones, or the middle of bounds that are finite.
    sigma
        Standard deviations (m,) of ydata, whose signs do not count, or their covariance (m, m).
    absolute_sigma
        Whether sigma is in the units of ydata, rather than known up to a factor, which is then estimated.
    check_finite, nan_policy
        ``"omit"`` leaves out data that are not finite; otherwise they raise, unless ``check_finite=False``.
    bounds, jac, options
        As for :func:`least_squares`; ``jac(xdata, *params)`` is the derivative of f, an array (m, n).
    full_output
        Also return a dict (``nfev``, ``fvec``, ``result``), the message, and SciPy's number for the status.

    >>> import numpy as np, linop_gn as lg
    >>> t, y = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([2.1, 1.2, 0.8, 0.4, 0.3])
    >>> popt, pcov = lg.curve_fit(lambda t, a, k: a * np.exp(-k * t), t, y)
    >>> popt.round(3), np.sqrt(np.diag(pcov)).round(3)
    (array([2.087, 0.515]), array([0.051, 0.024]))

    Raises
    ------
    RuntimeError
        If the fit is no success; the message says why.
    TypeError
        For a start by name, which :func:`least_squares` takes; for arrays of two frameworks, and complex ones.
    ValueError
        For data that are not finite or do not fit each other.
    """
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError(f"curve_fit: nan_policy must be 'raise', 'omit' or None, got {nan_policy!r}.")
    if not callable(f) or ydata is None:
        raise TypeError(
            f"curve_fit(f, xdata, ydata): f must be a function and ydata an array, got {f!r} and {ydata!r}."
        )
    _warn_of_order(f)
    if isinstance(p0, Mapping):
        raise TypeError(
            f"curve_fit: p0 is a {type(p0).__qualname__}, and f's parameters are separate arguments without names. "
            "lg.least_squares takes numbers by name, and lmfit's Parameters with their bounds: "
            "lg.least_squares(lambda p: f(xdata, **p) - ydata, p0), divided by sigma where there is one. Otherwise "
            "give a list of numbers, in the order of f's arguments."
        )
    ydata, sigma, p0 = as_tree(ydata), as_tree(sigma), as_tree(p0)
    xdata = xdata if hasattr(xdata, "columns") else as_tree(xdata)  # a frame's columns f may ask for by name
    y = ydata if hasattr(ydata, "shape") and hasattr(ydata, "dtype") else np.asarray(ydata, dtype=np.float64)
    ops = backend_of(y)
    if "complex" in ops.describe(y)[1]:
        raise TypeError(
            "curve_fit: ydata are complex; fit lg.as_real of a function and of parameters, by lg.least_squares."
        )
    if "float" not in ops.describe(y)[1]:
        y = ops.cast(y, "float64")
    _, dtype, device = ops.describe(y)
    xp, m = ops.namespace(), math.prod(tuple(y.shape))
    if isinstance(xdata, np.ndarray) and not ops.is_array(xdata) and xdata.dtype.kind == "f":
        xdata = ops.asarray(xdata, dtype, device)
    if hasattr(xdata, "shape") and owner_of(xdata) not in (None, ops) and not isinstance(xdata, np.ndarray):
        got = owner_of(xdata).name  # type: ignore[union-attr]
        raise TypeError(f"curve_fit: xdata belong to {got} but ydata to {ops.name}; {how_to_bring(ops)}.")
    if isinstance(xdata, (list, tuple)) and not any(hasattr(x, "shape") and not isinstance(x, _NUMPY) for x in xdata):
        with suppress(TypeError, ValueError):  # what is no array of numbers f takes as it is
            xdata = ops.asarray(np.asarray(xdata, dtype=np.float64), dtype, device)

    def like_y(x: Any, what: str) -> Array:
        if not ops.is_array(x):
            x = ops.asarray(np.asarray(x, dtype=np.float64), dtype, device)
        if tuple(x.shape)[:1] != (m,):
            raise ValueError(f"curve_fit: {what} has shape {tuple(x.shape)} for {m} data.")
        return x

    if isinstance(sigma, (int, float)) or getattr(sigma, "shape", None) == ():
        sigma = xp.ones_like(y) * sigma  # one for all data
    weights = None if sigma is None else like_y(sigma, "sigma")
    if ops.is_concrete(y):
        finite = np.isfinite(np.asarray(ops.to_numpy(y)))
        if isinstance(xdata, np.ndarray) or ops.is_array(xdata):
            here = np.isfinite(np.asarray(xdata if isinstance(xdata, np.ndarray) else ops.to_numpy(xdata)))
            finite = finite & (here if here.ndim == 1 else here.all(axis=0)) if here.shape[-1:] == (m,) else finite
        if nan_policy == "omit" and not finite.all():
            kept = np.flatnonzero(finite)
            xdata, y = xdata[..., kept], y[kept]
            if weights is not None:
                weights = weights[kept] if len(weights.shape) == 1 else weights[kept][:, kept]
        elif check_finite and not finite.all():
            raise ValueError("curve_fit: xdata or ydata hold NaN or infinity; nan_policy='omit' leaves these out.")

    if 0 in tuple(y.shape):
        raise ValueError("curve_fit: there are no data: ydata are empty, or none of them is finite.")

    def weigh(r: Array) -> Array:
        if weights is None:
            return r
        if len(weights.shape) == 1:
            return r / (weights if len(r.shape) == 1 else weights[:, None])
        return xp.linalg.solve(lower, r if len(r.shape) == 2 else r[:, None]).reshape(r.shape)

    lower = None
    if weights is not None and ops.is_concrete(weights):
        given, text = np.asarray(ops.to_numpy(weights)), "a symmetric positive definite covariance"
        text = text if given.ndim == 2 else "numbers that are not zero"
        good = not np.isnan(given).any() and given.all()
        if given.ndim == 2:
            good = np.isfinite(given).all() and np.allclose(given, given.T) and np.linalg.eigvalsh(given)[0] > 0
        if not good:
            raise ValueError(f"curve_fit: sigma must be {text}; leave out data without one.")
    if weights is not None and len(weights.shape) == 2:
        lower = xp.linalg.cholesky(weights)

    def residuals(p: Vector) -> Array:
        r = called("f", _LIKE, f, xdata, *(p[i] for i in range(p.shape[0]))) - y
        if tuple(r.shape) != tuple(y.shape):  # (m, 1) less (m,) is (m, m)
            raise ValueError(
                f"curve_fit: f(xdata, *params) - ydata has shape {tuple(r.shape)}, and ydata {tuple(y.shape)}."
            )
        return weigh(r)

    def slope(p: Vector) -> Array:
        return weigh(like_y(called("jac", _LIKE, jac, xdata, *(p[i] for i in range(p.shape[0]))), "the result of jac"))

    start = _first_guess(f, p0, bounds)
    start = start if ops.is_array(start) else ops.asarray(np.atleast_1d(np.asarray(start, float)), dtype, device)
    if "maxfev" in options:
        options["max_nfev"] = options.pop("maxfev")
    fit = least_squares(residuals, start, slope if callable(jac) else jac, bounds, **options)
    if not ops.is_concrete(fit.code):
        raise TypeError(
            "curve_fit raises where a fit fails, which a compiled program cannot: call lg.least_squares there, whose "
            "result has .x, .covariance() and .succeeded."
        )
    if not fit.success:
        raise RuntimeError(f"curve_fit: no optimal parameters were found. {fit.message}")
    fit = fit if sigma is None else replace(fit, weighted=True)
    found = fit.x, fit.covariance(absolute_sigma)
    told = {"nfev": fit.nfev, "fvec": fit.fun, "result": fit}
    return (*found, told, fit.message, fit.scipy_status) if full_output else found


def _warn_of_order(f: Callable[..., Any]) -> None:
    """Warn where f's arguments are named as if xdata came last: of a straight line the two would come out swapped."""
    with suppress(TypeError, ValueError):
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind in _POSITIONAL]
        if len(names) > 1 and names[-1] in _ABSCISSAS and names[0] not in _ABSCISSAS:
            order = ", ".join((names[-1], *names[:-1]))
            warnings.warn(
                f"curve_fit calls f(xdata, *params): {names[0]!r} is the data here, and {names[-1]!r} a parameter. If "
                f"{names[-1]!r} is meant to be the data, give lambda {order}: f({', '.join(names)}).",
                UserWarning,
                stacklevel=3,
            )


def _first_guess(f: Callable[..., Any], p0: Any, bounds: Any) -> Any:
    """p0, or ones for the parameters that the signature tells, moved within the bounds."""
    if p0 is not None:
        return p0
    parameters = inspect.signature(f).parameters.values()
    count = sum(p.kind in _POSITIONAL for p in parameters) - 1
    if count < 1 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise ValueError("curve_fit: the number of parameters cannot be told from f: give p0.")
    pair = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
    try:
        low, high = (np.broadcast_to(np.asarray(b, float), (count,)) for b in pair)
    except (TypeError, ValueError):
        return np.ones(count)  # least_squares says what bounds are
    with np.errstate(invalid="ignore"):
        middle = 0.5 * (low + high)
    guess = np.where(np.isfinite(middle), middle, 1.0)
    guess = np.where(np.isfinite(low) & ~np.isfinite(high), low + 1.0, guess)
    return np.where(np.isfinite(high) & ~np.isfinite(low), high - 1.0, guess)
