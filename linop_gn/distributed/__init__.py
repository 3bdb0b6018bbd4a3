"""Sums over processes, each of which has its share of the data.

A model's value, gradient and products are sums over examples, divided once. So each process sums over its own, and one
collective adds up what they have, the weights with it:

    L = (sum_r sum_i w_i l_i) / W,    G v = (1 / W) sum_r J_r^T H_r J_r v,    W = sum_r sum_i w_i

Parameters and vectors are the same on all processes, and so is all that a solver does with them.
"""

from .parallel import DataParallel, telling
from .reduction import OtherProcessError, Reduction

__all__ = ["DataParallel", "OtherProcessError", "Reduction", "telling"]
