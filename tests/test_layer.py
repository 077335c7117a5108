"""The layer as a whole: NumPy and C agree in every bit, and what must not change a bit does not."""

import numpy as np
import pytest
from cases import (
    CONFIGS,
    PRESETS,
    STORES,
    carried,
    completed,
    config_of,
    differing,
    losses_of,
    make,
    run,
    same_bits,
    tensors,
    with_sequences,
)

import refmoe
from refmoe import Given, Losses, Numerics, kernels
from refmoe.formats import is_representable
from refmoe.layer import REPORTED
from refmoe.numerics.contract import NumpyEngine
from refmoe.recipes import generate, init_given
from refmoe.selection import is_causal

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
DROPLESS = {
    name: config
    for name, config in CONFIGS.items()
    if not config.dispatch.limited and config.routing.selection != "soft"
}
APART = [name for name, config in DROPLESS.items() if is_causal(config)]  # no token looks at another
CHOOSING = {name: config for name, config in CONFIGS.items() if config.routing.selection != "soft"}
PROFILES = [("exact", "float32"), ("exact", "bf16"), ("chain", "float32"), ("float64", "float64")]
EXACT = Numerics(backend="numpy")


# --- NumPy = C -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("profile", "store"), STORES)
def test_every_kernel_gives_the_bits_of_numpy_with_any_number_of_threads(name, profile, store, monkeypatch):
    want = run(CONFIGS[name], Numerics(profile, store, backend="numpy"))
    monkeypatch.setattr(NumpyEngine, "_product", _forbidden)
    assert KERNELS, "no kernel runs here"
    for kernel in KERNELS:
        for threads in (1, 2, 3) if name in PRESETS else (2,):
            num = Numerics(profile, store, backend="c", kernel=kernel, threads=threads)
            got = run(CONFIGS[name], num)
            assert not differing(got[0], want[0]) and not differing(got[1], want[1]), (kernel, threads)
            assert {who for _, who in num.engine.calls} == {kernel}
            assert {what for what, _ in num.engine.calls} >= {
                "grouped_matmul", "grouped_matmul_backward_x", "grouped_matmul_backward_w"
            }  # fmt: skip
            assert num.engine.threads == threads and num.engine.name == "c"


def _forbidden(self, *arguments):
    raise AssertionError("NumPy's engine was asked for a product")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tier", ["compensated", "exact"])
def test_every_output_through_a_higher_tier_gives_the_same_bits(name, tier):
    want = run(CONFIGS[name], EXACT, 4)
    for backend in ("numpy", "c"):
        num = Numerics(backend=backend, force_tier=tier)
        got = run(CONFIGS[name], num, 4)
        assert not differing(got[0], want[0]) and not differing(got[1], want[1])
        assert num.engine.tiers[tier] > 0 and num.engine.tiers["grid"] == 0
        assert tier == "compensated" or num.engine.tiers["compensated"] == 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("profile", "store"), STORES)
def test_every_stored_tensor_has_the_format_of_its_name(name, profile, store):
    num = Numerics(profile, store, backend="numpy")
    record, grads = run(CONFIGS[name], num)
    integers = ("plan.", "routing.topk_indices", "losses.balance_counts")
    for label, array in (tensors(record) | tensors(grads)).items():
        if label.startswith(integers):
            assert array.dtype == np.int64, label
            continue
        field = label.rpartition(".")[2]
        prefix = "losses." if label.startswith("losses.") else "d_" if label.startswith("params.") else ""
        assert array.dtype == num.dtype, label
        assert is_representable(array, num.format_of(prefix + field)), label


# --- invariances -----------------------------------------------------------------------------------------------------


def forward(config, num, x, params, given=None):
    return refmoe.moe_forward(x, params, config, num, given or one_sequence(config, np.arange(len(x))))


def one_sequence(config, tokens):
    """Given of these tokens of a batch, as one sequence."""
    words = init_given(config, max(tokens, default=0) + 1).get("token_ids")
    return Given(sequence_ids=np.zeros(len(tokens), np.int64), token_ids=None if words is None else words[tokens])


