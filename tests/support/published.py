"""The published rules of second-order methods, written out in NumPy with dense matrices, on their own.

A model is a tuple of functions of p: value, gradient, curvature (a matrix). Each rule returns values, levels (damping
or radius), and the last parameters.
"""

import math

import numpy as np

import linop_gn as lg


class Tanh:
    """tanh(X p) fitted to y, mean of half the squares."""

    def __init__(self, seed=0, examples=20, n=6, noise=0.3, spread=0.0):
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((examples, n)) * 10.0 ** (-spread * np.arange(n) / n)
        self.y = np.tanh(self.x @ rng.standard_normal(n)) + noise * rng.standard_normal(examples)
        self.start = 0.5 * rng.standard_normal(n)

    def objective(self, ops, dtype="float64"):
        def model(p, x):
            return lg.namespace(p).tanh(x @ p)

        def jacobian(p, x):
            return (1 - np.tanh(x @ p) ** 2)[:, None] * x

        data = ops.asarray(self.x, dtype), ops.asarray(self.y, dtype)
        supplied = {"jacobian": jacobian} if ops.calculus is None else {}
        return lg.Objective(model, lg.losses.SquaredError(), data, **supplied)

    def slopes(self, p):
        """d z_i / d p."""
        return (1 - np.tanh(self.x @ p) ** 2)[:, None] * self.x

    def value(self, p):
        return 0.5 * np.mean((np.tanh(self.x @ p) - self.y) ** 2)

    def per_example(self, p):
        return (np.tanh(self.x @ p) - self.y)[:, None] * self.slopes(p)

    def gradient(self, p):
        return self.per_example(p).mean(0)

    def curvature(self, p):
        J = self.slopes(p)
        return J.T @ J / len(J)


class Trigonometric:
    """sum_i c_i (1 - cos p_i) + 1/4 (sum_i p_i)^2, whose Hessian is indefinite away from zero."""

    def __init__(self, start):
        self.start = np.array(start, float)
        self.c = 1.0 + np.arange(len(start))

    def objective(self, ops):
        c = ops.asarray(self.c, "float64")

        def function(p):
            xp = lg.namespace(p)
            return xp.sum(c * (1 - xp.cos(p))) + 0.25 * xp.sum(p) ** 2

        if ops.calculus is not None:
            return lg.Objective.from_function(function)
        return lg.Objective.from_function(function, gradient=self.gradient, hvp=lambda p, v: self.curvature(p) @ v)

    def value(self, p):
        return np.sum(self.c * (1 - np.cos(p))) + 0.25 * np.sum(p) ** 2

    def gradient(self, p):
        return self.c * np.sin(p) + 0.5 * np.sum(p)

    def curvature(self, p):
        return np.diag(self.c * np.cos(p)) + 0.5


def newton(f, steps, damping, length):
    p, values = f.start, [f.value(f.start)]
    for _ in range(steps):
        H = f.curvature(p) + damping * np.eye(len(p))
        p = p - length * np.linalg.pinv(H, rcond=len(p) * np.finfo(float).eps, hermitian=True) @ f.gradient(p)
        values.append(f.value(p))
    return np.array(values), p


def cg(A, b, x, done, limit, M=None):
    """Preconditioned conjugate gradients; the iterates, the first of them x. ``done(xs, r)`` ends it."""
    M = np.ones_like(b) if M is None else M
    r = b - A @ x
    z = M * r
    q, xs = z.copy(), [x]
    while len(xs) <= limit and not done(xs, r):
        Aq = A @ q
        if q @ Aq <= 0:
            break
        alpha = (r @ z) / (q @ Aq)
        xs.append(xs[-1] + alpha * q)
        new = r - alpha * Aq
        z, before = M * new, r @ z
        q = z + (new @ z) / before * q
        r = new
    return xs


