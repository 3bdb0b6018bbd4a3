"""The curvature of a model: losses, objectives, and their Hessian and Gauss-Newton operators."""