def without_ties(record):
    margin = record.routing.margin
    return margin is None or bool((margin > 0).all())


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize(("profile", "store"), PROFILES)
def test_a_token_alone_equals_the_token_in_a_batch(name, profile, store):
    config, num = CONFIGS[name], Numerics(profile, store)
    x, params, d_y = make(config, num, 9)
    batch = forward(config, num, x, params)
    assert without_ties(batch)
    d_x = refmoe.moe_backward(d_y, x, params, batch, config, num, one_sequence(config, np.arange(9))).d_x_experts
    for t in range(9):
        one = one_sequence(config, np.array([t]))
        alone = forward(config, num, x[t : t + 1], params, one)
        assert same_bits(alone.y[0], batch.y[t]) and same_bits(alone.routing.logits[0], batch.routing.logits[t])
        assert same_bits(
            refmoe.moe_backward(d_y[t : t + 1], x[t : t + 1], params, alone, config, num, one).d_x_experts[0], d_x[t]
        )


@pytest.mark.parametrize(
    ("name", "profile", "store"),
    [(name, *row) for name in DROPLESS for row in PROFILES if name in APART or row[0] != "float64"],
)  # a sum over tokens that the forward reads has an order in float64
def test_permuting_the_tokens_permutes_the_output(name, profile, store):
    config, num = CONFIGS[name], Numerics(profile, store)
    x, params, d_y = make(config, num, 9)
    order = np.array([4, 8, 0, 3, 7, 1, 6, 2, 5])
    givens = one_sequence(config, np.arange(9)), one_sequence(config, order)
    records = [forward(config, num, *each) for each in zip((x, x[order]), (params, params), givens, strict=True)]
    assert without_ties(records[0]) and same_bits(records[1].y, records[0].y[order])
    grads = [
        refmoe.moe_backward(d, tokens, params, record, config, num, given)
        for d, tokens, record, given in zip((d_y, d_y[order]), (x, x[order]), records, givens, strict=True)
    ]
    assert same_bits(grads[1].d_x_experts, grads[0].d_x_experts[order])
    if profile == "exact":  # sums over tokens do not depend on their order either
        assert same_bits(grads[1].d_x, grads[0].d_x[order]) and not differing(grads[1].params, grads[0].params)
        assert not differing(Losses(*records[1].losses[:3]), Losses(*records[0].losses[:3]))


def relabelling(config):
    """A permutation of the ids that keeps groups and kinds together: groups reversed, each of them turned by one."""
    E, C = config.num_experts, config.experts.constant_experts
    if config.losses.device or config.losses.communication:  # reversed, runs of any length stay together
        return np.arange(E)[::-1]
    if config.num_choices > E:
        kinds = np.split(np.arange(config.num_choices), [E, E + C, E + C + config.experts.identity_experts])
        return np.concatenate([np.roll(ids, 1) for ids in kinds])
    groups = np.arange(E).reshape(config.routing.num_groups, -1)
    return np.roll(groups[::-1], 1, axis=1).reshape(-1)


BY_ID = ("w_router", "router_bias", "selection_bias", "expert_scale", "w_noise")
BY_EXPERT = ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")
BY_CONSTANT = ("w_constant", "constant")


def relabelled(params, order):
    """Id i of the result is id order[i] of params; what belongs to no id stays."""
    E, C = len(params.w_up), 0 if params.constant is None else len(params.constant)
    orders = dict.fromkeys(BY_ID, order) | dict.fromkeys(BY_EXPERT, order[:E])
    orders |= dict.fromkeys(BY_CONSTANT, order[E : E + C] - E)
    named = {field: getattr(params, field, None) for field in orders}
    table = None if params.hash_table is None else np.argsort(order)[params.hash_table]
    moved = {field: a[orders[field]] for field, a in named.items() if a is not None}
    return params._replace(**moved, hash_table=table)


@pytest.mark.parametrize("name", DROPLESS)
@pytest.mark.parametrize("store", ["float32", "bf16", "fp16"])
def test_relabelling_the_experts_changes_no_bit_in_exact(name, store):
    config, num = CONFIGS[name], Numerics("exact", store)
    x, params, d_y = make(config, num, 9)
    order, given = relabelling(config), one_sequence(config, np.arange(9))
    want, got = forward(config, num, x, params), forward(config, num, x, relabelled(params, order))
    assert without_ties(want)
    named = got.routing.topk_indices
    assert same_bits(np.where(named >= 0, order[named], -1), want.routing.topk_indices)
    assert same_bits(got.y, want.y) and same_bits(got.routing.topk_weights, want.routing.topk_weights)
    assert not differing(Losses(*got.losses[:3]), Losses(*want.losses[:3]))
    before = refmoe.moe_backward(d_y, x, params, want, config, num, given)
    after = refmoe.moe_backward(d_y, x, relabelled(params, order), got, config, num, given)
    assert same_bits(after.d_x, before.d_x) and same_bits(after.d_logits, before.d_logits[:, order])
    assert not differing(after.params, relabelled(before.params, order))


