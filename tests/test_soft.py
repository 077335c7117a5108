"""The soft mixture by hand, against the authors' einsums, and what must not change a bit."""

import numpy as np
import pytest
from cases import CASES, config_of, differing, make, run, same_bits, tensors

import refmoe
from refmoe import Given, Numerics, check_gradients, selection
from refmoe.recipes import MoEParams, SharedParams

EXACT, FLOAT64 = Numerics(backend="numpy"), Numerics("float64", backend="numpy")
SIZES = {"hidden_size": 4, "intermediate_size": 3, "num_experts": 3, "top_k": 1}


def soft(experts=None, **routing):
    return config_of(routing={"selection": "soft", **routing}, experts=experts, **SIZES)


def f32(values):
    return np.array(values, np.float32)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_with_a_scale_of_zero_every_slot_reads_the_mean_and_every_token_gets_it():
    config = soft(slots_per_expert=2)
    x, params, _ = make(config, EXACT, 4, recipe="dyadic")
    params = params._replace(soft_scale=f32([0]))
    record = refmoe.moe_forward(x, params, config, EXACT)
    assert (record.soft.dispatch_weights == 0.25).all() and same_bits(
        record.routing.logits, np.zeros((4, 6), np.float32)
    )
    assert same_bits(record.soft.combine_weights, np.full((4, 6), 1 / 6, np.float32))
    assert same_bits(record.soft.slot_rows, np.broadcast_to(x.mean(axis=0), (6, 4)).astype(np.float32))
    assert same_bits(record.y, np.broadcast_to(record.y[:1], (4, 4)).copy())
    rows = record.experts.y_rows  # the two slots of an expert, side by side
    assert same_bits(rows[0::2], rows[1::2])


def test_lengths():
    config = soft(soft_norm_eps=2.0**-60)
    _, params, _ = make(config, EXACT, 1)
    x = f32([[3, 0, 4, 0], [0, 0, 0, 0], [-0.5, 0.5, 0.5, 0.5]])
    w = f32([[6, 0, 8, 0], [0, 1, 0, 0], [-1, 1, 1, 1]])
    record = refmoe.moe_forward(x, params._replace(w_router=w, soft_scale=f32([2])), config, EXACT)
    assert same_bits(record.soft.unit_x, f32([[0.6, 0, 0.8, 0], [0, 0, 0, 0], [-0.5, 0.5, 0.5, 0.5]]))
    assert same_bits(record.soft.unit_slots[0], record.soft.unit_x[0])  # length alone does not matter
    np.testing.assert_allclose(record.soft.cosines[0], [1, 0, 0.1], atol=1e-7)
    assert same_bits(record.routing.logits, 2 * record.soft.cosines)
    assert same_bits(record.routing.logits[1], np.zeros(3, np.float32))


def test_a_token_alone_is_what_every_slot_reads():
    config = CASES["soft"]
    x, params, _ = make(config, EXACT, 1)
    record = refmoe.moe_forward(x, params, config, EXACT)
    assert (record.soft.dispatch_weights == 1).all()
    assert same_bits(record.soft.slot_rows, np.repeat(x, config.num_logits, axis=0))


@pytest.mark.parametrize("name", ["soft", "soft_by_sequence"])
@pytest.mark.parametrize(("profile", "store"), [("exact", "bf16"), ("chain", "float32"), ("float64", "float64")])
def test_no_token(name, profile, store):
    config = CASES[name]
    given = Given(sequence_ids=np.zeros(0, np.int64))
    results = [run(config, Numerics(profile, store, backend=b), 0, given=given) for b in ("numpy", "c")]
    assert not differing(results[0][0], results[1][0]) and not differing(results[0][1], results[1][1])
    record, grads = results[0]
    assert record.y.shape == (0, config.hidden_size) == grads.d_x.shape
    assert all(same_bits(a, np.zeros_like(a)) for a in tensors(grads.params).values())


# --- against the authors' way ----------------------------------------------------------------------------------------


