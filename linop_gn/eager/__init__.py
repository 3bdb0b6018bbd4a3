"""The contract's eager half: what NumPy, torch, CuPy and a newcomer's backend inherit."""

from ..moved import forwarding

__getattr__ = forwarding("linop_gn.eager")