def armijo(f, p, d, c, shrink, most, fixed=False):
    """The length, the value there, and whether it is low enough."""
    slope, t = f.gradient(p) @ d, 1.0
    for trial in range(most):
        value = f.value(p + t * d)
        good = value <= f.value(p) + c * (1.0 if fixed else t) * slope
        if good or trial == most - 1:
            return t, value, good
        t *= shrink


def newton_cg(f, steps):
    p, values, eta, before = f.start, [f.value(f.start)], 0.5, None
    for _ in range(steps):
        g = f.gradient(p)
        norm = np.linalg.norm(g)
        if before is not None:
            wanted, safe = 0.9 * (norm / before) ** 2, 0.9 * eta**2
            eta = min(max(wanted, safe if safe > 0.1 else 0.0), 0.9)
        before = norm
        small = lambda xs, r, norm=norm, eta=eta: np.linalg.norm(r) <= eta * norm  # noqa: E731
        d = cg(f.curvature(p), -g, np.zeros_like(p), small, 200)[-1]
        d = d if d @ d > 0 else -g
        t, value, _ = armijo(f, p, d, 1e-4, 0.5, 30)
        p = p + t * d
        values.append(value)
    return np.array(values), p


def gauss_newton(f, steps, damping=0.0):
    p, values = f.start, [f.value(f.start)]
    for _ in range(steps):
        d = -np.linalg.solve(f.curvature(p) + damping * np.eye(len(p)), f.gradient(p))
        t, value, _ = armijo(f, p, d, 1e-4, 0.5, 30)
        p = p + t * d
        values.append(value)
    return np.array(values), p


def subproblem(H, g, radius):
    """The minimum over the ball, by eigenvalues and bisection (no hard case)."""
    e, V = np.linalg.eigh(H)
    along = V.T @ g
    if e[0] > 0 and np.linalg.norm(along / e) <= radius:
        return -V @ (along / e)
    low, high = max(0.0, -e[0]), max(0.0, -e[0]) + np.linalg.norm(g) / radius + 1.0
    for _ in range(200):
        mid = 0.5 * (low + high)
        low, high = (mid, high) if np.linalg.norm(along / (e + mid)) > radius else (low, mid)
    return -V @ (along / (e + high))


def trust_region(f, steps, radius):
    p, values, radii, refused = f.start, [f.value(f.start)], [radius], 0
    for _ in range(steps):
        g, H = f.gradient(p), f.curvature(p)
        d = subproblem(H, g, radius)
        value = f.value(p + d)
        ratio = (f.value(p) - value) / -(g @ d + 0.5 * d @ H @ d)
        if ratio > 1e-4:
            p = p + d
        else:
            refused += 1
        norm = np.linalg.norm(d)
        if ratio < 0.25:
            radius = 0.25 * norm
        elif ratio > 0.75 and norm >= 0.99 * radius:
            radius = 2 * radius
        values.append(f.value(p))
        radii.append(radius)
    return np.array(values), np.array(radii), p, refused


def marquardt(damping, ratio):
    return damping * (1.5 if not ratio >= 0.25 else 2 / 3 if ratio > 0.75 else 1.0)


def sgn(f, steps, k, damping, preconditioned=None, momentum=0.0, early=None):
    p, values, dampings, mean = f.start, [f.value(f.start)], [damping], 0.0
    for step in range(1, steps + 1):
        g = f.gradient(p)
        A = f.curvature(p) + damping * np.eye(len(p))
        mean = momentum * mean + (1 - momentum) * g
        m = mean / (1 - momentum**step)
        M = None if preconditioned is None else (m * m + damping) ** -preconditioned
        limit = k if early is None or step > 9 else early
        d = cg(A, -m, np.zeros_like(p), lambda xs, r: np.abs(r).max() <= 1e-6, limit, M)[-1]
        r = A @ d + g
        ratio = (f.value(p + d) - f.value(p)) / (0.5 * (r + g) @ d)
        ratio = ratio if (r + g) @ d < 0 else -math.inf  # ours: with momentum nothing may be promised, and nothing kept
        t, value, _ = armijo(f, p, d, 1e-4, 0.5, 11, fixed=True)
        p = p + t * d
        damping = max(marquardt(damping, ratio), 1e-6)
        values.append(value)
        dampings.append(damping)
    return np.array(values), np.array(dampings), p


