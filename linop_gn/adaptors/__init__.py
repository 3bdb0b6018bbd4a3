"""To other libraries and from them: their optimisers, estimators, operators and parameters.

What needs a framework is a module ``with_<library>`` of its backend, found by :mod:`.found`.
"""