def test_ties_are_where_relabelling_shows():
    """Two experts with one router row: the lowest id wins, and that is a label."""
    config = config_of(routing={"normalize": True}, top_k=1, num_experts=2)
    x, params, _ = make(config, EXACT, 4)
    params = params._replace(w_router=np.repeat(params.w_router[:1], 2, axis=0))
    order = np.array([1, 0])
    want, got = forward(config, EXACT, x, params), forward(config, EXACT, x, relabelled(params, order))
    assert not without_ties(want) and (want.routing.topk_indices == 0).all() and (got.routing.topk_indices == 0).all()
    assert not same_bits(got.y, want.y)


def test_capacity_is_where_the_batch_and_its_order_show():
    config = config_of(dispatch={"capacity": 1}, top_k=1, num_experts=2)
    x, params, _ = make(config, EXACT, 6)
    batch, turned = forward(config, EXACT, x, params), forward(config, EXACT, x[::-1].copy(), params)
    assert not same_bits(turned.y[::-1], batch.y)
    alone = np.concatenate([forward(config, EXACT, x[t : t + 1], params).y for t in range(6)])
    assert not same_bits(alone, batch.y)
    assert (batch.y == 0).all(axis=1).sum() == 4  # two experts of one row each


def test_a_chain_sees_the_order_of_what_it_sums_over():
    """In `chain` the output keeps its bits under relabelling, but d_x_router, a chain over experts, need not."""
    config, num = config_of(), Numerics("chain")
    x, params, d_y = make(config, num, 9)
    order = relabelling(config)
    want, got = forward(config, num, x, params), forward(config, num, x, relabelled(params, order))
    before = refmoe.moe_backward(d_y, x, params, want, config, num)
    after = refmoe.moe_backward(d_y, x, relabelled(params, order), got, config, num)
    assert same_bits(got.y, want.y) and not same_bits(after.d_x_router, before.d_x_router)


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_keeping_less_changes_neither_the_output_nor_the_gradients(name):
    config = CONFIGS[name]
    x, params, d_y = make(config, EXACT)
    given = completed(with_sequences(8), config, EXACT, 8)
    full, backward, y = (refmoe.moe_forward(x, params, config, EXACT, given, keep=k) for k in ("all", "backward", "y"))
    assert same_bits(backward.y, full.y) and same_bits(y.y, full.y)
    assert tensors(y).keys() == {"y"}
    assert tensors(backward).keys() < tensors(full).keys() and backward.experts.x_rows is None
    grads = [refmoe.moe_backward(d_y, x, params, record, config, EXACT, given) for record in (full, backward)]
    assert not differing(*grads)


def test_what_is_only_reported_is_made_for_a_whole_record_alone():
    config = refmoe.MoEConfig(hidden_size=4, intermediate_size=4, num_experts=4, top_k=2)
    num, params = Numerics(backend="c"), refmoe.init_params(config, seed=0)
    x = generate("x", (3, config.hidden_size), 0)
    made = []
    for keep in ("all", "backward", "y"):
        num.engine.calls.clear()
        refmoe.moe_forward(x, params, config, num, keep=keep)
        made.append(num.engine.calls["log_sum_exp", num.engine.kernel])
    assert made == [1, 0, 0]


def test_what_is_not_kept_is_still_made_for_who_reads_it():
    """With replayed indices and a softmax of the kept logits the scores are read by the queue alone."""
    config = refmoe.MoEConfig.from_dict({
        "hidden_size": 4, "intermediate_size": 4, "num_experts": 4, "top_k": 2, "routing": {"normalize": True},
        "dispatch": {"capacity": 1, "slot_order": "batch_prioritized"},
    })  # fmt: skip
    x, params, _ = make(config, EXACT, 5)
    given = Given(topk_indices=refmoe.moe_forward(x, params, config, EXACT).routing.topk_indices)
    want, got = (refmoe.moe_forward(x, params, config, EXACT, given, keep).y for keep in ("all", "y"))
    assert same_bits(want, got)


