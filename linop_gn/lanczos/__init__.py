"""The Lanczos process, its basis, and what the basis answers."""
