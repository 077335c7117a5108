"""The lab's decoder: every gradient by complex step, an error planted in every line of it, the same bits everywhere."""

from math import sqrt

import numpy as np
import pytest
from cases import same_bits
from planting import planted

from refmoe import (
    BalanceLoss,
    DispatchConfig,
    ExpertsConfig,
    LossesConfig,
    MoEConfig,
    Numerics,
    RoutingConfig,
    ZLoss,
)
from refmoe.lab.decoder import (
    DecoderConfig,
    DecoderNumerics,
    DenseConfig,
    decoder_backward,
    decoder_forward,
    init_decoder,
)
from refmoe.lab.decoder.attention import _parts, linear_bias
from refmoe.lab.decoder.check import check_decoder
from refmoe.lab.trees import named
from refmoe.recipes import generate_ids

MOE = MoEConfig(
    hidden_size=4, intermediate_size=3, num_experts=3, top_k=2,
    routing=RoutingConfig(normalize=True),
    losses=LossesConfig(balance=BalanceLoss(coefficient=0.1, scope="sequence"), z=ZLoss(coefficient=0.01)),
)  # fmt: skip
SHARED = MoEConfig(
    hidden_size=4, intermediate_size=2, num_experts=4, top_k=2,
    routing=RoutingConfig(score_fn="sigmoid", normalize=True, selection_bias=True),
    experts=ExpertsConfig(shared_intermediate_size=3, biases=True),
    dispatch=DispatchConfig(capacity=4),
)  # fmt: skip
LEARNED = DecoderConfig(4, 2, 3, (MOE, DenseConfig(4, 3)), vocab_size=5)
PLAIN = DenseConfig(4, 3, gated=False, activation="gelu_tanh")
LINEAR = DecoderConfig(4, 2, 3, (PLAIN, SHARED), "linear", vocab_size=5)
TINY = DecoderConfig(2, 1, 3, (DenseConfig(2, 1),), vocab_size=3)


def batch(config, sequences=2, seed=0):
    ids = generate_ids("tokens", (sequences, config.context + 1), seed, config.vocab_size)
    return ids[:, :-1], ids[:, 1:]


def run(config, num, params=None):
    tokens, targets = batch(config)
    params = init_decoder(config, 0, num.dtype) if params is None else params
    record = decoder_forward(tokens, targets, params, config, num)
    return record, decoder_backward(tokens, targets, params, record, config, num)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LEARNED, LINEAR], ids=["learned", "linear"])
def test_every_parameter_of_a_two_layer_model_agrees_with_complex_step_in_every_element(config):
    errors = check_decoder(config)
    differentiable = [name for name in named(init_decoder(config)) if not name.endswith("selection_bias")]
    assert list(errors) == differentiable
    assert max(errors.values()) <= 1e-12, errors