def einsums(x, params, config, ids):
    """The mixtures as arrays of (group, token, expert, slot), in NumPy's own sums."""
    E, P, eps = config.num_experts, config.routing.slots_per_expert, config.routing.soft_norm_eps
    w = params.w_router.reshape(E, P, -1)
    unit = [v / np.sqrt((v * v).sum(axis=-1, keepdims=True) + eps) for v in (x, w)]
    y, rows = np.zeros_like(x), []
    for one in np.unique(ids):
        here = ids == one
        z = np.einsum("md,npd->mnp", unit[0][here], unit[1] * params.soft_scale)
        powers = np.exp(z)
        dispatch, combine = powers / powers.sum(axis=0), powers / powers.sum(axis=(1, 2), keepdims=True)
        rows.append(np.einsum("mnp,md->npd", dispatch, x[here]))
        hidden = np.maximum(np.einsum("npd,nfd->npf", rows[-1], params.w_up), 0)
        y[here] = np.einsum("mnp,npd->md", combine, np.einsum("npf,ndf->npd", hidden, params.w_down))
    return y, np.stack(rows, axis=1).reshape(-1, x.shape[1])


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("slots", [1, 3])
def test_the_authors_einsums(scope, slots):
    config = soft({"gated": False, "activation": "relu"}, soft_scope=scope, slots_per_expert=slots)
    x, params, _ = make(config, FLOAT64, 7)
    ids = np.array([5, 1, 5, 1, 1, 5, 1])
    record = refmoe.moe_forward(x, params, config, FLOAT64, Given(sequence_ids=ids))
    y, rows = einsums(x, params, config, ids if scope == "sequence" else np.zeros(7))
    np.testing.assert_allclose(record.soft.slot_rows, rows, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(record.y, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_gradients(slots, scope, eps):
    config = soft({"shared_intermediate_size": 2}, slots_per_expert=slots, soft_scope=scope, soft_norm_eps=eps)
    check = check_gradients(config, num_tokens=5)
    assert check.ok, str(check)
    assert {"d_soft_scale", "d_w_router", "d_logits_dispatch", "d_logits_combine"} < check.errors.keys()


# --- what changes no bit ---------------------------------------------------------------------------------------------


def test_sequences_do_not_meet():
    config = CASES["soft_by_sequence"]
    x, params, d_y = make(config, EXACT, 7)
    ids = np.array([5, 1, 5, 1, 1, 5, 1])
    given = Given(sequence_ids=ids)
    whole = refmoe.moe_forward(x, params, config, EXACT, given)
    d_x = refmoe.moe_backward(d_y, x, params, whole, config, EXACT, given).d_x
    for one in (1, 5):
        here = ids == one
        given = Given(sequence_ids=ids[here])
        alone = refmoe.moe_forward(x[here], params, config, EXACT, given)
        assert same_bits(alone.y, whole.y[here])
        assert same_bits(refmoe.moe_backward(d_y[here], x[here], params, alone, config, EXACT, given).d_x, d_x[here])


@pytest.mark.parametrize("store", ["float32", "bf16"])
def test_permuting_the_tokens_permutes_the_output_in_exact(store):
    config, num, order = CASES["soft"], Numerics("exact", store), np.array([4, 1, 0, 3, 2])
    x, params, d_y = make(config, num, 5)
    records = [refmoe.moe_forward(tokens, params, config, num) for tokens in (x, x[order])]
    grads = [
        refmoe.moe_backward(d, tokens, params, record, config, num)
        for d, tokens, record in zip((d_y, d_y[order]), (x, x[order]), records, strict=True)
    ]
    assert same_bits(records[1].y, records[0].y[order]) and same_bits(grads[1].d_x, grads[0].d_x[order])
    assert not differing(grads[1].params, grads[0].params)


def test_padding_is_a_token_like_any_other():
    config = CASES["soft"]
    x, params, _ = make(config, EXACT, 5)
    masked = refmoe.moe_forward(x, params, config, EXACT, Given(token_mask=np.arange(5) < 3))
    assert not differing(masked, refmoe.moe_forward(x, params, config, EXACT))


def test_given_logits_replace_the_router():
    config = CASES["soft"]
    live, live_grads = run(config, EXACT, 5)
    record, grads = run(config, EXACT, 5, given=Given(logits=live.routing.logits))
    assert same_bits(record.y, live.y) and record.soft.cosines is None and record.soft.unit_x is None
    assert grads.d_x_router is None and grads.params.w_router is None and grads.params.soft_scale is None
    assert same_bits(grads.d_logits, live_grads.d_logits) and same_bits(grads.d_x_experts, live_grads.d_x_experts)


def test_gradients_are_added_with_one_rounding():
    config = CASES["soft"]
    x, params, d_y = make(config, EXACT, 5)
    record = refmoe.moe_forward(x, params, config, EXACT)
    plain = refmoe.moe_backward(d_y, x, params, record, config, EXACT).params
    start = {name: 0.37 * getattr(plain, name) + np.float32(1e-3) for name in ("w_router", "soft_scale")}
    into = MoEParams(shared=SharedParams())._replace(**start)
    added = refmoe.moe_backward(d_y, x, params, record, config, EXACT, into=into).params
    wide = refmoe.moe_backward(
        d_y, x, params, record, config, EXACT, into=into._replace(w_router=-plain.w_router)
    ).params
    for name, begun in start.items():
        twice = begun + getattr(plain, name)
        assert np.abs(getattr(added, name) - twice).max() <= 2.0**-23 * np.abs(twice).max()
    assert 0 < np.abs(wide.w_router).max() < 2.0**-23 * np.abs(plain.w_router).max()  # what the rounding had cut off


def test_it_is_not_causal():
    config = CASES["soft"]
    x, params, _ = make(config, EXACT, 4)
    moved = x.copy()
    moved[3] += 1
    before, after = (refmoe.moe_forward(tokens, params, config, EXACT, keep="y").y for tokens in (x, moved))
    assert not selection.is_causal(config) and (before[0] != after[0]).any()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 2}, "top_k: expected 1 with routing.selection 'soft', got 2; every slot is read: leave it at 1"),
        ({"routing": {"score_fn": "sigmoid"}}, "routing.score_fn: expected 'softmax' with routing.selection 'soft'"),
        ({"routing": {"normalize": True}}, "routing.normalize: expected False with routing.selection 'soft', got True"),
        ({"routing": {"soft_norm_eps": 0.0}}, "routing.soft_norm_eps: expected a positive number, got 0.0"),
        ({"routing": {"slots_per_expert": 0}}, "slots_per_expert: expected at least 1, got 0"),
        ({"dispatch": {"capacity": 2}}, "dispatch.capacity: expected None with routing.selection 'soft', got 2"),
        ({"losses": {"z": {}}}, "losses.z: expected None with routing.selection 'soft', got ZLoss"),
        (
            {"losses": {"orthogonality": {}}},
            "losses.orthogonality: expected None with routing.selection 'soft', got OrthogonalityLoss",
        ),
        (
            {"experts": {"weight_position": "input"}},
            "experts.weight_position: expected 'output' with routing.selection 'soft', got 'input'",
        ),
        (
            {"routing": {"selection": "topk", "slots_per_expert": 2}},
            "routing.slots_per_expert: expected 1 without selection 'soft', got 2; set routing.selection='soft'",
        ),
        ({"routing": {"selection": "topk", "soft_scope": "sequence"}}, "routing.soft_scope: expected 'batch' without"),
        ({"routing": {"selection": "topk", "soft_norm_eps": 0.1}}, "routing.soft_norm_eps: expected 1e-06 without"),
    ],
)
def test_fields_that_contradict_a_soft_mixture(fields, message):
    routing = {"selection": "soft"} | fields.get("routing", {})
    with pytest.raises(ValueError) as caught:
        refmoe.MoEConfig.from_dict(SIZES | fields | {"routing": routing})
    assert message in str(caught.value)


