"""Losses: nine known values, scopes, identities, and the controller of the selection bias."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from cases import config_of, make, same_bits
from law_bridge import LAW, agree, to_law

import refmoe
from refmoe import (
    BalanceLoss,
    CommunicationLoss,
    DeviceLoss,
    Given,
    ImportanceLoss,
    LoadLoss,
    LossesConfig,
    MutualInformationLoss,
    Numerics,
    OrthogonalityLoss,
    ZLoss,
    update_selection_bias,
)
from refmoe.formats import round_fraction
from refmoe.losses import (
    load_loss,
    load_loss_backward,
    loss_scopes,
    orthogonality_loss,
    orthogonality_loss_backward,
    pooled_balance_loss,
    pooled_balance_loss_backward,
)

EXACT = Numerics(backend="numpy")
FLOAT64 = Numerics("float64", backend="numpy")


def f32(values):
    return np.array(values, np.float32)


LOGITS = np.array([
    [1.0, 0.5, -0.5, 0.0],
    [0.8, 1.2, 0.1, -1.0],
    [1.5, -0.2, 0.3, 0.7],
    [0.2, 0.1, 0.9, -0.3],
    [1.1, 0.6, -1.2, 0.4],
    [-0.4, 0.3, 0.2, 0.25],
])  # fmt: skip

# The nine values of the project's seed fixture: six tokens, four experts, two choices.
NINE = [
    ("balance", BalanceLoss(coefficient=1), 1.1331110351249711),
    ("balance", BalanceLoss(coefficient=1, divide_by_k=False), 2.2662220702499423),
    ("balance", BalanceLoss(coefficient=1, counts="first"), 1.1940449967926121),
    ("balance", BalanceLoss(coefficient=1, probs="normalized_sigmoid"), 1.0609437054810311),
    ("balance", BalanceLoss(coefficient=1, probs="sigmoid"), 2.392294731684883),
    ("importance", ImportanceLoss(coefficient=1), 0.07310077909154199),
    ("importance", ImportanceLoss(coefficient=1, gates="topk"), 0.29819941850183085),
    ("importance", ImportanceLoss(coefficient=1, gates="topk", ddof=1), 0.3975992246691078),
    ("z", ZLoss(coefficient=1), 3.404649313371019),
]
# More numbers from the same table of logits, worked out in forty digits: experts 0, 1 and 2, 3 on two devices.
MORE = [
    ("device", DeviceLoss(coefficient=1, num_devices=2), 1.1215691961866252),
    ("communication", CommunicationLoss(coefficient=1, num_devices=2, device_limit=2), 0.8107845980933126),
    ("balance", BalanceLoss(coefficient=1, probs="relu"), 2.111111111111111),
    ("importance", ImportanceLoss(coefficient=1, form="deviation"), 0.018275194772885504),
    ("mutual_information", MutualInformationLoss(coefficient=1), -0.11212035075163476),
    ("mutual_information", MutualInformationLoss(coefficient=1, terms="marginal"), -1.3507054528921834),
    ("mutual_information", MutualInformationLoss(coefficient=1, terms="conditional"), 1.2385851021405487),
]
IDS = "A B C A-normalized-sigmoid A-sigmoid cv2-softmax cv2-topk cv2-topk-ddof1 z".split()


def record_of(logits, num=FLOAT64, given=None, top_k=2, routing=None, **losses):
    logits = np.asarray(logits, num.dtype)
    config = config_of(
        hidden_size=1, intermediate_size=1, num_experts=logits.shape[1], top_k=top_k, routing=routing,
        losses=LossesConfig(**losses),
    )  # fmt: skip
    x, params, d_y = make(config, num, len(logits))
    given = (given or Given())._replace(logits=logits)
    record = refmoe.moe_forward(x, params, config, num, given)
    return record, refmoe.moe_backward(d_y, x, params, record, config, num, given)


def value(kind, loss, logits, num=FLOAT64, given=None, **more):
    return getattr(record_of(logits, num, given, **{kind: loss}, **more)[0].losses, kind)


# --- nine values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "loss", "want"), NINE, ids=IDS)
def test_the_nine_values_in_float64(kind, loss, want):
    got = value(kind, loss, LOGITS)
    assert abs(got - want) <= 4 * np.spacing(want), f"{(got - want) / np.spacing(want):+.1f} ulp"


@pytest.mark.parametrize(("kind", "loss", "want"), MORE, ids=lambda v: v if isinstance(v, str) else "")
def test_more_values_of_the_same_table(kind, loss, want):
    assert abs(value(kind, loss, LOGITS) - want) <= 4 * np.spacing(max(abs(want), 1.0))
    assert value(kind, loss, LOGITS, EXACT) == pytest.approx(want, rel=2e-7)


@pytest.mark.parametrize(("kind", "loss", "want"), NINE, ids=IDS)
def test_the_nine_values_in_exact_are_the_exact_ones_rounded_once(kind, loss, want):
    """Of the float32 logits, which differ from the decimal ones: evaluated in sixty digits, rounded once."""
    logits = LOGITS.astype(np.float32)
    got = value(kind, loss, logits, EXACT)
    assert got.dtype == np.float32 and got.shape == ()
    assert got == round_fraction(exact_loss(kind, loss, logits), "float32")
    assert abs(got - want) < 1e-6


def exact_loss(kind, loss, logits, k=2):
    with mpmath.workdps(60):
        z = [[mpmath.mpf(float(v)) for v in row] for row in logits]
        T, E = len(z), len(z[0])
        order = [sorted(range(E), key=lambda e, row=row: -row[e])[:k] for row in z]
        if kind == "z":
            return fraction(sum(mpmath.log(sum(map(mpmath.exp, row))) ** 2 for row in z) / T)
        if kind == "importance":
            return fraction(cv2(z, order, loss))
        choices = order if loss.counts == "all" else [row[:1] for row in order]
        counts = [sum(e in row for row in choices) for e in range(E)]
        norm = T * k if loss.counts == "all" and loss.divide_by_k else T
        probs = [probabilities(row, loss.probs) for row in z]
        return fraction(sum(n * sum(row[e] for row in probs) for e, n in enumerate(counts)) * E / mpmath.mpf(norm * T))


def probabilities(row, kind):
    if kind == "softmax":
        powers = [mpmath.exp(v) for v in row]
        return [p / sum(powers) for p in powers]
    s = [1 / (1 + mpmath.exp(-v)) for v in row]
    return s if kind == "sigmoid" else [v / sum(s) for v in s]


def cv2(z, order, loss):
    E = len(z[0])
    importance = [mpmath.mpf(0)] * E
    for row, chosen in zip(z, order):
        powers = [mpmath.exp(v) if loss.gates == "softmax" or e in chosen else 0 for e, v in enumerate(row)]
        importance = [i + p / sum(powers) for i, p in zip(importance, powers)]
    mean = sum(importance) / E
    return sum((i - mean) ** 2 for i in importance) / (E - loss.ddof) / mean**2


def fraction(x):
    """The exact value of a positive mpf."""
    man, exp = mpmath.mpf(x).man_exp
    return Fraction(int(man)) * Fraction(2) ** int(exp)


# --- what the families are -------------------------------------------------------------------------------------------


def test_perfect_balance_is_one_or_k():
    """Uniform probabilities, each expert chosen as often."""
    logits, indices = np.zeros((4, 4)), np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    given = Given(topk_indices=indices)
    assert value("balance", BalanceLoss(coefficient=1), logits, given=given) == 1
    assert value("balance", BalanceLoss(coefficient=1, divide_by_k=False), logits, given=given) == 2
    assert value("balance", BalanceLoss(coefficient=1, counts="first"), logits, given=given) == 1
    assert value("balance", BalanceLoss(coefficient=3), logits, EXACT, given) == 3


def test_one_is_not_a_lower_bound():
    """Nine tokens at p = (0.51, 0.49), one at (0, 1): 2 (0.9 * 0.459 + 0.1 * 0.541)."""
    logits = np.tile([np.log(0.51), np.log(0.49)], (10, 1))
    logits[9] = [-2000, 0]
    assert value("balance", BalanceLoss(coefficient=1), logits, top_k=1) == pytest.approx(0.9344, abs=1e-12)


def test_z_loss_by_hand():
    """log(4) for every token, in float32; and far from zero the logit itself."""
    assert value("z", ZLoss(coefficient=1), np.zeros((3, 4)), EXACT) == np.float32(1.9218120556728056)
    assert value("z", ZLoss(coefficient=0.5), [[1e4, 0, 0, 0]], EXACT, top_k=1) == 5e7


def test_importance_of_equal_gates_is_zero_and_so_is_its_gradient():
    record, grads = record_of(np.zeros((3, 4)), EXACT, importance=ImportanceLoss(coefficient=1))
    assert same_bits(record.losses.importance, np.zeros((), np.float32))
    assert same_bits(grads.d_logits_importance, np.zeros((3, 4), np.float32))
    # all tokens on one of two experts: importances (T, 0), variance T^2 / 4, mean T / 2
    for ddof, want in ((0, 1.0), (1, 2.0)):
        loss = ImportanceLoss(coefficient=1, gates="topk", ddof=ddof)
        assert value("importance", loss, [[1, 0], [1, 0], [2, 1]], EXACT, top_k=1) == want
    eps = ImportanceLoss(coefficient=1, gates="topk", eps=0.75)
    assert value("importance", eps, [[1, 0]], EXACT, top_k=1) == 0.25  # 1/4 / (1/4 + 3/4)


# --- devices, positive parts, and forms that are the same number ------------------------------------------------------


def test_one_device_has_nothing_to_balance():
    """Its fraction is 1 and its probability is 1; with M = 1 every token reaches it."""
    assert value("device", DeviceLoss(coefficient=3), LOGITS) == pytest.approx(3, rel=1e-15)
    assert value("communication", CommunicationLoss(coefficient=3), LOGITS, EXACT) == 3
    grads = record_of(LOGITS, EXACT, device=DeviceLoss(coefficient=3))[1]
    assert same_bits(grads.d_logits_device, np.zeros((6, 4), np.float32))


def test_a_device_for_each_expert_is_the_balance_loss():
    for scope, given in (("batch", None), ("sequence", Given(sequence_ids=np.array([1, 1, 1, 1, 0, 0])))):
        want, d_want = record_of(LOGITS, EXACT, given, balance=BalanceLoss(coefficient=0.3, scope=scope))
        got, d_got = record_of(LOGITS, EXACT, given, device=DeviceLoss(coefficient=0.3, num_devices=4, scope=scope))
        assert same_bits(got.losses.device, want.losses.balance)
        assert same_bits(d_got.d_logits_device, d_want.d_logits_balance)


def test_a_token_reaches_a_device_once():
    """Both choices of the first token are on device 0, those of the second on both: sent 2, 1; chosen 3, 1."""
    given = Given(topk_indices=np.array([[0, 1], [1, 2]]))
    zeros = np.zeros((2, 4))
    # P is 1/2 a device: 2 / (M T) (2 + 1) / 2, and 2 / (K T) (3 + 1) / 2
    assert value("communication", CommunicationLoss(coefficient=1, num_devices=2), zeros, EXACT, given) == 1.5
    assert value("device", DeviceLoss(coefficient=1, num_devices=2), zeros, EXACT, given) == 1
    unused = Given(topk_indices=np.array([[0, 1], [3, -1]]))  # an unused slot goes to no device: sent 1, 1; chosen 2, 1
    assert value("communication", CommunicationLoss(coefficient=1, num_devices=2), zeros, EXACT, unused) == 1
    assert value("device", DeviceLoss(coefficient=1, num_devices=2), zeros, EXACT, unused) == 0.75
    skewed = np.array([[0, 0, 0, 0], [1, 0, 0, 0]])
    d = record_of(skewed, EXACT, given, device=DeviceLoss(coefficient=1, num_devices=2))[1].d_logits_device
    assert d[0].tolist() == [0.0625, 0.0625, -0.0625, -0.0625]  # 2 / (K T^2) / 4 (n_j - mean n), n = 3, 3, 1, 1


def test_positive_parts_by_hand():
    """ReMoE's L1: E / (K T^2) sum_te n_e max(z_te, 0), and no gradient at or below zero."""
    logits, given = [[2.0, -1.0, 0.0], [0.5, 1.0, -3.0]], Given(topk_indices=np.array([[0, -1], [0, 1]]))
    record, grads = record_of(logits, EXACT, given, balance=BalanceLoss(coefficient=1, probs="relu"))
    assert record.losses.balance_counts.tolist() == [[2, 1, 0]]
    assert record.losses.balance == np.float32((2 * 2.5 + 1) * 3 / 8)
    assert grads.d_logits_balance.tolist() == [[0.75, 0, 0], [0.75, 0.375, 0]]


