"""The published formulas of trace and diagonal estimators, in NumPy, and their errors by leaving probes out in fact."""

import numpy as np

EPS = np.finfo(float).eps


def unit_columns(M):
    return M / np.linalg.norm(M, axis=0)


def paired(A, B):
    return np.sum(A * B, axis=0)


def shift(A, Omega):
    return EPS * np.linalg.norm(A @ Omega) / np.sqrt(len(A))


def hutchinson(A, Z):
    return paired(Z, A @ Z)


def hutch_plus_plus(A, S, G):
    """Meyer, Musco, Musco and Woodruff (2021), algorithm 1."""
    Q = np.linalg.qr(A @ S)[0]
    G = G - Q @ (Q.T @ G)
    return np.trace(Q.T @ A @ Q) + paired(G, A @ G)


def xtrace(A, Omega):
    """Epperly, Tropp and Webber (2024), section 2.1 and the implementation in its supplement, with resphering."""
    n, k = Omega.shape
    Q, R = np.linalg.qr(A @ Omega)
    W, S = Q.T @ Omega, unit_columns(np.linalg.inv(R).T)
    scale = (n - k + 1) / (n - paired(W, W) + paired(S, W) ** 2)
    Z = A @ Q
    H, T = Q.T @ Z, Z.T @ Omega
    SW, SHS = paired(S, W), paired(S, H @ S)
    rest = paired(W, H @ W) - paired(T, W) + paired(T - H.T @ W, S) * SW + SW**2 * SHS + SW * paired(S, R - H @ W)
    return np.trace(H) - SHS + rest * scale


def xnystrace(A, Omega, nu=None):
    """The same, section 2.2: the shift, two QR factorisations and a Cholesky factorisation."""
    n, k = Omega.shape
    nu = shift(A, Omega) if nu is None else nu
    Y = A @ Omega + nu * Omega
    Q, R = np.linalg.qr(Y)
    H = Omega.T @ Y
    C = np.linalg.cholesky((H + H.T) / 2).T
    B = np.linalg.solve(C.T, R.T).T
    QQ, RR = np.linalg.qr(Omega)
    WW, SS = QQ.T @ Omega, unit_columns(np.linalg.inv(RR).T)
    scale = (n - k + 1) / (n - paired(WW, WW) + paired(SS, WW) ** 2)
    W, S = Q.T @ Omega, np.linalg.solve(C, B.T).T / np.sqrt(np.diag(np.linalg.inv(H)))
    return np.sum(B * B) - paired(S, S) + paired(S, W) ** 2 * scale - nu * n


def xdiag(A, Omega):
    """The same, section 2.4, probe by probe: (n, k)."""
    Y, found = A @ Omega, []
    for i in range(Omega.shape[1]):
        Q = np.linalg.qr(np.delete(Y, i, axis=1))[0]
        found.append(paired(Q.T, Q.T @ A) + Omega[:, i] * (Y[:, i] - Q @ (Q.T @ Y[:, i])))
    return np.stack(found, axis=1)


def xnysdiag(A, Omega, nu=None):
    """Epperly (2025), probe by probe: (n, k)."""
    nu = shift(A, Omega) if nu is None else nu
    A, found = A + nu * np.eye(len(A)), []
    for i in range(Omega.shape[1]):
        others = np.delete(Omega, i, axis=1)
        Y = A @ others
        rest = A - Y @ np.linalg.solve(others.T @ Y, Y.T)
        found.append(np.diag(A - rest) - nu + Omega[:, i] * (rest @ Omega[:, i]))
    return np.stack(found, axis=1)


def scatter(values):
    """The standard error of the mean over the last axis."""
    return values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def jackknife(estimator, A, Omega, *fixed):
    """The jackknife's error of the mean of an exchangeable estimator, or its scatter if that is larger."""
    k = Omega.shape[1]
    without = np.stack([estimator(A, np.delete(Omega, i, axis=1), *fixed).mean(axis=-1) for i in range(k)], axis=-1)
    moved = np.sqrt((k - 1) / k * np.sum((without - without.mean(axis=-1, keepdims=True)) ** 2, axis=-1))
    return np.maximum(moved, scatter(estimator(A, Omega, *fixed)))
