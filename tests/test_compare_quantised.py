"""Verdicts on layers whose weights are codes and scales, and on an accumulator that keeps few bits of them."""

from itertools import pairwise, product

import numpy as np
import pytest
from other_kernels import Case, plain_config, verdicts

import refmoe
from refmoe.compare import find_accumulator
from refmoe.formats import decode, round_to
from refmoe.golden.inputs import make_inputs, prepare
from refmoe.golden.quantised import quantised_rows
from refmoe.golden.weights import maker_pool

MATRICES = ("w_gate", "w_up", "w_down")


class Quantised(Case):
    """A case whose expert matrices are quantised."""

    def __init__(self, config, tokens, scheme, rule=None, arrays=None):
        super().__init__(plain_config(), 1)  # the policy; what it is a case of follows
        self.config = config
        tokens, rows, stored = prepare(config, self.num, tokens, True, 0, arrays or {})
        self.rows = quantised_rows(rows, scheme, rule)
        with maker_pool() as pool:
            self.inputs = make_inputs(config, self.num, tokens, self.rows, stored, pool)

    def dense(self):
        """The parameters of a kernel that rounds each product of code and scale to float32 first."""
        params = self.inputs.params
        packed = {name: getattr(params, name) for name in MATRICES}
        return params._replace(**{n: np.stack([w.rounded(e) for e in range(len(w))]) for n, w in packed.items()})


SCHEMES = [("fp8-block", None), ("mxfp4", "floor"), ("nvfp4", None), ("int4", None)]


@pytest.mark.parametrize(("scheme", "rule"), SCHEMES)
def test_quantised_layers_pass_and_a_lost_scale_is_wrong(scheme, rule):
    case = Quantised(plain_config(hidden_size=32, intermediate_size=32, num_experts=4), 12, scheme, rule)
    params = case.dense()
    assert verdicts(case.compare(case.of(params=params))) == {}
    params.w_up[2] *= 2
    first = case.compare(case.of(params=params)).first
    assert (first.name, first.verdict, first.worst_expert) == ("experts.up_rows", "wrong", 2)


def hopper(x, w, scale):
    """(N, K) times (M, K) codes of E4M3: 32 products at a time beside the sum so far, each cut at 13 bits below the
    largest; after every 128 scaled and added in float32."""
    total = np.zeros((len(x), len(w)), np.float32)
    for k in range(0, x.shape[1], 128):
        acc = np.zeros(total.shape)
        for b in range(k, min(k + 128, x.shape[1]), 32):
            terms = np.concatenate([acc[..., None], x[:, None, b : b + 32] * w[None, :, b : b + 32]], axis=-1)
            last = 2.0 ** (np.frexp(np.abs(terms).max(axis=-1, keepdims=True))[1] - 1 - 13)
            acc = (np.trunc(terms / last) * last).sum(axis=-1)
        total = (total + acc.astype(np.float32) * scale[:, :, k // 128]).astype(np.float32)
    return total


def test_sums_of_thirteen_bits_stay_within_the_bound_of_their_accumulator_and_beyond_that_of_float32():
    """E4M3 activations with a scale for 1 x 128, weights with one for 128 x 128, as DeepSeek-V3's kernels have them."""
    D, F, T, rng = 384, 48, 16, np.random.default_rng(0)
    x_codes = round_to(rng.normal(size=(T, D)) * 64, "E4M3", "saturate").astype(np.float64)
    x_scales = 2.0 ** rng.integers(-8, -4, (T, D // 128))
    arrays = {"x": (x_codes * np.repeat(x_scales, 128, axis=1)).astype(np.float32)}
    config = plain_config(hidden_size=D, intermediate_size=F, num_experts=2, top_k=1)
    case = Quantised(config, None, "fp8-block", arrays=arrays)
    run = refmoe.moe_forward(case.inputs.x, case.inputs.params, config, case.num)
    tokens, offsets, w = run.plan.row_slot, run.plan.expert_offsets, case.inputs.params.w_up
    rows = np.zeros((T, F), np.float32)
    for e, (a, b) in enumerate(pairwise(offsets)):
        scale = x_scales[tokens[a:b], None, :] * w.scales[e].reshape(1, 1, -1)
        rows[a:b] = hopper(x_codes[tokens[a:b]], decode(w.codes[e], "E4M3").astype(np.float64), scale)
    verdict = case.compare({"experts.up_rows": rows}, accumulator="hopper-fp8").verdicts[0]
    assert verdict.verdict == "passed"
    assert verdict.of_statistical > 0.05, "a bound that is never near says nothing"
    assert case.compare({"experts.up_rows": rows}).first is not None, "float32 errs far less"


def test_the_bound_of_few_bits_is_the_contracts():
    """Within 128 products four blocks of 32, each 33 terms cut at 13 bits and one more cut of the sum; then float32."""
    row, u = find_accumulator("hopper-fp8"), 2.0**-24
    for K, cut in product((128, 1024, 7168), (4 * (33 + 1) * 2.0**-13,)):
        blocks = K // 128
        assert row.kappa(K) == cut + blocks * u / (1 - blocks * u)