PLANTED = [
    ("norm", 'd_w = num.sum_rows("d_w_norm", d_out * record.normed)', 'd_w = num.sum_rows("d_w_norm", d_out)'),
    ("norm", "scaled = d_out * w", "scaled = d_out * 1"),
    ("norm", "(scaled - record.normed * along) / record.rms", "(scaled + record.normed * along) / record.rms"),
    ("norm", "(scaled - record.normed * along) / record.rms", "(scaled - record.normed * along)"),
    ("attention", "[(d_out, params.w_attention_out)]", "[(d_out, params.w_attention_out.T)]"),
    ("attention", '"d_w_attention_out", d_out, context', '"d_w_attention_out", d_out, x'),
    ("attention", 'num.contract("d_attention_weights", d_context, v, offsets)', "weights"),
    ("attention", '"d_v", weights, d_context, offsets', '"d_v", d_weights, d_context, offsets'),
    ("attention", "(d_weights - along) * weights", "(d_weights - along * 0) * weights"),
    ("attention", "[d_q * root, d_k, d_v]", "[d_q, d_k, d_v]"),
    ("attention", '"d_k", d_logits, _rows(q), offsets', '"d_k", d_logits, _rows(q) * 2, offsets'),
    ("attention", "_tokens([d_q * root, d_k, d_v]", "_tokens([d_k, d_q * root, d_v]"),
    ("feed_forward", "return rows.d_x_rows, SharedParams", "return d_y, SharedParams"),
    ("ends", 'rows = d_x[np.argsort(flat, kind="stable")]', "rows = d_x"),
    ("ends", ", rows, offsets, d_embedding)", ", rows, offsets)"),
    ("ends", 'num.sum("d_positions", list(by_place))', 'num.sum("d_positions", list(by_place[:1]))'),
    ("ends", "targets.reshape(-1)] -= 1 / T", "targets.reshape(-1)] -= 1"),
    ("ends", 'num.contract_backward_x("d_final_x", [(d_logits, embedding)])', "x"),
    ("model", "d_middle = d_y + d_middle", "d_middle = d_middle"),
    ("model", "return d_middle + d_x, BlockParams", "return d_x, BlockParams"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new"), PLANTED)
def test_an_error_in_any_line_of_the_way_back_is_noticed(module, old, new):
    with planted(f"lab.decoder.{module}", old, new):
        assert not max(check_decoder(TINY).values()) <= 1e-12


def test_the_planted_errors_are_noticed_for_their_own_sake():
    assert max(check_decoder(TINY).values()) <= 1e-12


def test_the_layers_gradients_come_through():
    with planted("lab.decoder.feed_forward", "return grads.d_x, ", "return grads.d_x_experts, "):
        assert not max(check_decoder(LEARNED).values()) <= 1e-12


# --- the forward, against a plain reading of the formulas -------------------------------------------------------------


def plain(tokens, params, config):
    """The logits of one sequence by loops over heads and places, in float64."""

    def norm(x, w):
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + config.norm_eps) * w

    def attention(x, block):
        D, H, d, out = config.hidden_size, config.num_heads, config.head_size, []
        q, k, v = ((x @ block.w_qkv[i * D : (i + 1) * D].T).reshape(-1, H, d) for i in range(3))
        for i in range(len(x)):
            row = []
            for h in range(H):
                slope = 2.0 ** (-8 * (h + 1) / H) if config.positions == "linear" else 0
                z = np.array([q[i, h] @ k[j, h] / sqrt(d) - slope * (i - j) for j in range(i + 1)])
                p = np.exp(z - z.max())
                row.append((p / p.sum()) @ v[: i + 1, h])
            out.append(np.concatenate(row))
        return np.array(out) @ block.w_attention_out.T

    x = params.embedding[tokens]
    x = x if params.positions is None else x + params.positions[: len(tokens)]
    for block in params.blocks:
        x = x + attention(norm(x, block.w_attention_norm), block)
        inner, h = block.feed_forward, norm(x, block.w_feed_forward_norm)
        gate = h @ inner.w_gate[0].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ inner.w_up[0].T)) @ inner.w_down[0].T
    return norm(x, params.w_final_norm) @ params.embedding.T


@pytest.mark.parametrize("positions", ["learned", "linear"])
def test_the_forward_is_what_its_formulas_say(positions):
    config = DecoderConfig(8, 4, 6, (DenseConfig(8, 5), DenseConfig(8, 5)), positions, vocab_size=7)
    num, params = DecoderNumerics("float64", backend="numpy"), init_decoder(config, 1, np.float64)
    params = params._replace(w_final_norm=params.w_final_norm + np.arange(8) / 8)
    tokens, targets = batch(config)
    record = decoder_forward(tokens, targets, params, config, num)
    want = np.concatenate([plain(row, params, config) for row in tokens])
    assert np.abs(record.head.logits - want).max() <= 1e-13
    lse = np.log(np.exp(want).sum(axis=1))
    assert abs(record.loss - (lse - want[np.arange(len(want)), targets.reshape(-1)]).mean()) <= 1e-13


def test_linear_biases_fall_by_powers_of_two():
    bias = linear_bias(8, 3)
    assert [-bias[h, 1, 0] for h in range(8)] == [2.0**-n for n in range(1, 9)]  # the slopes of the paper
    assert [-bias[0, 2, j] for j in range(3)] == [1.0, 0.5, 0.0]
    assert [-linear_bias(3, 2)[h, 1, 0] for h in range(3)] == [2.0**-3, 2.0**-6, 2.0**-8]


def test_no_token_sees_what_comes_after_it():
    num = DecoderNumerics("chain")
    config = DecoderConfig(4, 2, 6, (MOE, DenseConfig(4, 3)), vocab_size=5)
    params, (tokens, targets) = init_decoder(config), batch(config, 1)
    logits = decoder_forward(tokens, targets, params, config, num).head.logits
    for at in range(6):
        moved = tokens.copy()
        moved[0, at] = (moved[0, at] + 1) % 5
        other = decoder_forward(moved, targets, params, config, num).head.logits
        assert same_bits(logits[:at], other[:at])
        assert not same_bits(logits[at], other[at])


