"""
An inverse problem, with an operator of PyLops
==============================================

A blurred signal with noise is made sharp again. The operator is PyLops', the solver of least squares ours, and one
Krylov space answers for all weights of the regularisation at once.
"""

import matplotlib.pyplot as plt
import numpy as np
import pylops

import linop_gn as lg

rng = np.random.default_rng(0)
n = 200
true = np.zeros(n)
true[[40, 62, 70, 120, 155]] = [1.0, -0.6, 0.8, 1.2, -0.9]
true = np.convolve(true, np.hanning(9), mode="same")
blur = np.exp(-0.5 * (np.arange(-15, 16) / 4.0) ** 2)
B = pylops.signalprocessing.Convolve1D(n, h=blur / blur.sum(), offset=15)
y = B @ true + 0.01 * rng.standard_normal(n)

# %%
# SciPy's and PyLops' operators are taken as they are. LSMR says how far it came, and what the noise leaves.

A = lg.from_scipy(B)
plain = lg.solve(A, y, lg.LSMR(max_steps=500))
print(plain)

# %%
# Without regularisation the noise is all that one sees. With a weight w on ||x||^2 the equations are (B^T B + w I) x
# = B^T y: one Krylov space for forty weights, and the discrepancy principle picks the one whose residual is as large
# as the noise.

weights = np.logspace(-6, 1, 40)
space = lg.krylov(A.T @ A, A.T @ y, k=60)
solutions = space.solve(damping=weights).x
residuals = np.linalg.norm(B.matmat(solutions) - y[:, None], axis=0) / n**0.5
best = int(np.argmin(abs(residuals - 0.01)))
print(f"weight {weights[best]:.1e}, {space.products} products for {len(weights)} weights")
off = np.linalg.norm(solutions[:, best] - true) / np.linalg.norm(true)
print(f"relative error {off:.2f}; unregularised {np.linalg.norm(plain.x - true) / np.linalg.norm(true):.2f}")
assert off < 0.5

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.loglog(residuals, np.linalg.norm(solutions, axis=0), ".-")
left.loglog(residuals[best], np.linalg.norm(solutions[:, best]), "o", color="tab:red", mfc="none")
left.set(xlabel="residual, a sample", ylabel="norm of the solution", title="All weights")
right.plot(true, "--", color="0.6", label="true")
right.plot(y, color="0.8", label="blurred, with noise")
right.plot(solutions[:, best], label="found")
right.legend(frameon=False)
plt.show()
