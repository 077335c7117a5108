"""What bad input gets: an error at the outer door that names the argument, what was expected, what came, and a fix."""

import re

import numpy as np
import pytest
from cases import CASES, config_of, make, with_sequences

import refmoe
from refmoe import Given, MoEParams, Numerics, SharedParams
from refmoe.recipes import generate

# Every test runs this layer of 8 tokens, D = 6, F = 5, E = 6, K = 3, S = 4, with one thing wrong.
CONFIG = CASES["weight_on_input"]


def good():
    num = Numerics(backend="numpy")
    x, params, d_y = make(CONFIG, num)
    return {
        "x": x, "params": params, "config": CONFIG, "num": num, "given": Given(), "keep": "all",
        "d_y": d_y, "d_logits": None,
    }  # fmt: skip


def call(arguments):
    """Forward, then backward, as the arguments say."""
    a = dict(arguments)
    forward = [a[name] for name in ("x", "params", "config", "num", "given", "keep")]
    record = a["record"] if "record" in a else refmoe.moe_forward(*forward)
    rest = a["config"], a["num"], a["given"]
    return refmoe.moe_backward(a["d_y"], a["x"], a["params"], record, *rest, d_logits=a["d_logits"])


def changed(field, change):
    """The good params with one array passed through `change`."""
    return lambda a: {"params": a["params"]._replace(**{field: change(getattr(a["params"], field))})}


def shared(field, change):
    inner = lambda p: p._replace(**{field: change(getattr(p, field))})  # noqa: E731
    return lambda a: {"params": a["params"]._replace(shared=inner(a["params"].shared))}


def given(**fields):
    return lambda a: {"given": Given(**fields)}


def losses(**balance):
    """The balance loss that makes some of `given` necessary or allowed."""
    return config_of(losses=refmoe.LossesConfig(balance=refmoe.BalanceLoss(**balance)))


def plain(config, **more):
    """Another configuration, with parameters of its own."""
    return lambda a: {"config": config, "params": refmoe.init_params(config)} | more