def test_arrays_that_contradict_a_soft_mixture():
    config = CASES["soft"]
    x, params, _ = make(config, EXACT, 3)
    with pytest.raises(
        ValueError, match=r"given\.topk_indices: expected None with routing.selection 'soft', got an array"
    ):
        refmoe.moe_forward(x, params, config, EXACT, Given(topk_indices=np.zeros((3, 1), np.int64)))
    with pytest.raises(ValueError, match=r"given.logits: expected shape \(3, 12\), got \(3, 6\)"):
        refmoe.moe_forward(x, params, config, EXACT, Given(logits=np.zeros((3, 6), np.float32)))
    with pytest.raises(ValueError, match=r"params\.soft_scale: expected an array of shape"):
        refmoe.moe_forward(x, params._replace(soft_scale=None), config, EXACT)
    with pytest.raises(ValueError, match=r"given\.sequence_ids: expected the sequence of each token, got None"):
        config = CASES["soft_by_sequence"]
        x, params, _ = make(config, EXACT, 3)
        refmoe.moe_forward(x, params, config, EXACT)
    x, params, _ = make(CASES["soft"], EXACT, 3)
    x[1, 0] = np.inf
    with pytest.raises(ValueError, match="logits: expected finite values, got nan for token 1"):
        refmoe.moe_forward(x, params, CASES["soft"], EXACT)
