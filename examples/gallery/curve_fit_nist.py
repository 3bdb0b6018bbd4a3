"""
A curve fit with error bars, held to NIST
=========================================

The data set Misra1a of NIST's Statistical Reference Datasets, from the start that is meant to be hard. The certified
parameters and standard deviations are printed beside those found.
"""

import matplotlib.pyplot as plt
import numpy as np

import linop_gn as lg

pressure = np.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0])
volume = np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78])


def model(p, x):
    return p["b1"] * (1 - np.exp(-p["b2"] * x))


fit = lg.least_squares(lambda p: model(p, pressure) - volume, {"b1": np.array(500.0), "b2": np.array(1e-4)})
print(fit.summary())

# %%
# NIST certifies these to eleven digits.

certified = {"b1": (2.3894212918e02, 2.7070075241e00), "b2": (5.5015643181e-04, 7.2668688436e-06)}
errors = fit.standard_errors()
for name, (value, deviation) in certified.items():
    print(f"{name}: {float(fit.x[name]):.10g} (certified {value:.10g}) +- {float(errors[name]):.6g} ({deviation:.6g})")
    assert abs(fit.x[name] / value - 1) < 1e-6 and abs(errors[name] / deviation - 1) < 1e-4

# %%
# The band of the model and that of an observation, here beyond the data.

grid = np.linspace(0.0, 1500.0, 80)
figure, (axes, beside) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for kind, alpha in (("prediction", 0.2), ("confidence", 0.5)):
    band = fit.predict(model, grid, kind=kind, level=0.99)
    axes.fill_between(grid, band.lower, band.upper, alpha=alpha, label=f"{kind}, 99 %", color="tab:blue", linewidth=0)
    beside.plot(grid, band.upper - band.value, label=f"{kind}, 99 %")
axes.plot(pressure, volume, "k.", label="data")
axes.set(xlabel="pressure", ylabel="volume", title="The fit")
beside.set(xlabel="pressure", title="Half the width of the bands")
for panel in (axes, beside):
    panel.legend(frameon=False)
plt.show()
