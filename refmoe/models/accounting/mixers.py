"""Tensors of everything that mixes tokens: attention in its variants, and linear recurrences.   Spec 0.3

Each function takes the model's width D and a preset's figures, and returns name -> shape; a matrix is (out, in).
`MIXERS` is the table of kinds. Counts follow the checkpoints' own tensors, stored buffers included.
"""


def grouped_query(D, heads, kv_heads, head_size, value_size=None, qkv_bias=False, output_bias=False, qk_norm=None,
                  sinks=False, gated=False, head_gates=False):  # fmt: skip
    """q (h d, D), k (h_kv d, D), v (h_kv d_v, D), o (D, h d_v); multi-head attention has h_kv = h.

    value_size d_v where it is not d. qk_norm "head": one vector of d for q and one for k; "full": over all heads of
    each. gated: q is twice as wide, its second half gates the output (Qwen3-Next). sinks: one extra logit a head
    (GPT-OSS). head_gates: a gate a head, (h, D) (Laguna).
    """
    q, kv, d_v = heads * head_size, kv_heads * head_size, value_size or head_size
    shapes = {"q": (q * (2 if gated else 1), D), "k": (kv, D), "v": (kv_heads * d_v, D), "o": (D, heads * d_v)}
    if qkv_bias:
        shapes |= {f"{n}_bias": shapes[n][:1] for n in "qkv"}
    if output_bias:
        shapes["o_bias"] = (D,)
    if qk_norm is not None:
        shapes |= {"q_norm": (q if qk_norm == "full" else head_size,)}
        shapes |= {"k_norm": (kv if qk_norm == "full" else head_size,)}
    shapes |= {"head_gates": (heads, D)} if head_gates else {}
    return shapes | ({"sinks": (heads,)} if sinks else {})


def latent(D, heads, q_rank, kv_rank, nope_size, rope_size, value_size, indexer_heads=0, indexer_size=0):
    """Multi-head latent attention (DeepSeek-V2): keys and values from one normed latent of kv_rank, beside rope_size.

    q_rank 0: queries straight from x. indexer_heads > 0 adds the sparse-attention indexer of DeepSeek-V3.2: queries
    from the query latent, one key with a LayerNorm, one weight a head.
    """
    q = heads * (nope_size + rope_size)
    shapes = {"kv_down": (kv_rank + rope_size, D), "kv_norm": (kv_rank,)}
    shapes |= {"kv_up": (heads * (nope_size + value_size), kv_rank), "o": (D, heads * value_size)}
    shapes |= {"q_down": (q_rank, D), "q_norm": (q_rank,), "q_up": (q, q_rank)} if q_rank else {"q": (q, D)}
    return shapes | (_indexer(D, q_rank, indexer_heads, indexer_size) if indexer_heads else {})


def _indexer(D, q_rank, heads, size):
    shapes = {"indexer_q": (heads * size, q_rank), "indexer_k": (size, D), "indexer_weights": (heads, D)}
    return shapes | {"indexer_norm": (size,), "indexer_norm_bias": (size,)}


def gated_delta(D, key_heads, value_heads, key_size, value_size, kernel_size):
    """Gated delta rule (Qwen3-Next): q, k, v and an output gate z, two scalars a value head, a short convolution.

    The convolution runs over q, k and v without bias; A and dt are one number a value head; the output's norm is
    shared by the heads.
    """
    k, v = key_heads * key_size, value_heads * value_size
    shapes = {"qkvz": (2 * k + 2 * v, D), "beta_alpha": (2 * value_heads, D), "o": (D, v), "norm": (value_size,)}
    return shapes | {"convolution": (2 * k + v, 1, kernel_size), "A_log": (value_heads,), "dt_bias": (value_heads,)}


def mamba2(D, heads, head_size, groups, state_size, kernel_size):
    """Mamba-2: gate z, x, B, C and dt from one projection; convolution with bias over x, B, C; A, D and dt a head."""
    inner, bc = heads * head_size, 2 * groups * state_size
    shapes = {"in": (2 * inner + bc + heads, D), "o": (D, inner), "norm": (inner,)}
    shapes |= {"convolution": (inner + bc, 1, kernel_size), "convolution_bias": (inner + bc,)}
    return shapes | {"A_log": (heads,), "D": (heads,), "dt_bias": (heads,)}


def mamba1(D, inner_size, state_size, step_rank, kernel_size):
    """Mamba as in Jamba: x and gate from one projection; dt, B and C from x, each normed; A (inner, state)."""
    shapes = {"in": (2 * inner_size, D), "x": (step_rank + 2 * state_size, inner_size), "o": (D, inner_size)}
    shapes |= {"dt": (inner_size, step_rank), "dt_bias": (inner_size,), "A_log": (inner_size, state_size)}
    shapes |= {"convolution": (inner_size, 1, kernel_size), "convolution_bias": (inner_size,), "D": (inner_size,)}
    return shapes | {"dt_norm": (step_rank,), "B_norm": (state_size,), "C_norm": (state_size,)}


def short_convolution(D, kernel_size):
    """Gated short convolution (LFM2): two gates and a value from one projection, a convolution a channel, no biases."""
    return {"in": (3 * D, D), "convolution": (D, 1, kernel_size), "o": (D, D)}


MIXERS = {
    "grouped_query": grouped_query,
    "latent": latent,
    "gated_delta": gated_delta,
    "mamba2": mamba2,
    "mamba1": mamba1,
    "short_convolution": short_convolution,
}
