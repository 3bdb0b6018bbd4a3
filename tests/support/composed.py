"""Compositions of the parts of second-order methods, and the named ones, on Gauss-Newton curvature."""

import linop_gn as lg

D, S, C = lg.descents, lg.searches, lg.controls
KEEPING = lg.CG(rtol=1e-6, max_steps=30, keep=1.3)
RADIUS = {"control": C.Radius(), "level": 1.0}
COMPOSED = {
    "solve": lg.SecondOrder(level=1e-2),
    "forcing": lg.SecondOrder(descent=D.Solve(lg.CG(max_steps=50), forcing=lg.EisenstatWalker()), level=1e-2),
    "GLTR": lg.SecondOrder(descent=D.TrustRegion(), **RADIUS),
    "Steihaug": lg.SecondOrder(descent=D.Steihaug(), **RADIUS),
    "Krylov": lg.SecondOrder(descent=D.Krylov(6), **RADIUS),
    "Krylov, damped": lg.SecondOrder(descent=D.Krylov(6, of="damping"), level=1e-2),
    "dogleg": lg.SecondOrder(descent=D.Dogleg(), **RADIUS),
    "eigen": lg.SecondOrder(descent=D.Eigen(), level=1e-2),
    "eigen, every": lg.SecondOrder(descent=D.Eigen(every=3), level=1e-2),
    "Goldstein": lg.Newton(curvature=lg.GGN, search=S.Goldstein()),
    "Wolfe": lg.Newton(curvature=lg.GGN, search=S.Wolfe()),
    "grid": lg.Newton(curvature=lg.GGN, search=S.Grid(count=9, decrease=True)),
    "iterates": lg.SecondOrder(descent=D.Solve(KEEPING, warm=0.95), search=S.Iterates(), level=1e-2),
    "momentum": lg.EGN(1e-2, momentum=0.1),
    "scaled": lg.SecondOrder(level=1e-2, x_scale="start", average=0.9),
}
NAMED = {
    "Newton": lg.Newton(curvature=lg.GGN),
    "NewtonCG": lg.NewtonCG(curvature=lg.GGN),
    "GaussNewton": lg.GaussNewton(),
    "TrustRegion": lg.TrustRegion(curvature=lg.GGN),
    "SGN": lg.SGN(),
    "HessianFree": lg.HessianFree(max_steps=20),
    "EGN": lg.EGN(1e-2),
    "layerwise": lg.LayerwiseGaussNewton(1e-2),
}
