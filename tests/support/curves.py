"""Least-squares problems written once for every backend, with NumPy's Jacobians supplied, and a dense LM in NumPy."""

import functools

import numpy as np

import linop_gn as lg

# NIST StRD, Misra1a (dental research, monomolecular adsorption): y = b1 (1 - exp(-b2 x)).
MISRA_X = np.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0])
MISRA_Y = np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78])
MISRA_CERTIFIED = np.array([2.3894212918e02, 5.5015643181e-04])
MISRA_SUM_OF_SQUARES = 1.2455138894e-01


def exponential(ops, t, y, dtype="float64"):
    """Residuals p0 exp(p1 t) - y."""
    xp = ops.namespace()
    ta, ya = ops.asarray(t, dtype), ops.asarray(y, dtype)

    def residuals(p):
        return p[0] * xp.exp(p[1] * ta) - ya

    def jacobian(p):
        return np.stack([np.exp(p[1] * t), p[0] * t * np.exp(p[1] * t)], axis=1)

    return lg.Objective.from_residuals(residuals, jacobian=jacobian if ops.calculus is None else None)


@functools.cache  # compiled once for all tests
def misra(ops):
    """Misra1a in the parameters (b1 / 100, 1000 b2), so that both are near one."""
    xp = ops.namespace()
    x, y = ops.asarray(MISRA_X, "float64"), ops.asarray(MISRA_Y, "float64")

    def residuals(p):
        return 100 * p[0] * (1 - xp.exp(-p[1] * x / 1000)) - y

    def jacobian(p):
        decay = np.exp(-p[1] * MISRA_X / 1000)
        return np.stack([100 * (1 - decay), 100 * p[0] * MISRA_X / 1000 * decay], axis=1)

    return lg.Objective.from_residuals(residuals, jacobian=jacobian if ops.calculus is None else None)


@functools.cache  # compiled once for all tests
def rosenbrock(ops, dtype="float64"):
    """Residuals (10 (p1 - p0^2), 1 - p0)."""
    xp = ops.namespace()

    def residuals(p):
        return xp.stack([10 * (p[1] - p[0] * p[0]), 1 - p[0]])

    def jacobian(p):
        return np.array([[-20 * p[0], 10.0], [-1.0, 0.0]])

    return lg.Objective.from_residuals(residuals, jacobian=jacobian if ops.calculus is None else None)


def dense_lm(residuals, jacobian, p, steps, damping, model="undamped", accept=1e-4):
    """Levenberg-Marquardt with Nielsen's rule by dense algebra, written out on its own.

    Returns the parameters, and the values, dampings and predicted decreases, of each step.
    """
    growth, value = 2.0, 0.5 * residuals(p) @ residuals(p)
    values, dampings, decreases = [value], [damping], []
    for _ in range(steps):
        r, J = residuals(p), jacobian(p)
        g, G = J.T @ r, J.T @ J
        s = np.linalg.solve(G + damping * np.eye(p.size), -g)
        quadratic = G if model == "undamped" else G + damping * np.eye(p.size)
        predicted = -(g @ s + 0.5 * s @ quadratic @ s)
        trial = 0.5 * residuals(p + s) @ residuals(p + s)
        ratio = (value - trial) / predicted
        if ratio > accept:
            p, value = p + s, trial
        if ratio > 0:
            damping, growth = damping * max(1 / 3, 1 - (2 * min(ratio, 2.0) - 1) ** 3), 2.0
        else:
            damping, growth = damping * growth, 2 * growth
        values.append(value)
        dampings.append(damping)
        decreases.append(predicted)
    return p, np.array(values), np.array(dampings), np.array(decreases)
