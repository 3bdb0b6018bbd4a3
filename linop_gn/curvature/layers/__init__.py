"""The Jacobian of a model by its layers: what each example's gradients are products of, and what is made of it.

:mod:`.rows` the factors of all rows; :mod:`.gram` their inner products; :mod:`.squares` sums of their squares;
:mod:`.blocks` products with diagonal blocks; :mod:`.root` with the Gauss-Newton operator's root.
"""