def test_a_record_without_its_stages_cannot_go_back():
    config = CONFIGS["top_1"]
    x, params, d_y = make(config, EXACT)
    record = refmoe.moe_forward(x, params, config, EXACT, keep="y")
    with pytest.raises(ValueError, match=r"record: expected .*; run moe_forward with keep='backward'"):
        refmoe.moe_backward(d_y, x, params, record, config, EXACT)


# --- sizes at their ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize(("profile", "store"), PROFILES)
@pytest.mark.parametrize("num_tokens", [0, 1])
def test_no_token_and_one_token(name, profile, store, num_tokens):
    config = CONFIGS[name]
    given = Given(sequence_ids=np.zeros(num_tokens, np.int64))
    results = [run(config, Numerics(profile, store, backend=b), num_tokens, given=given) for b in ("numpy", "c")]
    assert not differing(results[0][0], results[1][0]) and not differing(results[0][1], results[1][1])
    record, grads = results[0]
    assert record.y.shape == (num_tokens, config.hidden_size) == grads.d_x.shape
    if num_tokens == 0:
        own = {"w_router"} if config.losses.orthogonality else set()  # the one loss that knows of no token
        made = {name: array for name, array in tensors(grads.params).items() if name not in own}
        assert all(same_bits(array, np.zeros_like(array)) for array in made.values())
        assert all(same_bits(value, np.zeros_like(value)) for value in record.losses[:3] if value is not None)
        assert record.plan.expert_offsets.tolist() == [0] * (config.num_choices + 1)
    else:
        assert np.isfinite(record.y).all() and (record.y != 0).any()


def test_one_expert_is_a_feed_forward_network():
    config = config_of(num_experts=1, top_k=1, routing={"normalize": True})
    x, params, _ = make(config, EXACT)
    record = forward(config, EXACT, x, params)
    assert (record.routing.topk_weights == 1).all() and same_bits(record.y, record.experts.y_rows)
    assert record.plan.row_slot.tolist() == list(range(8))


def test_all_experts_of_every_token():
    config = config_of(top_k=6)
    record, _ = run(config, EXACT)
    assert (np.sort(record.routing.topk_indices, axis=1) == np.arange(6)).all()
    assert record.plan.tokens_per_expert.tolist() == [8] * 6
    assert np.isposinf(record.routing.margin).all()  # there is no next expert


@pytest.mark.parametrize(("profile", "store"), PROFILES)
def test_all_tokens_to_one_expert(profile, store):
    config = config_of(top_k=1)
    given = Given(topk_indices=np.full((8, 1), 4))
    results = [run(config, Numerics(profile, store, backend=b), given=given) for b in ("numpy", "c")]
    assert not differing(results[0][0], results[1][0]) and not differing(results[0][1], results[1][1])
    assert results[0][0].plan.tokens_per_expert.tolist() == [0, 0, 0, 0, 8, 0]


# --- what is given ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOOSING)
def test_replaying_the_selection_repeats_every_bit(name):
    config = CONFIGS[name]
    live, live_grads = run(config, EXACT)
    given = with_sequences(8)._replace(topk_indices=live.routing.topk_indices)
    replayed, grads = run(config, EXACT, given=given)
    assert replayed.routing.choice_scores is None and replayed.routing.margin is None
    unranked = live.routing._replace(**dict.fromkeys([name for name in REPORTED if name != "lse"]))
    assert not differing(replayed, live._replace(routing=unranked)) and not differing(grads, live_grads)


