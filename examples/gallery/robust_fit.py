"""
A robust fit
============

One bad point in ten pulls a fit of least squares away from the others. A loss that grows more slowly does not follow
it, and the Gauss-Newton matrix of each of them stays positive semi-definite.
"""

import matplotlib.pyplot as plt
import numpy as np

import linop_gn as lg

rng = np.random.default_rng(3)
t = np.linspace(0.0, 10.0, 60)
true = {"amplitude": np.array(3.0), "decay": np.array(0.3), "frequency": np.array(2.0)}
start = {"amplitude": np.array(2.0), "decay": np.array(0.2), "frequency": np.array(1.9)}


def model(p, t):
    return p["amplitude"] * np.exp(-p["decay"] * t) * np.cos(p["frequency"] * t)


y = model(true, t) + 0.1 * rng.standard_normal(60)
bad = rng.choice(60, 6, replace=False)
y[bad] += rng.uniform(4.0, 9.0, 6)

# %%
# ``f_scale`` is the size of the residuals that still count in full: that of the noise.

fits = {
    loss: lg.least_squares(lambda p: model(p, t) - y, start, loss=loss, f_scale=0.1)
    for loss in ("linear", "huber", "soft_l1", "cauchy")
}
for loss, fit in fits.items():
    off = max(abs(float(fit.x[name]) - float(true[name])) for name in true)
    print(f"{loss:8} {fit.status.name:15} largest error of a parameter {off:.3f}")
print(fits["cauchy"].summary())
assert all(fit.success for fit in fits.values())

# %%
# The losses that are not squares find the curve that the data without the bad points have.

fine = np.linspace(0.0, 10.0, 400)
plt.figure(figsize=(7, 3.6), layout="constrained")
plt.plot(t, y, "k.", label="data")
plt.plot(t[bad], y[bad], "o", mfc="none", color="tab:red", label="shifted")
for loss in ("linear", "cauchy"):
    plt.plot(fine, model(fits[loss].x, fine), label=loss)
plt.plot(fine, model(true, fine), "--", color="0.6", label="true")
plt.legend(frameon=False)
plt.ylim(-4, 8)
plt.xlabel("t")
plt.show()