def test_the_sequence_wise_loss_of_deepseek_v3_is_a_choice_of_fields():
    """mean over sequences of sum_i f_i P_i: f = E / (K S) times the plain top K of the sigmoids, P their row shares."""
    loss = BalanceLoss(coefficient=1e-4, scope="sequence", selection="plain", probs="normalized_sigmoid")
    ids, s = np.array([0, 0, 0, 1, 1, 1]), 1 / (1 + np.exp(-LOGITS))
    config = config_of(
        num_experts=4, top_k=2, routing={"score_fn": "sigmoid", "selection_bias": True},
        losses=LossesConfig(balance=loss),
    )  # fmt: skip
    x, params, _ = make(config, FLOAT64, 6)
    params = params._replace(selection_bias=np.array([0.0, 0, 0, 9]))  # the actual selection is another one
    record = refmoe.moe_forward(x, params, config, FLOAT64, Given(logits=LOGITS, sequence_ids=ids))
    parts = []
    for one in (0, 1):
        rows = s[ids == one]
        f = np.bincount(np.argsort(-rows, axis=1, kind="stable")[:, :2].reshape(-1), minlength=4) * 4 / (2 * 3)
        parts.append(1e-4 * (f * (rows / rows.sum(axis=1, keepdims=True)).mean(axis=0)).sum())
    assert record.losses.balance == pytest.approx(np.mean(parts), rel=1e-14)