@pytest.mark.parametrize("name", CHOOSING)
def test_given_logits_replace_the_router(name):
    config = CONFIGS[name]
    live, live_grads = run(config, EXACT)
    record, grads = run(config, EXACT, given=with_sequences(8)._replace(logits=live.routing.logits))
    joint = config.routing.norm_over_shared  # then the shared experts' logits are made all the same
    before = ["raw_logits", "clean_logits", "noise_logits", "noise_std", "router_gram"]  # nothing makes them now
    before += [] if joint else ["router_x"]
    before += [] if joint or config.routing.jitter == "block" else ["jittered_x"]
    # without noise a count, that has no gradient; and of a router that takes no part, +0
    own = {"load": record.losses.load, "orthogonality": config.losses.orthogonality and np.float32(0)}
    live = live._replace(losses=live.losses._replace(**own))
    assert not differing(record, live._replace(routing=live.routing._replace(**dict.fromkeys(before))))
    assert grads.d_router_gram_orthogonality is None
    assert (grads.d_x_router is not None) == (grads.params.w_shared_router is not None) == joint
    assert grads.params.w_router is None and grads.params.router_bias is None
    assert config.losses.load is not None or same_bits(grads.d_logits, live_grads.d_logits)
    assert same_bits(grads.d_logits_task, live_grads.d_logits_task)
    assert same_bits(grads.d_x_experts, live_grads.d_x_experts)


@pytest.mark.parametrize("name", [name for name in DROPLESS if CONFIGS[name].top_k > 2])
def test_unused_slots_count_for_nothing(name):
    """The same expert set as a shorter list, with -1 in other places: the same output, in every bit."""
    config = CONFIGS[name]
    live, _ = run(config, EXACT)
    indices = live.routing.topk_indices.copy()
    first = indices.copy()
    first[:, 0] = -1
    moved = np.roll(first, -1, axis=1)  # the unused slot at the end
    a, b = (run(config, EXACT, given=with_sequences(8)._replace(topk_indices=i)) for i in (first, moved))
    assert same_bits(a[0].y, b[0].y) and same_bits(a[1].d_x_experts, b[1].d_x_experts)
    assert same_bits(a[1].d_logits_task, b[1].d_logits_task)
    for record, grads in (a, b):
        unused = record.routing.topk_indices < 0
        assert same_bits(record.routing.topk_weights[unused], np.zeros(8, np.float32))
        assert same_bits(grads.d_topk_weights[unused], np.zeros(8, np.float32))
        assert (record.plan.slot_row[unused] == -1).all() and record.plan.tokens_per_expert.sum() == 8 * (
            config.top_k - 1
        )


def test_a_token_without_experts_gets_the_shared_expert_only():
    config = CONFIGS["qwen1.5-moe-a2.7b"]
    indices = np.tile(np.arange(4), (8, 1))
    indices[3] = -1
    record, grads = run(config, EXACT, given=with_sequences(8)._replace(topk_indices=indices))
    assert same_bits(record.routed[3], np.zeros(7, np.float32)) and same_bits(record.y[3], record.shared.shared[3])
    assert same_bits(grads.d_x_experts[3], np.zeros(7, np.float32)) and (grads.d_x_shared[3] != 0).all()


@pytest.mark.parametrize("name", CHOOSING)
def test_padding_is_computed_but_neither_counted_nor_averaged(name):
    config = CONFIGS[name]
    x, params, d_y = make(config, EXACT)
    ids, keep = np.arange(8) // 3, np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    plain = completed(Given(sequence_ids=ids), config, EXACT, 8)
    given = plain._replace(token_mask=keep)
    full, masked = (refmoe.moe_forward(x, params, config, EXACT, g) for g in (plain, given))
    assert same_bits(masked.y, full.y) and same_bits(masked.plan.slot_row, full.plan.slot_row)
    chosen = masked.routing.topk_indices[keep]
    assert (
        masked.plan.assigned_per_expert.tolist()
        == np.bincount(chosen[chosen >= 0], minlength=config.num_choices).tolist()
    )
    by_token = ((name, getattr(plain, name)) for name in ("token_ids", "noise", "jitter"))
    own = {name: array[keep] for name, array in by_token if array is not None}
    apart = config.losses.balance is not None and is_causal(config)
    real = Given(sequence_ids=ids[keep], **own,
                 topk_indices=None if apart else chosen)  # fmt: skip
    compact = refmoe.moe_forward(x[keep], params, config, EXACT, completed(real, config, EXACT, 6))
    assert not differing(masked.losses, compact.losses)  # as if the padding were not there
    grads = refmoe.moe_backward(d_y, x, params, masked, config, EXACT, given)
    for source in ("d_logits_balance", "d_logits_z", "d_logits_importance"):
        gradient = getattr(grads, source)
        assert gradient is None or same_bits(gradient[~keep], np.zeros((2, config.num_choices), np.float32))


