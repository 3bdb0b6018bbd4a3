"""Reverse mode: one pass back through the record, itself recorded where what it goes through is."""

__all__ = ["pull"]


def pull(ends, starts):
    """The cotangents of ``starts``, None where nothing arrives, from pairs (array, cotangent) at the ends."""
    targets = {x.node for x in starts}
    ends = [(z, u) for z, u in ends if z.node is not None]
    needed = _between([z.node for z, _ in ends], targets)
    sums = {}

    def arrive(node, u):
        if node in needed:
            sums[node] = u if node not in sums else sums[node] + u

    for z, u in ends:
        arrive(z.node, u)
    for node in sorted(needed, key=lambda node: -node.number):  # later steps first
        if node.parents and node in sums:
            for parent, u in zip(node.parents, node.pull(sums[node]), strict=True):
                arrive(parent, u)
    return [sums.get(x.node) for x in starts]


def _between(ends, targets):
    """The nodes on the way from the ends to the targets."""
    seen, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += node.parents
    needed = set()
    for node in sorted(seen, key=lambda node: node.number):
        if node in targets or any(parent in needed for parent in node.parents):
            needed.add(node)
    return needed
