"""Parameters and gradients as trees of NamedTuples and tuples, and as dictionaries by dotted name.

A name is the path to an array: "embedding", "blocks.0.feed_forward.w_gate". None stands for what a model lacks.
"""


def named(tree, prefix=""):
    """name -> array, in the order of the fields.   tree: an array, None, or tuples and NamedTuples of trees"""
    if tree is None:
        return {}
    if not isinstance(tree, tuple):
        return {prefix: tree}
    found = {}
    for name, part in _parts(tree):
        found |= named(part, f"{prefix}.{name}" if prefix else name)
    return found


def rebuilt(tree, arrays, prefix=""):
    """The tree with the arrays of a dictionary by name; those of the tree where the dictionary has none."""
    if tree is None:
        return None
    if not isinstance(tree, tuple):
        return arrays.get(prefix, tree)
    parts = [rebuilt(part, arrays, f"{prefix}.{name}" if prefix else name) for name, part in _parts(tree)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _parts(tree):
    """(name, part) of each part of a tuple."""
    names = getattr(tree, "_fields", map(str, range(len(tree))))
    return list(zip(names, tree, strict=True))
