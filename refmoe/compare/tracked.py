"""Arrays that carry what is known of another implementation's values of them.   Spec 7.12

A `Tracked` is the stored tensor of the law (or of the implementation that is compared, where it was submitted). Beside
it go arrays of its shape: the exact value before rounding; how far the other's may be from what is stored (`bound` for
any data, `variance` to first order, `common` the part of that which moves a whole row by one factor, as a weight's
error does); the same three for a value that was submitted (`allowed`, `spread`, `coherent`); where each element was
made. They follow through copies, permutations, slices, joints and masks; arithmetic happens in `tracking` alone.
"""

import numpy as np

FIELDS = ("value", "bound", "variance", "allowed", "spread", "coherent", "common", "origin")
STRUCTURAL = {
    *(np.concatenate, np.where, np.stack, np.split, np.take_along_axis, np.zeros_like, np.copy, np.reshape),
    *(np.transpose, np.swapaxes, np.repeat, np.broadcast_to, np.expand_dims, np.squeeze, np.moveaxis),
}


class Tracked(np.ndarray):
    """An array with `parts`: field -> array. Zero stands for "exact" and, as an origin, for "made by nobody"."""

    def __array_finalize__(self, made_from):
        self.parts = None

    def part(self, field):
        return _part(self, field)

    def __getitem__(self, index):
        return _like(np.asarray(self)[index], lambda field: _part(self, field)[index])

    def __setitem__(self, index, new):
        np.asarray(self)[index] = np.asarray(new)
        for field in FIELDS:
            self.parts[field][index] = _part(new, field)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __array_function__(self, function, types, args, kwargs):
        plain = function(*_mapped(args, np.asarray), **_mapped(kwargs, np.asarray))
        if function not in STRUCTURAL:
            return plain

        def of(field):
            return function(*_mapped(args, lambda a: _part(a, field)), **_mapped(kwargs, lambda a: _part(a, field)))

        if isinstance(plain, list):
            made = {field: of(field) for field in FIELDS}
            return [track(one, **{field: made[field][i] for field in FIELDS}) for i, one in enumerate(plain)]
        return _like(plain, of)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = getattr(ufunc, method)(*_mapped(inputs, np.asarray), **_mapped(kwargs, np.asarray))
        if ufunc is not np.negative or method != "__call__":
            return plain
        return _like(plain, lambda field: -self.parts[field] if field == "value" else self.parts[field])

    def astype(self, dtype, **kwargs):
        return _like(np.asarray(self).astype(dtype, **kwargs), lambda field: self.parts[field])

    def copy(self, order="C"):
        return _like(np.asarray(self).copy(order), lambda field: self.parts[field].copy(order))

    def reshape(self, *shape, **kwargs):
        return _like(np.asarray(self).reshape(*shape, **kwargs), lambda f: self.parts[f].reshape(*shape, **kwargs))

    def transpose(self, *axes):
        return _like(np.asarray(self).transpose(*axes), lambda field: self.parts[field].transpose(*axes))

    def swapaxes(self, a, b):
        return _like(np.asarray(self).swapaxes(a, b), lambda field: self.parts[field].swapaxes(a, b))

    def squeeze(self, axis=None):
        return _like(np.asarray(self).squeeze(axis), lambda field: self.parts[field].squeeze(axis))

    @property
    def T(self):
        return self.transpose()


def track(array, **parts):
    """The array with the fields given; a field left out says that the array is exact and nobody's."""
    made = np.asarray(array).view(Tracked)
    exact = {"value": np.asarray(array, np.float64), "origin": np.zeros(array.shape, np.int64)}
    missing = {field: np.zeros(array.shape) for field in FIELDS if field not in parts and field not in exact}
    made.parts = exact | missing | parts
    return made


def is_lost(array):
    """Is this a Tracked that went through something that does not carry what it knew?"""
    return isinstance(array, Tracked) and array.parts is None


def _like(plain, of):
    if not isinstance(plain, np.ndarray):
        return plain  # a single number
    return track(plain, **{field: of(field) for field in FIELDS})


def _part(array, field):
    """A field of a Tracked; of any other array of floats itself as the value, and zeros; integers as they are."""
    if isinstance(array, Tracked):
        return np.asarray(array) if array.parts is None and field == "value" else array.parts[field]
    if not isinstance(array, (np.ndarray, np.floating, float)) or np.asarray(array).dtype.kind != "f":
        return array
    if field == "value":
        return np.asarray(array, np.float64)
    return np.zeros(np.shape(array), np.int64 if field == "origin" else np.float64)


def _mapped(arguments, change):
    """The arguments with every array in them changed, in lists and tuples too."""
    if isinstance(arguments, dict):
        return {name: _mapped(one, change) for name, one in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(_mapped(one, change) for one in arguments)
    return change(arguments) if isinstance(arguments, (np.ndarray, np.floating)) else arguments