def test_squared_deviations_are_the_squared_variation_over_the_number_of_experts():
    for gates in ("softmax", "topk"):
        of_cv2, d_cv2 = record_of(LOGITS, importance=ImportanceLoss(coefficient=1, gates=gates))
        got, d_got = record_of(LOGITS, importance=ImportanceLoss(coefficient=1, gates=gates, form="deviation"))
        assert got.losses.importance == pytest.approx(of_cv2.losses.importance / 4, rel=1e-14)
        assert np.allclose(d_got.d_logits_importance, d_cv2.d_logits_importance / 4, rtol=1e-12, atol=1e-17)


# --- mutual information ----------------------------------------------------------------------------------------------


def information(logits, num=EXACT, **fields):
    loss = MutualInformationLoss(coefficient=1, **fields)
    record, grads = record_of(logits, num, top_k=1, mutual_information=loss)
    return float(record.losses.mutual_information), grads.d_logits_mutual_information


def test_rows_that_differ_by_constants_share_no_information():
    row = np.float32([0.25, -1.75, 2.125])
    for logits in ([row] * 4, [row, row + np.float32(2)], [row]):
        value, gradient = information(logits)
        assert same_bits(np.float32(value), np.float32(0)) and same_bits(
            gradient, np.zeros((len(logits), 3), np.float32)
        )
        assert information(logits, terms="marginal")[0] == -information(logits, terms="conditional")[0]


