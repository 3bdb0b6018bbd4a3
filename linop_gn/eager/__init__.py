"""The contract's eager half: what NumPy, torch, CuPy and a newcomer's backend inherit."""