def hessian_free(f, steps, damping, limit):
    p, values, dampings, warm = f.start, [f.value(f.start)], [damping], np.zeros_like(f.start)
    kept_at, backtracked = {math.ceil(1.3**j) for j in range(60)}, 0
    for _ in range(steps):
        g, G = f.gradient(p), f.curvature(p)
        A = G + damping * np.eye(len(p))
        M = (np.mean(f.per_example(p) ** 2, axis=0) + damping) ** -0.75

        def phi(x, A=A, g=g):
            return 0.5 * x @ A @ x + g @ x

        def levelled(xs, r, phi=phi):
            i = len(xs) - 1
            k = max(10, math.ceil(0.1 * i))
            return i > k and phi(xs[i]) < 0 and (phi(xs[i]) - phi(xs[i - k])) / phi(xs[i]) < k * 5e-4

        if phi(warm) > 0:
            warm = warm * (-g @ warm) / (warm @ A @ warm)
        xs = cg(A, -g, warm, levelled, limit, M)
        whole = xs[-1]
        warm = 0.95 * whole
        ratio = (f.value(p) - f.value(p + whole)) / -(g @ whole + 0.5 * whole @ G @ whole)
        best, lowest = whole, f.value(p + whole)
        for i in reversed([i for i in range(1, len(xs) - 1) if i in kept_at]):
            value = f.value(p + xs[i])
            if value >= lowest:
                break
            best, lowest = xs[i], value
        backtracked += best is not whole
        t, _, good = armijo(f, p, best, 1e-2, 0.8, 60)
        p = p + t * best if good else p
        damping = marquardt(damping, ratio if good else -math.inf)
        values.append(f.value(p))
        dampings.append(damping)
    return np.array(values), np.array(dampings), p, backtracked


def egn(f, steps, damping, length, momentum=0.0):
    p, values, m = f.start, [f.value(f.start)], 0.0
    for t in range(1, steps + 1):
        d = -np.linalg.solve(f.curvature(p) + damping * np.eye(len(p)), f.gradient(p))
        m = momentum * m + (1 - momentum) * d
        p = p + length * m / (1 - momentum**t)
        values.append(f.value(p))
    return np.array(values), p


def egn_searched(f, steps, damping, lr):
    """With Armijo's rule from 1.5 times the last length, and adaptive damping."""
    p, values, last, dampings = f.start, [f.value(f.start)], math.inf, [damping]
    for _ in range(steps):
        g, G = f.gradient(p), f.curvature(p)
        d = -np.linalg.solve(G + damping * np.eye(len(p)), g)
        first = min(1.5 * last, lr)
        t, value, _ = armijo(f, p, first * d, 0.1, 0.8, 15)
        last = first * t
        ratio = (f.value(p) - value) / -(last * g @ d + 0.5 * last**2 * d @ G @ d)
        damping = damping * (1.01 if ratio < 0.25 else 0.99 if ratio > 0.75 else 1.0)
        p = p + last * d
        values.append(value)
        dampings.append(damping)
    return np.array(values), np.array(dampings), p


def layerwise(f, steps, damping, blocks):
    p, values = f.start, [f.value(f.start)]
    for _ in range(steps):
        G, g, d = f.curvature(p) + damping * np.eye(len(p)), f.gradient(p), np.zeros_like(p)
        for block in blocks:
            d[block] = -np.linalg.solve(G[block, block], g[block])
        lengths = 2.0 ** (-0.5 * np.arange(5))
        p = p + lengths[np.argmin([f.value(p + t * d) for t in lengths])] * d
        values.append(f.value(p))
    return np.array(values), p
