"""Spectra: what an operator's products tell of its eigenvalues."""