def test_nothing_but_padding_has_no_losses():
    config = CONFIGS["sqrt_softplus_add"]
    record, grads = run(config, EXACT, given=Given(token_mask=np.zeros(8, bool)))
    for value in (*record.losses[:3], grads.d_logits_balance, grads.d_logits_z, grads.d_logits_importance):
        assert same_bits(value, np.zeros_like(value))
    assert same_bits(grads.d_logits, grads.d_logits_task)


# --- narrow stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["bf16", "fp16"])
def test_router_logits_stay_float32_whatever_the_tokens_are_stored_in(store):
    config = config_of(losses=losses_of({}, 0.2))
    record, grads = run(config, Numerics("exact", store))
    wide, _ = run(config, EXACT, recipe="bf16")
    assert same_bits(record.routing.logits, wide.routing.logits) and same_bits(record.losses.z, wide.losses.z)
    assert same_bits(record.routing.topk_weights, wide.routing.topk_weights)
    assert not is_representable(record.routing.logits, store) and not is_representable(grads.d_logits, store)
    assert is_representable(record.y, store) and not same_bits(record.y, wide.y)


@pytest.mark.parametrize("backend", ["numpy", "c"])
@pytest.mark.parametrize(("store", "digits"), [("bf16", 8), ("fp16", 11)])
def test_exact_rounds_to_a_narrow_store_directly(backend, store, digits):
    """1 + 2^-p + 2^-40 lies just above a midpoint of the store, and float32 would round it onto the midpoint."""
    num = Numerics("exact", store, backend=backend)
    above = 1 + 2.0 ** (1 - digits)
    a = np.array([[1, 2.0**-digits, 2.0**-20]], np.float32)
    b = np.array([[1, 1, 2.0**-20]], np.float32)
    assert np.float32(1 + 2.0**-digits + 2.0**-40) == np.float32(1 + 2.0**-digits)
    assert num.contract("y_rows", a, b)[0, 0] == above
    assert num.contract("logits", a, b)[0, 0] == np.float32(1 + 2.0**-digits)  # a stage that stays float32
    assert num.sum("y", [(a[:, i], b[:, i]) for i in range(3)])[0] == above
    terms = num.evaluate("y", lambda m, a, b: m.sum(a * b), a, b, core=1)
    assert terms[0] == above
    chained = Numerics("chain", store, backend=backend)
    assert chained.contract("y_rows", a, b)[0, 0] == 1  # the float32 chain, then one more rounding: to even


# --- which engine ----------------------------------------------------------------------------------------------------


def test_the_environment_chooses_the_backend(monkeypatch):
    monkeypatch.setenv("REFMOE_BACKEND", "numpy")
    assert Numerics().engine.name == "numpy" and Numerics(backend="c").engine.name == "c"
    monkeypatch.setenv("REFMOE_BACKEND", "c")
    assert Numerics().engine.name == "c" and Numerics(backend="numpy").engine.name == "numpy"
    monkeypatch.setenv("REFMOE_BACKEND", "fortran")
    with pytest.raises(ValueError, match="REFMOE_BACKEND: expected one of auto, c, numpy, got 'fortran'"):
        Numerics()
    monkeypatch.setenv("REFMOE_BACKEND", "auto")
    monkeypatch.setenv("REFMOE_KERNEL", "portable")
    monkeypatch.setenv("REFMOE_NUM_THREADS", "3")
    engine = Numerics().engine
    assert (engine.name, engine.kernel, engine.threads) == ("c", "portable", 3)


def test_wide_inputs_too():
    """24-bit significands over forty binades, where the rounding test has work to do."""
    config = config_of(routing={"normalize": True})
    x = generate("x", (5, 6), 0, "wide", exponent=-12)
    results = []
    for backend in ("numpy", "c"):
        num = Numerics("exact", backend=backend)
        _, params, d_y = make(config, num, 5)
        record = refmoe.moe_forward(x, params, config, num)
        results.append((record, refmoe.moe_backward(d_y, x, params, record, config, num)))
        assert not differing(carried(record.y, num), record.y)
    assert not differing(results[0][0], results[1][0]) and not differing(results[0][1], results[1][1])