def test_certain_tokens_on_different_experts_have_all_of_it():
    """Two tokens, two experts, logits +-50: -log 2; nearly no gradient is left."""
    value, gradient = information([[50, -50], [-50, 50]])
    assert value == -np.float32(np.log(2)) and 0 < np.abs(gradient).max() < 1e-40
    # one expert for both: nothing, to within e^-100 and of the right sign
    value, _ = information([[50, -50], [51, -50]])
    assert -1e-40 < value < 0


def test_columns_that_agree_by_symmetry_have_no_marginal_gradient():
    """P = (1/2, 1/2) whatever the numbers are; only the conditional half is left."""
    logits = [[0.7, -1.1], [-1.1, 0.7]]
    value, gradient = information(logits, terms="marginal")
    assert value == -np.float32(np.log(2)) and same_bits(gradient, np.zeros((2, 2), np.float32))
    assert same_bits(information(logits)[1], information(logits, terms="conditional")[1])


def test_the_gradient_in_the_words_of_the_literature():
    """p_j / T (log(P_j / p_j) + KL(p || P)), and -p_j / T (log p_j + H) for the conditional half."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    P = p.mean(axis=0)
    kl = (p * np.log(p / P)).sum(axis=1, keepdims=True)
    assert np.allclose(information(LOGITS, FLOAT64)[1], p / 6 * (np.log(P / p) + kl), rtol=1e-12, atol=1e-17)
    H = -(p * np.log(p)).sum(axis=1, keepdims=True)
    got = information(LOGITS, FLOAT64, terms="conditional")[1]
    assert np.allclose(got, -p / 6 * (np.log(p) + H), rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("gap", [200.0, 3000.0, 1e5, 3e38])
def test_information_of_distant_logits(gap):
    """Probabilities below every format, and a loss that is all in them: decided, with the sign of the exact value."""
    logits = [[gap, 0, -gap], [gap, 0, 0], [0, 0, -gap]]
    for terms in ("marginal", "conditional", "both"):
        value, gradient = information(logits, terms=terms)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    value, _ = information([[gap, 0], [gap, 1]])
    assert value <= 0 and np.signbit(value)


# --- load ------------------------------------------------------------------------------------------------------------


def load_of(clean, std, noisy, num=EXACT, top_k=2, given=None, backward=False, **fields):
    clean, std, noisy = (np.asarray(array, num.dtype) for array in (clean, std, noisy))
    loss = LossesConfig(load=LoadLoss(coefficient=1, **fields))
    config = config_of(num_experts=noisy.shape[1], top_k=top_k, losses=loss)
    scopes = loss_scopes(len(noisy), loss.load, config, given or Given())
    arguments = clean, std, noisy, None, scopes, config, num
    return load_loss_backward(1.0, *arguments) if backward else load_loss(*arguments)


STD = np.tile([0.5, 0.75], (6, 2))


@pytest.mark.parametrize(
    ("fields", "want"),
    [({}, 0.12624694759315774), ({"ddof": 1}, 0.16832926345754365), ({"threshold": "kth"}, 0.08279395383339096)],
)
def test_load_of_the_table(fields, want):
    """The table as noisy logits, its rows in reverse as clean ones, deviations 1/2 and 3/4; in forty digits."""
    assert abs(load_of(LOGITS[::-1], STD, LOGITS, FLOAT64, **fields) - want) <= 1e-15
    assert load_of(LOGITS[::-1], STD, LOGITS, **fields) == pytest.approx(want, rel=3e-7)


def test_without_noise_the_load_is_the_count():
    """Loads 5, 4, 1, 2: variance 5/2 over the squared mean 9; no gradient."""
    record, grads = record_of(LOGITS, EXACT, load=LoadLoss(coefficient=1))
    assert record.losses.load == np.float32(2.5 / 9) and not grads.d_logits_load.any()
    assert grads.d_clean_logits_load is None and grads.d_noise_std_load is None
    nothing = record_of(LOGITS, EXACT, Given(topk_indices=np.full((6, 2), -1)), load=LoadLoss(coefficient=1))[0]
    assert nothing.losses.load == 0


def test_an_expert_is_measured_against_the_others():
    """K = 1, noisy (3, 1, 0): expert 0 against 1, the others against 3; in deviations 2, (1 - 3) / 2 = -1 and -3."""
    args = [[3, 1, 0]], [[1, 2, 1]], [[3, 1, 0]]
    cdf = lambda u: float(mpmath.ncdf(u))  # noqa: E731
    loads = np.array([cdf(2), cdf(-1), cdf(-3)])
    assert load_of(*args, FLOAT64, top_k=1) == pytest.approx(loads.var() / loads.mean() ** 2, rel=1e-14)
    d_logits, d_clean, d_std = load_of(*args, FLOAT64, top_k=1, backward=True)
    # what the clean logit of 0 gains, its threshold, logit 1, loses; that of 1 and 2 is logit 0
    assert d_logits[0, 1] == -d_clean[0, 0] and d_logits[0, 2] == 0
    assert d_logits[0, 0] == pytest.approx(-(d_clean[0, 1] + d_clean[0, 2]), rel=1e-14)
    assert np.allclose(d_std, -d_clean * [[2, -1, -3]], rtol=1e-14)


def test_loads_that_agree_by_symmetry_have_no_variance():
    """Opposite arguments make one half each: Phi(-u) + Phi(u) = 1."""
    noisy, clean = [[1, 0], [1, 0]], [[2, 3], [-2, -1]]
    args = clean, np.ones((2, 2)), noisy
    # u = (2 - 0, 3 - 1) and (-2 - 0, -1 - 1): columns 2, -2 and 2, -2
    assert same_bits(load_of(*args, top_k=1), np.zeros((), np.float32))
    assert not any(d.any() for d in load_of(*args, top_k=1, backward=True))


def test_a_load_needs_noise_everywhere():
    with pytest.raises(ValueError, match=r"noise_std: expected positive numbers with losses\.load, got zeros"):
        load_of(LOGITS, np.zeros((6, 4)), LOGITS)


def test_masked_tokens_have_no_load():
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    args, kept = (LOGITS[::-1], STD, LOGITS), (LOGITS[::-1][mask], STD[mask], LOGITS[mask])
    assert load_of(*args, given=Given(token_mask=mask)) == load_of(*kept)
    for got, want in zip(load_of(*args, given=Given(token_mask=mask), backward=True), load_of(*kept, backward=True)):
        assert same_bits(got[mask], want) and not got[4].any()
    nothing = Given(token_mask=np.zeros(6, bool))
    assert load_of(*args, given=nothing) == 0 and not load_of(*args, given=nothing, backward=True)[0].any()


# --- orthogonality ---------------------------------------------------------------------------------------------------

FORMS = ["l1", "frobenius"]


def router_of(w, num, form, T=6, given=None, into=None, d_loss=None, **loss):
    """Record and gradients of a layer whose w_router is w and whose tokens send the router nothing."""
    w = np.asarray(w, num.dtype)
    losses = LossesConfig(orthogonality=OrthogonalityLoss(form=form, **{"coefficient": 1} | loss))
    config = config_of(num_experts=len(w), hidden_size=w.shape[1], top_k=1, losses=losses)
    x, params, d_y = make(config, num, T)
    params, nothing = params._replace(w_router=w), np.zeros_like(d_y)
    d_losses = None if d_loss is None else refmoe.Losses(orthogonality=d_loss)
    record = refmoe.moe_forward(x, params, config, num, given)
    args = nothing, x, params, record, config, num, given
    return record, refmoe.moe_backward(*args, d_losses=d_losses, into=into and refmoe.MoEParams(w_router=into(w)))


@pytest.mark.parametrize("num", [EXACT, Numerics("chain", "bf16"), FLOAT64], ids=lambda n: n.profile)
def test_orthogonality_by_hand(num):
    """G = (5, 2; 2, 1), G - I = (4, 2; 2, 0): sums 8 and 24; 2 sign(G - I) W and 4 (G - I) W."""
    w = [[1, 2], [0, 1]]
    record, grads = router_of(w, num, "l1")
    assert record.routing.router_gram.tolist() == [[5, 2], [2, 1]] and record.losses.orthogonality == 8
    assert grads.d_router_gram_orthogonality.tolist() == [[1, 1], [1, 0]]
    assert grads.params.w_router.tolist() == [[2, 6], [2, 4]]
    record, grads = router_of(w, num, "frobenius", d_loss=-0.5)
    assert record.losses.orthogonality == 24
    assert grads.d_router_gram_orthogonality.tolist() == [[-4, -2], [-2, 0]]
    assert grads.params.w_router.tolist() == [[-8, -20], [-4, -8]]
    assert not grads.d_x_router.any() and not grads.d_logits.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num", [EXACT, Numerics("chain"), FLOAT64], ids=lambda n: n.profile)
def test_an_orthonormal_router_is_left_alone(num, form):
    record, grads = router_of([[0, -1, 0], [0, 0, 1]], num, form)
    for made in (record.losses.orthogonality, grads.d_router_gram_orthogonality, grads.params.w_router):
        assert same_bits(made, np.zeros_like(made))


# Of a router whose rows are the table's: six experts in four dimensions.
ORTHOGONALITY = [("l1", 29.2675), ("frobenius", 38.62795625)]


@pytest.mark.parametrize(("form", "want"), ORTHOGONALITY)
def test_orthogonality_against_forty_digits(form, want):
    """SimBal's own orientation: ||R^T R - I||, with the gradients 2 R sign(R^T R - I) and 4 R (R^T R - I)."""
    record, grads = router_of(LOGITS, FLOAT64, form)
    with mpmath.workdps(40):
        R = mpmath.matrix(LOGITS.T.tolist())
        off = R.T * R - mpmath.eye(6)
        far = mpmath.fsum(abs(v) if form == "l1" else v * v for v in off)
        slope = 2 * R * off.apply(mpmath.sign) if form == "l1" else 4 * R * off
        gradient = np.array(slope.T.tolist(), float)
    assert far == pytest.approx(want, rel=1e-14) and record.losses.orthogonality == pytest.approx(want, rel=1e-14)
    np.testing.assert_allclose(grads.params.w_router, gradient, rtol=1e-13, atol=1e-13)
    single, back = router_of(LOGITS, EXACT, form)
    assert single.losses.orthogonality == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(back.params.w_router, gradient, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_orthogonality_is_rounded_once(form):
    """Inner products of any size, 1 and 0 among them: the exact sum and slopes, each rounded once."""
    rng = np.random.default_rng(4)
    c, d = 0.3, np.float32(-1.7)
    for _ in range(20):
        gram = (rng.normal(size=(5, 5)) * 2.0 ** rng.integers(-30, 30, (5, 5))).astype(np.float32)
        gram[rng.random((5, 5)) < 0.2] = rng.integers(2)
        loss = LossesConfig(orthogonality=OrthogonalityLoss(coefficient=c, form=form))
        config = config_of(num_experts=5, losses=loss)
        off = [[Fraction(float(g)) - (e == f) for f, g in enumerate(row)] for e, row in enumerate(gram)]
        far = sum(abs(v) if form == "l1" else v * v for row in off for v in row)
        assert orthogonality_loss(gram, config, EXACT) == round_fraction(far * Fraction(c), "float32")
        slopes = [[2 * v if form == "frobenius" else (v > 0) - (v < 0) for v in row] for row in off]
        want = [[round_fraction(Fraction(c) * v * Fraction(float(d)), "float32") for v in row] for row in slopes]
        assert same_bits(orthogonality_loss_backward(d, gram, config, EXACT), f32(want))


@pytest.mark.parametrize("form", FORMS)
def test_orthogonality_does_not_know_of_tokens(form):
    want, back = router_of(LOGITS, EXACT, form)
    for T, mask in ((6, np.zeros(6, bool)), (2, None), (0, None)):
        record, grads = router_of(LOGITS, EXACT, form, T, Given(token_mask=mask))
        assert same_bits(record.losses.orthogonality, want.losses.orthogonality)
        assert same_bits(grads.params.w_router, back.params.w_router)


@pytest.mark.parametrize("form", FORMS)
def test_given_logits_leave_nothing_to_be_orthogonal(form):
    record, grads = router_of(LOGITS, EXACT, form, given=Given(logits=np.zeros((6, 6), np.float32)))
    assert same_bits(record.losses.orthogonality, np.float32(0)) and record.routing.router_gram is None
    assert grads.params.w_router is None and grads.d_router_gram_orthogonality is None


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_a_gradient_added_to_a_place_is_rounded_once_with_it(backend):
    """1 there, and 2 c w = 2^-24 (1 + 2^-24 - 2^-47): above the midpoint of 1, where its own rounding ends on it."""
    c, w = 2.0**-26 * (1 + 2.0**-23), 2 * (1 - 2.0**-24)
    place = lambda like: np.ones_like(like)  # noqa: E731
    num = Numerics(backend=backend)
    _, grads = router_of([[w]], num, "l1", coefficient=c)
    assert grads.params.w_router == 2.0**-24 < 2 * c * w
    _, grads = router_of([[w]], num, "l1", coefficient=c, into=place)
    assert grads.params.w_router == np.float32(1 + 2.0**-23)


# --- importance of columns that agree --------------------------------------------------------------------------------


def test_importances_that_agree_by_symmetry_have_no_variance():
    for logits in ([[1, 0], [0, 1]], [[1, 0, 3], [0, 3, 1], [3, 1, 0]]):
        for form in ("cv2", "deviation"):
            record, grads = record_of(logits, EXACT, top_k=1, importance=ImportanceLoss(coefficient=1, form=form))
            assert same_bits(record.losses.importance, np.zeros((), np.float32)) and not grads.d_logits_importance.any()


def test_without_a_single_gate_importance_is_zero():
    given = Given(topk_indices=np.full((6, 1), -1))
    loss = ImportanceLoss(coefficient=1, gates="topk")
    record, grads = record_of(LOGITS, EXACT, given, top_k=1, importance=loss)
    assert record.losses.importance == 0 and not grads.d_logits_importance.any()


# --- pooled over layers ----------------------------------------------------------------------------------------------


def pooled_config(num_experts, top_k=1, **fields):
    loss = BalanceLoss(**{"coefficient": 1, "divide_by_k": False, "selection": "plain"} | fields)
    return config_of(num_experts=num_experts, top_k=top_k, losses=LossesConfig(balance=loss))


def test_two_collapsed_layers_look_perfect_when_pooled():
    """Each layer on another one of two experts: 2 and 2 by layer, 1 pooled; and the gradient sees no collapse."""
    config = pooled_config(2)
    layers = [np.float32([[200, 0]] * 3), np.float32([[0, 200]] * 3)]
    alone = [pooled_balance_loss([one], config, EXACT, Given()) for one in layers]
    assert [float(v) for v in alone] == [2, 2] and pooled_balance_loss(layers, config, EXACT, Given()) == 1
    assert all(not d.any() for d in pooled_balance_loss_backward(1.0, layers, config, EXACT, Given()))


def test_the_pooled_loss_is_that_of_transformers():
    """tokens_per_expert (k, E), router_prob (E,): sum of their products times E, with and without a mask."""
    layers = [LOGITS[:3], LOGITS[3:], LOGITS[1:4] / 2]
    for mask in (np.ones(3, bool), np.array([True, False, True])):
        p = np.concatenate([np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in layers])
        chosen = np.argsort(-p, axis=1, kind="stable")[:, :2]
        kept = np.tile(mask, 3)
        per_slot = np.stack([np.eye(4)[chosen[kept, k]].mean(axis=0) for k in range(2)])
        want = (per_slot * p[kept].mean(axis=0)).sum() * 4
        got = pooled_balance_loss(layers, pooled_config(4, 2), FLOAT64, Given(token_mask=mask))
        assert got == pytest.approx(want, rel=1e-14)


def test_the_pooled_gradient_is_cut_by_layer():
    layers, config = [LOGITS[:3], LOGITS[3:]], pooled_config(4, 2, probs="normalized_sigmoid")
    given = Given(token_mask=np.array([True, True, False]))
    grads = pooled_balance_loss_backward(0.5, layers, config, FLOAT64, given)
    step = 2.0**-17
    for layer in (0, 1):
        for at in np.ndindex(3, 4):
            ends = []
            for sign in (1, -1):
                moved = [z.copy() for z in layers]
                moved[layer][at] += sign * step
                ends.append(pooled_balance_loss(moved, config, FLOAT64, given))
            assert grads[layer][at] == pytest.approx(0.5 * (ends[0] - ends[1]) / (2 * step), abs=1e-9)
    assert not grads[0][2].any() and not grads[1][2].any()


def test_the_pooled_loss_is_the_laws():
    layers, config = [LOGITS[:3].astype(np.float32), LOGITS[3:].astype(np.float32)], pooled_config(4, 2)
    given, scalars = Given(token_mask=np.array([True, True, False])), {"token_mask": [True, True, False]}
    law = LAW.stored("float32", LAW.pooled_balance_loss([to_law(z) for z in layers], config.to_dict(), scalars))
    agree([law], np.reshape(pooled_balance_loss(layers, config, EXACT, given), (1,)))
    law = LAW.pooled_balance_backward(-0.3, [to_law(z) for z in layers], config.to_dict(), scalars)
    agree(law, np.stack(pooled_balance_loss_backward(-0.3, layers, config, EXACT, given)))


def test_the_pooled_loss_knows_only_logits():
    with pytest.raises(ValueError, match=r"losses\.balance: expected a loss with selection 'plain', got 'actual'"):
        pooled_balance_loss([LOGITS], pooled_config(4, selection="actual"), FLOAT64, Given())
    with pytest.raises(ValueError, match=r"losses\.balance: expected a loss with selection 'plain', got None"):
        pooled_balance_loss([LOGITS], config_of(num_experts=4), FLOAT64, Given())


# --- scopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probs", ["softmax", "normalized_sigmoid", "sigmoid"])
def test_the_sequence_loss_is_the_mean_over_sequences_whatever_their_lengths(probs):
    ids = np.array([5, 5, 2, 5, 2, 5])
    loss = BalanceLoss(coefficient=1, probs=probs, scope="sequence")
    parts = [value("balance", BalanceLoss(coefficient=1, probs=probs), LOGITS[ids == s]) for s in (2, 5)]
    got = value("balance", loss, LOGITS, given=Given(sequence_ids=ids))
    assert got == pytest.approx(np.mean(parts), rel=1e-15)


def test_sequence_and_batch_differ_by_the_covariance_of_counts_and_probabilities():
    """mean over m of E sum f_m P_m = E sum (mean f)(mean P) + E sum cov(f_m, P_m), for sequences of one length."""
    ids = np.repeat([0, 1], 3)
    sequence = value("balance", BalanceLoss(coefficient=1, scope="sequence"), LOGITS, given=Given(sequence_ids=ids))
    batch = value("balance", BalanceLoss(coefficient=1), LOGITS)
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    chosen = np.argsort(-LOGITS, axis=1, kind="stable")[:, :2]
    f = np.array([np.bincount(chosen[ids == m].reshape(-1), minlength=4) / 6 for m in (0, 1)])
    P = np.array([p[ids == m].mean(axis=0) for m in (0, 1)])
    covariance = 4 * ((f - f.mean(axis=0)) * (P - P.mean(axis=0))).mean(axis=0).sum()
    assert abs(covariance) > 1e-3 and sequence == pytest.approx(batch + covariance, rel=1e-14)


def test_the_global_loss_takes_its_counts_from_all_micro_batches():
    loss = BalanceLoss(coefficient=1, scope="global")
    first, second = LOGITS[:2], LOGITS[2:]
    counts = record_of(first, balance=loss)[0].plan.assigned_per_expert
    got = value("balance", loss, second, given=Given(counts_so_far=counts))
    chosen = np.argsort(-LOGITS, axis=1, kind="stable")[:, :2]
    f = np.bincount(chosen.reshape(-1), minlength=4) / 12
    P = (np.exp(second) / np.exp(second).sum(axis=1, keepdims=True)).mean(axis=0)
    assert got == pytest.approx(4 * (f * P).sum(), rel=1e-14)
    # nothing counted so far: the batch's own
    assert value("balance", loss, second) == value("balance", BalanceLoss(coefficient=1), second)
    record, _ = record_of(second, given=Given(counts_so_far=counts), balance=loss)
    assert record.losses.balance_counts.tolist() == [(counts + record.plan.assigned_per_expert).tolist()]


def test_first_choices_are_counted_apart():
    loss = BalanceLoss(coefficient=1, scope="global", counts="first")
    got = value("balance", loss, LOGITS, given=Given(counts_so_far=np.array([0, 1, 2, 3])))
    # first choices 3, 2, 1, 0: three of each of the four over twelve tokens, so f = 1/4 and the loss is 1
    assert got == pytest.approx(1, rel=1e-15)


def test_plain_selection_counts_the_unbiased_scores():
    routing = {"score_fn": "sigmoid", "selection_bias": True}
    counts = {}
    for selection in ("actual", "plain"):
        config = config_of(
            num_experts=4, top_k=2, routing=routing,
            losses=LossesConfig(balance=BalanceLoss(coefficient=1, selection=selection)),
        )  # fmt: skip
        x, params, _ = make(config, FLOAT64, 6)
        params = params._replace(selection_bias=np.array([0.0, 0, 0, 9]))
        record = refmoe.moe_forward(x, params, config, FLOAT64, Given(logits=LOGITS))
        counts[selection] = record.losses.balance_counts.tolist()
        assert record.plan.assigned_per_expert[3] == 6  # the actual selection has the biased expert everywhere
    assert counts["plain"] == [[5, 4, 1, 2]] and counts["actual"][0][3] == 6


def test_masked_tokens_are_neither_counted_nor_averaged():
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    for kind, loss, _ in NINE + MORE:
        got = record_of(LOGITS, given=Given(token_mask=mask), **{kind: loss})
        want = record_of(LOGITS[mask], **{kind: loss})
        assert getattr(got[0].losses, kind) == getattr(want[0].losses, kind)
        gradient, name = getattr(got[1], f"d_logits_{kind}"), f"d_logits_{kind}"
        assert same_bits(gradient[mask], getattr(want[1], name)) and (gradient[4] == 0).all()


# --- gradients by hand -----------------------------------------------------------------------------------------------


def test_closed_form_gradients():
    """E = T = 2, K = 1: counts (2, 0), p = 1/2: a p (n_j - sum n p), a = E / (K T^2) = 1/2, and the others alike."""
    zeros = np.zeros((2, 2))
    d = lambda loss, kind="balance": getattr(record_of(zeros, EXACT, top_k=1, **{kind: loss})[1], f"d_logits_{kind}")  # noqa: E731
    assert d(BalanceLoss(coefficient=1)).tolist() == [[0.25, -0.25]] * 2
    # s (1 - s) / sum s = 1/4
    assert d(BalanceLoss(coefficient=1, probs="normalized_sigmoid")).tolist() == [[0.125, -0.125]] * 2
    assert d(BalanceLoss(coefficient=1, probs="sigmoid")).tolist() == [[0.25, 0]] * 2  # 1/2 n s (1 - s)
    # 2 lse p / T = log(2) / 2
    assert d(ZLoss(coefficient=1), "z").tolist() == [[np.float32(0.34657359027997264)] * 2] * 2


# --- the controller --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "signs"),
    [([5, 4, 1, 2], [-1, -1, 1, 1]), ([3, 3, 3, 3], [0, 0, 0, 0]), ([1, 1, 0], [-1, -1, 1]), ([2, 1, 0], [-1, 0, 1])],
)
def test_the_selection_bias_moves_by_the_sign_of_the_load(counts, signs):
    bias = f32([0.5, -0.25, 0, 1])[: len(counts)]
    got = update_selection_bias(bias, np.array(counts), 0.001, EXACT)
    want = [round_fraction(Fraction(float(b)) + s * Fraction(0.001), "float32") for b, s in zip(bias, signs)]
    assert got.dtype == np.float32 and got.tolist() == want


def test_the_sign_is_decided_in_integers():
    """A mean of 2^60 / 3 is no double; the comparison is exact all the same."""
    n = np.array([2**60 // 3, 2**60 // 3, 2**60 // 3 + 1])
    got = update_selection_bias(f32([0, 0, 0]), n, 0.5, EXACT)
    assert got.tolist() == [0.5, 0.5, -0.5]


def test_the_controller_reads_the_records_counts():
    record, _ = record_of(LOGITS, EXACT)
    bias = update_selection_bias(f32([0, 0, 0, 0]), record.plan.assigned_per_expert, 0.25, EXACT)
    assert record.plan.assigned_per_expert.tolist() == [5, 4, 1, 2] and bias.tolist() == [-0.25, -0.25, 0.25, 0.25]
