"""What a formula may use, and the readings of it that are plain arrays.   Spec 6.5

A leaf writes its formula once, over an arithmetic `m`. A reading supplies + - * / on its values and the primitives
(exp, sigmoid, ...); the named functions of the chapters are composed here, once for all readings.
"""

import numpy as np

from . import elementary
from .tables import Tables


class Arithmetic(Tables):
    """The functions composed from a reading's primitives; `x` is one of its values, exact where it is branched on."""

    def minimum(self, x, bound):
        """min(x, bound); NaN stays NaN."""
        return self.where(self.real(x) > bound, bound, x)

    def choose(self, x, bound, at_most, beyond):
        """at_most where x <= bound or is NaN, else beyond: x is any value of a formula, compared exactly."""
        return self.where(self.real(x) > bound, beyond, at_most)

    def clip(self, x, low, high):
        return self.where(self.real(x) < low, low, self.minimum(x, high))

    def power(self, x, p):
        """x^p for a whole p >= 0, by multiplications."""
        out = 1
        for _ in range(p):
            out = out * x
        return out

    def root(self, x, p):
        """x^(1/p) for x > 0 and a whole p >= 1."""
        return x if p == 1 else self.sqrt(x) if p == 2 else self.exp(self.log(x) / p)

    def softmax(self, z):
        """exp(z_j) / sum_i exp(z_i) along the last axis, shifted by the maximum."""
        powers = self.exp(z - self.max(z, keepdims=True))
        return powers / self.sum(powers, keepdims=True)

    def masked_softmax(self, z, mask):
        """softmax over the elements where the mask holds, 0 elsewhere; no other may exceed the largest of those."""
        powers = self.where(mask, self.exp(z - self.max(z, keepdims=True)), 0)
        total = self.sum(powers, keepdims=True)
        return powers / self.where(self.real(total) == 0, 1, total)

    def logsumexp(self, z):
        """log(sum_i exp(z_i)) along the last axis."""
        top = self.max(z, keepdims=True)
        total = self.sum(self.exp(z - top), keepdims=True)
        return self.last(self.log(total) + top)

    def last(self, x):
        """Drops a last axis of length 1."""
        return self.sum(x)

    def centre(self, values, weights, keys):
        """values_j - sum_i weights_i values_i, for weights that sum to one and are equal where the keys are.

        Computed on values shifted by that of the largest weight: equal values then give exactly zero in every
        reading, and a dominant weight does not cancel what the small ones leave.
        """
        heaviest = np.argmax(self.real(weights), axis=-1)[..., None]
        shifted = values - self.along(values, np.broadcast_to(heaviest, np.shape(self.real(values))[:-1] + (1,)))
        return shifted - self.sum(weights * shifted, keepdims=True)

    def sigmoid_centre(self, values, z):
        """values_j - sum_i p_i values_i for p = sigmoid(z) / sum sigmoid(z)."""
        s = self.sigmoid(z)
        return self.centre(values, s / self.sum(s, keepdims=True), z)

    def relu(self, x):
        return self.where(self.real(x) <= 0, 0, x)

    def step(self, x):
        """The derivative of relu: 0 at 0; NaN stays NaN."""
        real = self.real(x)
        return self.where(real > 0, 1, self.where(real <= 0, 0, x))

    def silu(self, x, alpha=1):
        """x sigmoid(alpha x)."""
        return self._with_limits(x, lambda t: t * self.sigmoid(t * alpha), 0, np.inf)

    def silu_derivative(self, x, alpha=1):
        """s (1 + alpha x (1 - s)), s = sigmoid(alpha x) and 1 - s = sigmoid(-alpha x)."""
        return self._with_limits(x, lambda t: self._silu_slope(t * alpha), 0, 1)

    def _silu_slope(self, t):
        return self.sigmoid(t) * (1 + t * self.sigmoid(-t))

    def softcap(self, x, cap):
        """cap tanh(x / cap)."""
        return self.tanh(x / cap) * cap

    def softcap_derivative(self, x, cap):
        """1 - tanh(v)^2 = 4 sigmoid(2v) sigmoid(-2v), v = x / cap: nothing cancels."""
        twice = x / cap * 2
        return self.sigmoid(twice) * self.sigmoid(-twice) * 4

    def silu_softcapped(self, x, alpha, cap):
        """cap tanh(x / cap) sigmoid(alpha x)."""
        return self.softcap(x, cap) * self.sigmoid(x * alpha)

    def silu_softcapped_derivative(self, x, alpha, cap):
        """s (softcap'(x) + alpha softcap(x) (1 - s)), s = sigmoid(alpha x) and 1 - s = sigmoid(-alpha x)."""
        slope = self.softcap_derivative(x, cap) + self.softcap(x, cap) * alpha * self.sigmoid(-x * alpha)
        return self.sigmoid(x * alpha) * slope

    def normal_cdf(self, x):
        """Phi(x) = erfc(-x / sqrt 2) / 2."""
        return self.erfc(-x / self.sqrt(self.constant(2))) / 2

    def normal_density(self, t):
        """phi(t) = exp(-t^2 / 2) / sqrt(2 pi)."""
        return self.exp(-(t * t) / 2) / self.sqrt(self.pi * 2)

    def gelu(self, x):
        """x Phi(x)."""
        return self._with_limits(x, lambda t: t * self.normal_cdf(t), 0, np.inf)

    def gelu_derivative(self, x):
        """Phi(x) + x phi(x), phi the density of the normal distribution."""
        # Beyond 64 the value is a number far below every format's least, or 1 but for one: as it is at 64.
        return self._with_limits(x, lambda t: self._gelu_slope(self.clip(t, -64, 64)), 0, 1)

    def _gelu_slope(self, t):
        return self.normal_cdf(t) + t * self.normal_density(t)

    def gelu_tanh(self, x):
        """x/2 (1 + tanh y) = x sigmoid(2y), y = sqrt(2/pi) (x + 0.044715 x^3)."""
        return self._with_limits(x, lambda t: t * self.sigmoid(self._tanh_argument(t)), 0, np.inf)

    def gelu_tanh_derivative(self, x):
        """sigmoid(2y) + x 2y' sigmoid(2y) sigmoid(-2y)."""
        # Beyond 16 the value is 1 and less than 2^-440 more: as it is at 16, where a few hundred digits tell it from 1.
        return self._with_limits(x, lambda t: self._gelu_tanh_slope(self.clip(t, -64, 16)), 0, 1)

    def _gelu_tanh_slope(self, t):
        twice_y = self._tanh_argument(t)
        slope = self.sqrt(8 / self.pi) * (1 + t * t * (3 * self.constant(0.044715)))
        s = self.sigmoid(twice_y)
        return s + t * slope * (s * self.sigmoid(-twice_y))

    def _tanh_argument(self, t):
        return self.sqrt(8 / self.pi) * (t * (1 + t * t * self.constant(0.044715)))

    def sigmoid_derivative(self, x):
        """s (1 - s)."""
        return self.sigmoid(x) * self.sigmoid(-x)

    def sum_over_roots(self, terms, squares):
        """sum_t terms_t / sqrt(squares_t) over the second last axis, kept; squares has one column."""
        return self.sum(terms / self.sqrt(squares), axis=-2, keepdims=True)

    def sqrt_softplus(self, x):
        """sqrt(softplus(x)); below -700, where softplus leaves float64, it is exp(x/2) to more than its last bit."""
        far = self.real(x) < -700
        return self.where(far, self.exp(x / 2), self.sqrt(self.softplus(self.where(far, 0, x))))

    def sqrt_softplus_derivative(self, x):
        """sigmoid(x) / (2 sqrt(softplus(x))); below -700 exp(x/2) / 2."""
        far = self.real(x) < -700
        near = self.where(far, 0, x)
        return self.where(far, self.exp(x / 2) / 2, self.sigmoid(near) / (2 * self.sqrt(self.softplus(near))))

    def _with_limits(self, x, inner, at_minus, at_plus):
        """inner(x), and at an infinity the limit."""
        real = self.real(x)
        low, high = real == -np.inf, real == np.inf
        if not (np.any(low) or np.any(high)):
            return inner(x)
        y = inner(self.where(low | high, 0, x))
        return self.where(high, at_plus, self.where(low, at_minus, y))