def test_a_logit_that_is_not_used_may_be_the_largest():
    """The formula of the softmax is shifted by the largest of the whole row: of those used."""
    params = init_decoder(LEARNED)
    loud = params.blocks[0]._replace(w_qkv=params.blocks[0].w_qkv * 64)
    loud = params._replace(blocks=(loud, params.blocks[1]))
    record, _ = run(LEARNED, DecoderNumerics("chain"), loud)
    used = np.tile(record.layout.used, (len(record.blocks[0].attention.weights) // 3, 1))
    q, k, _ = _parts(record.blocks[0].attention.qkv, record.layout)
    logits = (q @ k.transpose(0, 2, 1)).reshape(used.shape)
    exceeds = logits.max(axis=1) > np.where(used, logits, -np.inf).max(axis=1) + 120
    assert exceeds.any()
    weights = record.blocks[0].attention.weights
    assert (weights[~used] == 0).all() and np.abs(weights.sum(axis=1) - 1).max() < 1e-6
    for backend in ("numpy", "c"):
        other, _ = run(LEARNED, DecoderNumerics("chain", backend=backend), loud)
        assert same_bits(other.blocks[0].attention.weights, weights)


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["chain", "exact", "float64"])
@pytest.mark.parametrize("config", [LEARNED, LINEAR], ids=["learned", "linear"])
def test_numpy_and_c_and_any_number_of_threads_make_the_same_bits(profile, config):
    (want, want_grads), *others = [
        run(config, DecoderNumerics(profile, backend=backend, threads=threads))
        for backend, threads in [("numpy", None), ("c", 1), ("c", 2)]
    ]
    for record, grads in others:
        assert same_bits(record.head.logits, want.head.logits) and same_bits(record.total, want.total)
        for name, array in named(want_grads).items():
            assert same_bits(named(grads)[name], array), name


def test_a_sequences_gradients_do_not_depend_on_its_neighbours_place():
    """Sequences the other way round: what is made token by token keeps its bits."""
    num, params, (tokens, targets) = DecoderNumerics("chain"), init_decoder(LEARNED), batch(LEARNED)
    there = decoder_forward(tokens, targets, params, LEARNED, num).head.logits.reshape(2, 3, -1)
    back = decoder_forward(tokens[::-1], targets[::-1], params, LEARNED, num).head.logits.reshape(2, 3, -1)
    assert same_bits(there, back[::-1])


def test_first_values_are_the_same_bits_in_both_formats_and_differ_between_blocks():
    narrow, wide = named(init_decoder(LEARNED, 3)), named(init_decoder(LEARNED, 3, np.float64))
    assert all((narrow[name] == wide[name]).all() for name in narrow)
    two = init_decoder(DecoderConfig(4, 2, 3, (MOE, MOE), vocab_size=5))
    assert not (two.blocks[0].feed_forward.w_up == two.blocks[1].feed_forward.w_up).any()
    assert not (two.blocks[0].w_qkv == two.blocks[1].w_qkv).all()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: DecoderConfig(4, 3, 3, (MOE,)), ValueError, "num_heads: expected a divisor of hidden_size 4, got 3; "),
        (lambda: DecoderConfig(4, 2, 0, (MOE,)), ValueError, "context: expected a whole number from 1 on, got 0; "),
        (lambda: DecoderConfig(4, 2, 3, ()), ValueError, "blocks: expected at least one block, got none; "),
        (lambda: DecoderConfig(8, 2, 3, (MOE,)), ValueError, r"blocks\.0\.hidden_size: expected 8, got 4; "),
        (lambda: DecoderConfig(4, 2, 3, ("moe",)), TypeError, r"blocks\.0: expected a MoEConfig or Dense"),
        (lambda: DecoderConfig(4, 2, 3, (MOE,), "rotary"), ValueError, "positions: expected one of learned, linear, "),
        (lambda: DecoderConfig(4, 2, 3, (MOE,), norm_eps=0), ValueError, "norm_eps: expected a positive number, got"),
        (lambda: DenseConfig(4, 3, activation="tanh"), ValueError, "activation: expected one of silu, gelu"),
        (lambda: DecoderNumerics("chain", "bf16"), ValueError, "store: expected float32, or float64 in its"),
    ],
)  # fmt: skip
def test_what_makes_no_decoder_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_tokens_that_do_not_fit_are_refused():
    num, params, (tokens, targets) = DecoderNumerics("chain"), init_decoder(LEARNED), batch(LEARNED)
    longer = np.zeros((1, 4), np.int64)
    for bad, text in [
        ((tokens * 2.0, targets), "tokens: expected an integer array"),
        ((tokens, targets[:1]), "targets: expected the shape of tokens, at most 3 a row, got"),
        ((longer, longer), "tokens: expected the shape of tokens, at most 3 a row, got"),
        ((tokens + 5, targets), "tokens: expected ids from 0 to 4, got 5 to"),
    ]:
        with pytest.raises((TypeError, ValueError), match=text):
            decoder_forward(*bad, params, LEARNED, num)
    with pytest.raises(TypeError, match="num: expected a DecoderNumerics, got Numerics; "):
        decoder_forward(tokens, targets, params, LEARNED, Numerics("chain"))
