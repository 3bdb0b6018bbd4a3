"""What there is to know of a spectrum from products alone: traces, diagonals and functions, with error bars."""