class Plain(Arithmetic):
    """A reading whose values are NumPy arrays."""

    pi = np.pi

    def constant(self, c):
        return c

    def take(self, x, index):
        return x[index]

    def along(self, x, index):
        return np.take_along_axis(x, index, axis=-1)

    def where(self, mask, a, b):
        return np.where(mask, a, b)


class Binary64(Plain):
    """IEEE binary64 and the library's fixed algorithms: one operation for each written one.   Profile float64."""

    exp = staticmethod(elementary.exp)
    expm1 = staticmethod(elementary.expm1)
    log = staticmethod(elementary.log)
    log1p = staticmethod(elementary.log1p)
    sigmoid = staticmethod(elementary.sigmoid)
    softplus = staticmethod(elementary.softplus)
    tanh = staticmethod(elementary.tanh)
    erf = staticmethod(elementary.erf)
    erfc = staticmethod(elementary.erfc)
    sqrt = staticmethod(np.sqrt)

    def array(self, stored):
        return stored

    def real(self, x):
        return x

    def sum(self, x, axis=-1, keepdims=False):
        """Sequential along the axis: np.add.accumulate is the recurrence itself, np.sum is not."""
        for one in sorted((a % x.ndim for a in axes_of(axis)), reverse=True):
            x = np.take(np.add.accumulate(x, axis=one), [-1], axis=one)
        return x if keepdims else x.squeeze(tuple(a % x.ndim for a in axes_of(axis)))

    def max(self, x, axis=-1, keepdims=False):
        return np.max(x, axis=axis, keepdims=keepdims)


def axes_of(axis):
    """The axes of a sum, as a tuple."""
    return axis if isinstance(axis, tuple) else (axis,)