def at(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


BIG_ENDIAN = np.dtype(">f4")
DROPS = config_of(dispatch={"capacity": 2, "capacity_scope": "sequence"})
COIN = config_of(top_k=2, routing={"second_expert": "random"})
LOTS = config_of(dispatch={"capacity": 2, "drop_policy": "random"})
ZEROS = np.zeros((8, 6), np.float32)
BASE = config_of(routing={"selection": "assignment", "selection_base": "logits"}, top_k=1, num_experts=4)
MIXER = config_of(routing={"selection": "sparsemixer", "selection_base": "logits"}, top_k=2)
HASH = config_of(routing={"selection": "hash", "hash_vocab_size": 5})
TABLE = np.arange(5)[:, None] % 4 + np.arange(3)


def with_table(table):
    return lambda a: {"config": HASH, "params": refmoe.init_params(HASH)._replace(hash_table=table)}


INDICES = np.tile(np.arange(3), (8, 1))

# what is wrong: (name, the change, the error, its whole message)
REFUSALS = [
    ("config", lambda a: {"config": {"hidden_size": 6}}, TypeError,
     "config: expected a MoEConfig, got dict; use load_preset or MoEConfig"),
    ("keep", lambda a: {"keep": "some"}, ValueError,
     "keep: expected 'all', 'backward' or 'y', got 'some'; choose one of these"),
    # x
    ("keep-list", lambda a: {"keep": np.array(["all", "y"])}, ValueError,
     "keep: expected 'all', 'backward' or 'y', got array(['all', 'y'], dtype='<U3'); choose one of these"),
    ("x-matrix", lambda a: {"x": a["x"].view(np.matrix)}, TypeError,
     "x: expected a NumPy array of shape (T, 6), got matrix; give one row a token"),
    ("x-masked", lambda a: {"x": np.ma.array(a["x"], mask=a["x"] > 0)}, TypeError,
     "x: expected a NumPy array of shape (T, 6), got MaskedArray; give one row a token"),
    ("x-list", lambda a: {"x": a["x"].tolist()}, TypeError,
     "x: expected a NumPy array of shape (T, 6), got list; give one row a token"),
    ("x-3d", lambda a: {"x": a["x"][None]}, ValueError,
     "x: expected a NumPy array of shape (T, 6), got shape (1, 8, 6); give one row a token"),
    ("x-width", lambda a: {"x": a["x"][:, :5]}, ValueError, "x: expected shape (8, 6), got (8, 5); check its axes"),
    ("x-float64", lambda a: {"x": a["x"].astype(np.float64)}, TypeError,
     "x: expected native float32 in profile 'exact', got <f8; use .astype(numpy.float32)"),
    ("x-half", lambda a: {"x": a["x"].astype(np.float16)}, TypeError,
     "x: expected native float32 in profile 'exact', got <f2; use .astype(numpy.float32)"),
    ("x-swapped", lambda a: {"x": a["x"].astype(BIG_ENDIAN)}, TypeError,
     "x: expected native float32 in profile 'exact', got >f4; use .astype(numpy.float32)"),
    ("x-integers", lambda a: {"x": np.ones((8, 6), np.int64)}, TypeError,
     "x: expected native float32 in profile 'exact', got <i8; use .astype(numpy.float32)"),
    ("x-in-float64", lambda a: {"num": Numerics("float64", backend="numpy")}, TypeError,
     "x: expected native float64 in profile 'float64', got <f4; use .astype(numpy.float64)"),
    ("x-too-fine", lambda a: {"num": Numerics("exact", "bf16", backend="numpy")}, ValueError,
     "x: expected values that bf16 can represent, got others; "
     "round it with refmoe.formats.round_to(array, 'bf16')"),
    # params
    ("params-dict", lambda a: {"params": a["params"]._asdict()}, TypeError,
     "params: expected MoEParams, got dict; use init_params or assemble_params"),
    ("params-missing", changed("w_up", lambda w: None), ValueError,
     "params.w_up: expected an array of shape (6, 5, 6), got None; the configuration needs it"),
    ("params-extra", changed("router_bias", lambda b: np.zeros(6, np.float32)), ValueError,
     "params.router_bias: expected None, got an array; the configuration does not have it: leave it out"),
    ("params-in-out", changed("w_gate", lambda w: w.transpose(0, 2, 1)), ValueError,
     "params.w_gate: expected shape (6, 5, 6), got (6, 6, 5); check its axes"),
    ("params-dtype", changed("w_router", lambda w: w.astype(np.float64)), TypeError,
     "params.w_router: expected native float32 in profile 'exact', got <f8; use .astype(numpy.float32)"),
    ("params-list", changed("b_up", lambda b: b.tolist()), TypeError,
     "params.b_up: expected a NumPy array of shape (6, 5), got list; convert it with numpy.asarray"),
    ("params-masked", changed("w_up", np.ma.array), TypeError,
     "params.w_up: expected a NumPy array of shape (6, 5, 6), got MaskedArray; convert it with numpy.asarray"),
    ("params-function", changed("w_up", lambda w: w.__getitem__), ValueError,
     "params.w_up: expected shape (6, 5, 6), got a method-wrapper without a shape; check the source"),
    ("params-shared-dict", lambda a: {"params": a["params"]._replace(shared={})}, TypeError,
     "params.shared: expected SharedParams or None, got dict; use init_params or assemble_params"),
    ("params-shared", shared("w_down", lambda w: w[0]), ValueError,
     "params.shared.w_down: expected shape (1, 6, 4), got (6, 4); check its axes"),
    ("params-no-shared", lambda a: {"params": a["params"]._replace(shared=None)}, ValueError,
     "params.shared.w_gate: expected an array of shape (1, 4, 6), got None; the configuration needs it"),
    ("params-no-gate", shared("w_shared_gate", lambda w: None), ValueError,
     "params.shared.w_shared_gate: expected an array of shape (1, 6), got None; the configuration needs it"),
    # given
    ("given-dict", lambda a: {"given": {}}, TypeError,
     "given: expected Given, got dict; build it with refmoe.Given(...)"),
    ("mask-integers", given(token_mask=np.ones(8, np.int64)), TypeError,
     "given.token_mask: expected a NumPy array of booleans, got int64; convert it with .astype"),
    ("mask-list", given(token_mask=[True] * 8), TypeError,
     "given.token_mask: expected a NumPy array of booleans, got list; convert it with .astype"),
    ("mask-masked", given(token_mask=np.ma.ones(8, bool)), TypeError,
     "given.token_mask: expected a NumPy array of booleans, got MaskedArray; convert it with .astype"),
    ("mask-shape", given(token_mask=np.ones(7, bool)), ValueError,
     "given.token_mask: expected shape (8,), got (7,); give one entry for each"),
    ("sequences-float", given(sequence_ids=np.zeros(8)), TypeError,
     "given.sequence_ids: expected a NumPy array of integers, got float64; convert it with .astype"),
    ("sequences-missing-loss", plain(losses(scope="sequence")), ValueError,
     "given.sequence_ids: expected the sequence of each token, got None; pass them, or count by batch"),
    ("sequences-missing-drop", plain(DROPS), ValueError,
     "given.sequence_ids: expected the sequence of each token, got None; pass them, or count by batch"),
    ("coin-missing", plain(COIN), ValueError,
     "given.coin: expected an array of shape (8,), got None; draw it before: the layer has no randomness of its own"),
    ("coin-of-one", plain(COIN, given=Given(coin=np.ones(8, np.float32))), ValueError,
     "given.coin: expected numbers from 0 up to, not including, 1, got others; draw it again"),
    ("coin-unread", given(coin=np.zeros(8, np.float32)), ValueError,
     "given.coin: expected None, got an array; no rule of this configuration reads it: leave it out"),
    ("priority-shape", plain(LOTS, given=Given(priority=np.zeros(8, np.float32))), ValueError,
     "given.priority: expected shape (8, 3), got (8,); check its axes"),
    ("priority-nan", plain(LOTS, given=Given(priority=np.full((8, 3), np.nan, np.float32))), ValueError,
     "given.priority: expected finite numbers, got others; draw it again"),
    ("protected-unread", given(protected=np.zeros(8, bool)), ValueError,
     "given.protected: expected None without a capacity, got an array; nothing is dropped without a capacity"),
    ("protected-integers", plain(LOTS, given=Given(protected=np.zeros(8, int))), TypeError,
     "given.protected: expected a NumPy array of booleans, got int64; convert it with .astype"),
    ("indices-shape", given(topk_indices=np.zeros((8, 2), np.int64)), ValueError,
     "given.topk_indices: expected shape (8, 3), got (8, 2); give one entry for each"),
    ("indices-bool", given(topk_indices=np.zeros((8, 3), bool)), TypeError,
     "given.topk_indices: expected a NumPy array of integers, got bool; convert it with .astype"),
    ("logits-shape", given(logits=ZEROS[:, :5].copy()), ValueError,
     "given.logits: expected shape (8, 6), got (8, 5); check its axes"),
    ("logits-dtype", given(logits=ZEROS.astype(np.float64)), TypeError,
     "given.logits: expected native float32 in profile 'exact', got <f8; use .astype(numpy.float32)"),
    ("token-ids", given(token_ids=np.zeros(8, np.int64)), ValueError,
     "given.token_ids: expected None, got an array; only selection 'hash' reads it: leave it out"),
    ("prices-unread", given(assignment_duals=np.zeros(6)), ValueError,
     "given.assignment_duals: expected None without given.topk_indices of selection 'assignment', got an array; "
     "pass both, or leave it out"),
    ("prices-float32", plain(BASE, given=Given(topk_indices=INDICES[:, :1], assignment_duals=ZEROS[0, :4].copy())),
     TypeError, "given.assignment_duals: expected a NumPy array of float64, got float32; "
     "use refmoe.selection.solve_assignment"),
    ("prices-shape", plain(BASE, given=Given(topk_indices=INDICES[:, :1], assignment_duals=np.zeros(6))), ValueError,
     "given.assignment_duals: expected 4 finite numbers, got shape (6,); use refmoe.selection.solve_assignment"),
    ("multipliers-unread", given(multipliers=ZEROS[:, :2].copy()), ValueError,
     "given.multipliers: expected None without a sampled choice of selection 'sparsemixer', got an array; "
     "pass given.topk_indices with them"),
    ("multipliers-alone", plain(MIXER, given=Given(multipliers=ZEROS[:, :2].copy())), ValueError,
     "given.multipliers: expected None without a sampled choice of selection 'sparsemixer', got an array; "
     "pass given.topk_indices with them"),
    ("multipliers-shape", plain(MIXER, given=Given(topk_indices=INDICES[:, :2], multipliers=ZEROS)), ValueError,
     "given.multipliers: expected shape (8, 2), got (8, 6); check its axes"),
    ("multipliers-infinite", plain(MIXER, given=Given(topk_indices=INDICES[:, :2], multipliers=ZEROS[:, :2] + np.inf)),
     ValueError, "given.multipliers: expected finite numbers, got others; they are 1 or 1/3"),
    ("token-ids-missing", plain(HASH), ValueError,
     "given.token_ids: expected ids from 0 to 4, got None; "
     "pass the id of each token in the vocabulary, or replay given.topk_indices"),
    ("token-ids-outside", plain(HASH, given=Given(token_ids=np.arange(8))), ValueError,
     "given.token_ids: expected ids from 0 to 4, got [5]; correct the ids"),
    ("token-ids-float", plain(HASH, given=Given(token_ids=np.zeros(8))), TypeError,
     "given.token_ids: expected a NumPy array of integers, got float64; convert it with .astype"),
    ("table-replayed", plain(HASH, given=Given(topk_indices=INDICES)), None, ""),
    ("table-repeat", with_table(at((2, 0), 4)(TABLE)), ValueError,
     "params.hash_table: expected each row to name an expert once, got [[4, 3, 4]]; replace the repeat"),
    ("table-outside", with_table(at((2, 0), -1)(TABLE)), ValueError,
     "params.hash_table: expected ids from 0 to 5, got [-1]; a table holds ids of experts"),
    ("table-float", with_table(TABLE.astype(np.float32)), TypeError,
     "params.hash_table: expected a NumPy array of integers, got float32; convert it with .astype"),
    ("table-missing", with_table(None), ValueError,
     "params.hash_table: expected an array of shape (5, 3), got None; the configuration needs it"),
    ("noise", given(noise=ZEROS), ValueError,
     "given.noise: expected None, got an array; no rule of this configuration reads it: leave it out"),
    ("counts-unread", given(counts_so_far=np.zeros(6, np.int64)), ValueError,
     "given.counts_so_far: expected None without a global balance loss, got an array; "
     "set losses.balance.scope='global'"),
    ("counts-shape", plain(losses(scope="global"), given=Given(counts_so_far=np.zeros(5, np.int64))), ValueError,
     "given.counts_so_far: expected shape (6,), got (5,); give one entry for each"),
    ("counts-negative", plain(losses(scope="global"), given=Given(counts_so_far=np.array([3, 1, -1, 0, 0, 0]))),
     ValueError, "given.counts_so_far: expected non-negative counts that sum to a multiple of 3, "
     "got [3, 1, -1, 0, 0, 0]; pass the running sum of balance_counts"),
    ("counts-sum", plain(losses(scope="global"), given=Given(counts_so_far=np.arange(6) + 1)), None, ""),
    ("counts-odd", plain(losses(scope="global"), given=Given(counts_so_far=np.array([4, 0, 0, 0, 0, 0]))), ValueError,
     "given.counts_so_far: expected non-negative counts that sum to a multiple of 3, "
     "got [4, 0, 0, 0, 0, 0]; pass the running sum of balance_counts"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_bad_input_is_refused_before_anything_is_computed(change, error, message):
    arguments = good()
    arguments |= change(arguments)
    if error is None:  # the row beside it that is allowed
        call(arguments)
        return
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(arguments)
    assert not arguments["num"].engine.calls and not arguments["num"].engine.tiers


def test_the_good_arguments_are_accepted():
    call(good())
    arguments = good()
    call(arguments | {"given": with_sequences(8)})


# --- the way back ----------------------------------------------------------------------------------------------------

UPSTREAM = [
    ("d_y-shape", {"d_y": ZEROS[:7]}, ValueError, "d_y: expected shape (8, 6), got (7, 6); check its axes"),
    ("d_y-dtype", {"d_y": ZEROS.astype(np.float64)}, TypeError,
     "d_y: expected native float32 in profile 'exact', got <f8; use .astype(numpy.float32)"),
    ("d_y-none", {"d_y": None}, TypeError,
     "d_y: expected a NumPy array of shape (8, 6), got NoneType; convert it with numpy.asarray"),
    ("d_logits-shape", {"d_logits": ZEROS[:, :4].copy()}, ValueError,
     "d_logits: expected shape (8, 6), got (8, 4); check its axes"),
    ("d_logits-list", {"d_logits": [[0.0] * 6] * 8}, TypeError,
     "d_logits: expected a NumPy array of shape (8, 6), got list; convert it with numpy.asarray"),
    ("record-none", {"record": None}, ValueError,
     "record: expected a MoERecord kept with 'all' or 'backward', got one without its stages; "
     "run moe_forward with keep='backward'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), [r[1:] for r in UPSTREAM], ids=[r[0] for r in UPSTREAM])
def test_bad_upstream_gradients_are_refused(change, error, message):
    arguments = good()
    arguments["record"] = refmoe.moe_forward(*(arguments[n] for n in ("x", "params", "config", "num", "given")))
    arguments["num"].engine.calls.clear()
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(arguments | change)
    assert not arguments["num"].engine.calls


OTHERS = {
    "no shared": (config_of(), "shared: expected a stage", "got None"),
    "a loss": (losses(), "losses.balance: expected None", "got a loss"),
    "experts": (config_of(num_experts=7), "routing.logits: expected float32 (8, 6)", "got float32 (8, 7)"),
    "plain": (config_of(experts={"gated": False}), "experts.gate_rows: expected rows", "got None"),
    "width": (config_of(intermediate_size=4), "experts.hidden_rows: expected rows of 5", "got rows of 4"),
    "choices": (config_of(top_k=2), "plan: expected 6 experts and slots (8, 3)", "got 6 and (8, 2)"),
    "soft": (CASES["soft"], "soft: expected None", "got a stage"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_record_of_another_configuration_is_refused(name):
    """What the way back would read of it fits neither the parameters nor the rules."""
    other, expected, got = OTHERS[name]
    arguments, alike = good(), CONFIG if name == "no shared" else config_of()
    arguments |= {"config": alike, "params": refmoe.init_params(alike)}
    num = arguments["num"]
    x, params, _ = make(other, num)
    record = refmoe.moe_forward(x, params, other, num, with_sequences(len(x)))
    num.engine.calls.clear()
    message = f"record.{expected}, as this configuration and profile make it, {got}; run moe_forward with "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}keep='backward'$"):
        call(arguments | {"record": record})
    assert not num.engine.calls


def test_the_record_of_another_profile_is_refused():
    arguments, wide = good(), Numerics("float64", backend="numpy")
    x, params, _ = make(CONFIG, wide)
    record = refmoe.moe_forward(x, params, CONFIG, wide)
    with pytest.raises(ValueError, match=r"^record\.routing\.logits: expected float32 \(8, 6\), .* got float64 "):
        call(arguments | {"record": record})


@pytest.mark.parametrize("number", [1j, "1", True, np.nan, np.ones(1), None])
def test_an_upstream_number_is_one_real_number(number):
    """A complex one would have lost its imaginary part without a word."""
    arguments = good()
    config = losses(coefficient=0.5)
    x, params, d_y = make(config, arguments["num"])
    record = refmoe.moe_forward(x, params, config, arguments["num"])

    def back(number):
        upstream = refmoe.Losses(balance=number)
        return refmoe.moe_backward(d_y, x, params, record, config, arguments["num"], d_losses=upstream)

    for allowed in (2, 0.5, np.float32(0.5), np.array(0.5)):
        assert back(allowed).d_logits_balance.any()
    if number is None:
        return
    with pytest.raises(ValueError, match=r"^d_losses\.balance: expected a finite scalar or None, got "):
        back(number)


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, "0", None, True])
def test_a_seed_is_a_word(seed):
    """Another language has no larger ones: it would make other parameters under the same seed."""
    error = ValueError if type(seed) is int else TypeError
    with pytest.raises(error, match=r"^seed: expected an integer"):
        refmoe.init_params(CONFIG, seed)
    last = refmoe.init_params(CONFIG, np.uint64((1 << 64) - 1))
    assert np.array_equal(last.w_router, refmoe.init_params(CONFIG, (1 << 64) - 1).w_router)


@pytest.mark.parametrize(("name", "value"), [("config", None), ("config", {}), ("recipe", []), ("recipe", None)])
def test_what_parameters_are_made_of(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
        refmoe.init_params(**{"config": CONFIG, name: value})


def test_the_record_of_other_tokens_is_refused():
    arguments = good()
    x = arguments["x"][:5].copy()
    record = refmoe.moe_forward(x, *(arguments[n] for n in ("params", "config", "num", "given")))
    message = "record: expected the record of these 8 tokens, got one of 5; run moe_forward with keep='backward'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(arguments | {"record": record})


def test_the_backward_checks_what_the_forward_checks():
    arguments = good()
    record = refmoe.moe_forward(*(arguments[n] for n in ("x", "params", "config", "num", "given")))
    with pytest.raises(TypeError, match=r"^x: expected native float32"):
        call(arguments | {"record": record, "x": arguments["x"].astype(np.float64)})


# --- what shows only in the values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (6, "expected ids from -1 to 5, got [6]; use -1 for an unused slot"),
        (-2, "expected ids from -1 to 5, got [-2]; use -1 for an unused slot"),
        (0, "expected each token to name an expert once, got [[0, 0, 2]]; replace the repeat by -1"),
    ],
)
def test_replayed_ids_are_experts_and_each_named_once(entry, message):
    with pytest.raises(ValueError, match=f"^given.topk_indices: {re.escape(message)}$"):
        call(good() | {"given": Given(topk_indices=at((4, 1), entry)(INDICES))})


@pytest.mark.parametrize(
    ("bad", "got"), [(np.nan, "nan for token 3, expert 0"), (np.inf, "(-?inf|nan) for token 3, expert 0")]
)
def test_non_finite_logits_are_refused(bad, got):
    arguments = good()
    arguments["x"] = at((3, 2), bad)(arguments["x"])
    with pytest.raises(ValueError, match=rf"^logits: expected finite values, got {got}; check x and w_router"):
        call(arguments)
    arguments = good()
    arguments["given"] = Given(logits=at((3, 0), bad)(ZEROS))
    with pytest.raises(ValueError, match=rf"^logits: expected finite values, got {got}; "):
        call(arguments)


def test_logits_that_overflow_are_refused():
    arguments = good()
    arguments["x"] = np.full((8, 6), 3e38, np.float32)
    arguments["params"] = arguments["params"]._replace(w_router=np.ones((6, 6), np.float32))
    with pytest.raises(ValueError, match=r"^logits: expected finite values, got inf for token 0, expert 0; "):
        call(arguments)


def test_scores_that_sum_to_zero_cannot_be_normalised():
    config = config_of(routing={"score_fn": "sigmoid", "normalize": True})
    arguments = good() | {"config": config, "params": refmoe.init_params(config)}
    logits = at(5, -1000)(ZEROS)
    with pytest.raises(
        ValueError, match=r"^routing\.normalize: expected a positive sum of kept scores, got 0 for token 5; "
    ):
        call(arguments | {"given": Given(logits=logits)})
    config = config_of(routing={"score_fn": "sigmoid", "normalize": True, "norm_eps": 1e-20})
    call(arguments | {"config": config, "given": Given(logits=logits)})


def test_a_lazy_source_is_checked_by_its_shape():
    class Source:
        shape = (6, 4, 6)

        def __call__(self, e):
            raise AssertionError("read before it was checked")

    arguments = good()
    arguments["params"] = arguments["params"]._replace(w_up=Source())
    with pytest.raises(
        ValueError, match=r"^params\.w_up: expected shape \(6, 5, 6\), got \(6, 4, 6\); check the source$"
    ):
        call(arguments)


def test_parameters_of_another_configuration_are_refused():
    arguments = good()
    arguments["params"] = MoEParams(shared=SharedParams())
    with pytest.raises(ValueError, match=r"^params\.w_router: expected an array of shape \(6, 6\), got None; "):
        call(arguments)
    more = generate("more", (6,), 0)
    arguments["params"] = good()["params"]._replace(selection_bias=more)
    with pytest.raises(ValueError, match=r"^params\.selection_bias: expected None, got an array; "):
        call(arguments)


@pytest.mark.parametrize("scale", ["expert_scale", "global_scale"])
def test_a_scale_that_is_not_finite(scale):
    config = CASES["scaled_weights"]
    x, params, _ = make(config, Numerics(backend="numpy"))
    params = params._replace(**{scale: getattr(params, scale) * np.float32(np.inf)})
    with pytest.raises(ValueError, match=rf"^params\.{scale}: expected finite values, got infinities or NaN"):
        refmoe.moe_forward(x, params, config, Numerics(backend="numpy"))


@pytest.mark.parametrize(("name", "config"), [("noise", "noisy"), ("jitter", "jittered_block")])
def test_noise_and_jitter_that_cannot_be(name, config):
    config, num = CASES[config], Numerics(backend="numpy")
    x, params, _ = make(config, num)
    with pytest.raises(ValueError, match=rf"^given\.{name}: expected shape \(8, 6\), got \(6, 8\)"):
        refmoe.moe_forward(x, params, config, num, Given(**{name: np.ones((6, 8), np.float32)}))
    with pytest.raises(ValueError, match=rf"^given\.{name}: expected finite numbers, got others"):
        refmoe.moe_forward(x, params, config, num, Given(**{name: np.full((8, 6), np.nan, np.float32)}))


@pytest.mark.parametrize("field", ["w_router", "router_bias"])
def test_values_of_what_makes_logits_are_looked_at_where_it_is_read(field):
    config = refmoe.MoEConfig(
        hidden_size=6, intermediate_size=5, num_experts=6, top_k=3, routing=refmoe.RoutingConfig(router_bias=True)
    )
    num, x = Numerics(store="bf16", backend="numpy"), generate("x", (8, 6), 0, "bf16")
    params = refmoe.init_params(config, recipe="bf16")
    logits = refmoe.moe_forward(x, params, config, num).routing.logits
    finer = params._replace(**{field: getattr(params, field) + np.float32(2.0**-20)})
    with pytest.raises(ValueError, match=f"params.{field}: expected values that bf16 can represent"):
        refmoe.moe_forward(x, finer, config, num)
    given = Given(logits=logits)
    want, got = (refmoe.moe_forward(x, p, config, num, given).y for p in (params, finer))
    assert got.tobytes() == want.tobytes()
    with pytest.raises(ValueError, match=f"params.{field}: expected shape"):  # its shape belongs to the configuration
        refmoe.moe_forward(x, params._replace(**{field: getattr(params, field)[:5]}), config, num, given)
