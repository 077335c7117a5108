"""Experts with few rows in one call of C (csrc/feed_forward.c): every stage has the bits of the stages one by one."""

import numpy as np
import pytest

from refmoe import kernels

if kernels.build_error() is not None:
    pytest.skip(f"no compiled module: {kernels.build_error()}", allow_module_level=True)

from kernel_calls import CODES, FORCES, Buffer, differing_bits, ffi, lib
from kernel_cases import RULES, coarse
from kernel_oracle import Rule

from refmoe import ExpertsConfig, Numerics
from refmoe.experts.feed_forward import expert_ffn, expert_ffn_and_sum
from refmoe.formats import Packed, decode, encode, quantise
from refmoe.kernels.experts import MOST_FEW_ROWS
from refmoe.numerics import Gathered
from refmoe.recipes import MoEParams

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
READS_FEW = [name for name in KERNELS if name in ("avx2", "avx512")]  # the others have no such function
COUNTS = (1, 0, 4, 2, 0, 1, 3)
SLOT_ROW = np.array([[3, 0], [10, -1], [-1, -1], [1, 9], [7, 2]])  # of five tokens, some rows nobody's
SCHEMES_OF_MAPS = [("mxfp4",) * 3, ("fp8-block",) * 3, ("mxfp8-e4m3", "fp8-rows", "mxfp8-e4m3")]
STAGES = ("gate_rows", "up_rows", "hidden_rows", "weighted_hidden_rows", "y_rows")

each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_rule = pytest.mark.parametrize("rule", RULES[:6], ids=lambda rule: f"{rule.profile}-{rule.format}")


def gentle(rng, shape):
    """Numbers whose activation float64 decides, of full significands."""
    return (rng.standard_normal(shape) / 8).astype(np.float32)


class Layer:
    """Experts, and rows for them."""

    def __init__(self, counts=COUNTS, D=37, F=130, make=gentle, gated=True, biases=True, seed=0, **choices):
        rng = np.random.default_rng(seed)
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        E, N = len(counts), int(self.offsets[-1])
        shapes = {"w_gate": (E, F, D), "w_up": (E, F, D), "w_down": (E, D, F)}
        shapes |= {"b_gate": (E, F), "b_up": (E, F), "b_down": (E, D)} if biases else {}
        self.params = {n: make(rng, shape) for n, shape in shapes.items() if gated or not n.endswith("gate")}
        self.x, self.weights = make(rng, (N, D)), np.abs(gentle(rng, N))
        activation = choices.pop("activation", "silu" if gated else "relu2")
        self.experts = ExpertsConfig(gated=gated, activation=activation, biases=biases, **choices)

    def run(self, rule, weighted=False, params=None, **engine):
        num = Numerics(rule.profile, rule.format, force_tier=rule.force_tier, **engine)
        params = MoEParams(w_router=None, **(self.params | (params or {})))
        weights = self.weights if weighted else None
        return expert_ffn(self.x, params, self.offsets, self.experts, num, weights), num.engine

    def assert_bits(self, rule, names=KERNELS, threads=(1, 2, 3), params=None, weighted=(False, True)):
        """C's one call, by every kernel that has it, and NumPy's stages; -> engines that were asked."""
        asked = []
        for heavy in weighted:
            want, _ = self.run(rule, heavy, params, backend="numpy")
            for kernel in names:
                for count in threads:
                    got, engine = self.run(rule, heavy, params, backend="c", kernel=kernel, threads=count)
                    assert_stages(got, want)
                    asked.append(engine)
        return asked


def assert_stages(got, want):
    for name in STAGES:
        one, other = getattr(got, name), getattr(want, name)
        assert (one is None) == (other is None), name
        assert one is None or differing_bits(one, other) == 0, name


def assert_one_call(engines, products=3):
    for engine in engines:
        few = engine.kernel in READS_FEW
        assert engine.calls["feed_forward", engine.kernel] == few
        assert engine.calls["grouped_matmul", engine.kernel] == (0 if few else products)


@each_rule
def test_every_stage_has_numpys_bits(rule):
    """Gated and plain, with biases and without, units of columns that are whole and not, experts without rows."""
    for gated, biases, D, F, seed in ((True, True, 37, 130, 0), (False, True, 66, 64, 1), (True, False, 64, 17, 2)):
        layer = Layer(D=D, F=F, gated=gated, biases=biases, seed=seed)
        assert_one_call(layer.assert_bits(rule, threads=(1, 2)), 3 if gated else 2)


@pytest.mark.parametrize("counts", [(0,), (1,), (4,), (0, 0), (0, 1), (3, 0, 0, 0, 0, 0, 0, 4)])
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_no_rows_one_row_and_most(profile, counts):
    assert_one_call(Layer(counts, D=33, F=70).assert_bits(Rule(profile, "float32")))


@pytest.mark.parametrize("activation, choices", [
    ("gelu_tanh", {}), ("silu", {"alpha": 1.702, "limit": 0.25, "linear_offset": 1.0}), ("relu", {}), ("relu2", {}),
])  # fmt: skip
def test_every_activation_that_c_has(activation, choices):
    assert_one_call(Layer(activation=activation, **choices).assert_bits(Rule("chain", "float32"), threads=(2,)))


@pytest.mark.parametrize("kernel", READS_FEW)
def test_a_chain_takes_more_rows_than_an_exact_sum(kernel):
    """Whether one call is made is what few.c says of its own functions."""
    most = {"avx2": {"chain": 4, "exact": 4}, "avx512": {"chain": 8, "exact": 4}}[kernel]
    for profile, rows in most.items():
        for count, calls in ((rows, 1), (rows + 1, 0)):
            engines = Layer((1, count), D=17, F=9).assert_bits(Rule(profile, "float32"), [kernel], (2,))
            assert [engine.calls["feed_forward", kernel] for engine in engines] == [calls] * 2
            assert [engine.calls["grouped_matmul", kernel] for engine in engines] == [3 - 3 * calls] * 2


@each_kernel
def test_more_rows_than_all_experts_take_are_not_tried(kernel, monkeypatch):
    """C would say no, but only after arrays for every stage were made; with one row less it is asked."""
    engine, tried = type(kernels.load(kernel, 1)), []
    real = engine._map
    monkeypatch.setattr(engine, "_map", lambda self, *parts: tried.append(parts) or real(self, *parts))
    for last, maps in ((MOST_FEW_ROWS, 3), (MOST_FEW_ROWS + 1, 0)):
        Layer((8, 8, last), D=5, F=6).run(Rule("chain", "float32"), backend="c", kernel=kernel, threads=1)
        assert len(tried) == maps
        tried.clear()


@pytest.mark.parametrize("force", ["compensated", "exact"])
def test_forced_tiers(force):
    for engine in Layer(D=9, F=6, make=coarse).assert_bits(Rule("exact", "bf16", force), threads=(2,)):
        assert engine.tiers["rounding_test"] == engine.tiers["grid"] == 0 < engine.tiers[force]
        assert engine.calls["feed_forward", engine.kernel] == (force != "exact" and engine.kernel in READS_FEW)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_what_the_activation_leaves_open_is_read_by_numpy(profile, value):
    """gate and up of the one call stay, the rest is computed stage by stage."""
    layer = Layer()
    layer.x[5, 3] = value
    for engine in layer.assert_bits(Rule(profile, "float32"), threads=(1, 2)):
        few = engine.kernel in READS_FEW
        assert engine.calls["feed_forward", engine.kernel] == few
        assert engine.calls["grouped_matmul", engine.kernel] == (1 if few else 3)


def test_infinite_weights_of_the_last_map_leave_nothing_open():
    layer = Layer()
    layer.params["w_down"][3, 4, 5] = np.inf
    assert_one_call(layer.assert_bits(Rule("exact", "float32"), threads=(2,)))


def test_infinite_weights_of_rows_do():
    layer = Layer()
    layer.weights[2] = np.inf
    engines = layer.assert_bits(Rule("exact", "float32"), READS_FEW, (2,), weighted=(True,))
    assert {engine.calls["grouped_matmul", engine.kernel] for engine in engines} <= {1}


@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_weights_of_16_bits(profile, form):
    layer = Layer(D=40, F=70)
    stored = {n: Packed(encode(w, form), form) for n, w in layer.params.items() if n.startswith("w")}
    assert_one_call(layer.assert_bits(Rule(profile, "float32"), threads=(1, 2), params=stored))


@pytest.mark.parametrize("kernel", READS_FEW)
def test_rows_of_16_bits_are_the_first_maps_alone(kernel):
    layer, rule = Layer(), Rule("exact", "float32")
    codes = encode(layer.x, "bf16")
    p, engine, made = layer.params, kernels.load(kernel, 2), []
    maps = [(p[f"w_{name}"], p[f"b_{name}"]) for name in ("gate", "up", "down")]
    for x in (decode(codes, "bf16"), Packed(codes, "bf16")):
        slots = np.abs(gentle(np.random.default_rng(1), (5, 2))), SLOT_ROW
        made.append(engine.feed_forward(rule, ("silu", 1.0, None, 0.0), x, *maps, layer.offsets, layer.weights, slots))
    for one, other in zip(*made, strict=True):
        assert differing_bits(one, other) == 0


@pytest.mark.parametrize("schemes", SCHEMES_OF_MAPS, ids="-".join)
@pytest.mark.parametrize("profile", ["exact", "chain"])
def test_weights_of_fewer_bits_with_scales(profile, schemes):
    """What one map's codes were decoded for is not taken for another's; some need doubles beside some that do not."""
    layer = Layer(D=64, F=65, biases=False)  # a unit of one column: the same number in gate and up
    names = zip(layer.params, schemes, strict=True)
    stored = {n: quantise(layer.params[n], s, "up" if s.startswith("mx") else None) for n, s in names}
    for force in (None, "compensated") if profile == "exact" else (None,):
        assert_one_call(layer.assert_bits(Rule(profile, "float32", force), threads=(1, 2), params=stored))


# ---- the weighted sum that follows ----


@each_rule
@each_kernel
def test_the_sum_by_slot_has_numpys_bits(kernel, rule):
    """Slots without a row take no part, even with an infinite weight; where there is no one call there is no sum."""
    layer = Layer()
    weights = gentle(np.random.default_rng(1), SLOT_ROW.shape)
    weights[1, 1] = np.inf
    num = Numerics(rule.profile, rule.format, force_tier=rule.force_tier, backend="c", kernel=kernel, threads=2)
    params = MoEParams(w_router=None, **layer.params)
    arguments = layer.x, params, layer.offsets, layer.experts, num, None, (weights, SLOT_ROW)
    made, total = expert_ffn_and_sum(*arguments)
    assert_stages(made, layer.run(rule, backend="numpy")[0])
    assert (total is not None) == (num.engine.calls["feed_forward", kernel] == 1) == (kernel in READS_FEW)
    plain = Numerics(rule.profile, rule.format, backend="numpy")
    terms = [(weights[:, k, None], Gathered(made.y_rows, SLOT_ROW[:, k])) for k in range(2)]
    assert total is None or differing_bits(total, plain.sum("routed", terms)) == 0


@pytest.mark.parametrize("kernel", READS_FEW)
def test_no_sum_of_what_is_left_open_and_of_slots_that_c_does_not_read(kernel):
    layer, num = Layer(), Numerics("exact", backend="c", kernel=kernel, threads=2)
    weights = np.ones(SLOT_ROW.shape, np.float32)
    many = np.ones((5, 129), np.float32), np.zeros((5, 129), np.int64)
    cases = [(np.nan, (weights, SLOT_ROW)), (0.5, (weights, SLOT_ROW[:, ::-1])), (0.5, many)]
    cases += [(0.5, (np.ones((5, 0), np.float32), np.zeros((5, 0), np.int64))), (0.5, None)]
    for value, slots in cases:
        layer.x[5, 3] = value
        params = MoEParams(w_router=None, **layer.params)
        made, total = expert_ffn_and_sum(layer.x, params, layer.offsets, layer.experts, num, None, slots)
        assert total is None and made.y_rows.shape == layer.x.shape
    assert num.engine.calls["feed_forward", kernel] == len(cases)


def test_maps_of_different_formats_are_taken_one_by_one():
    layer = Layer(biases=False)
    half = {"w_up": Packed(encode(layer.params["w_up"], "fp16"), "fp16")}
    for engine in layer.assert_bits(Rule("exact", "float32"), threads=(2,), params=half):
        assert not engine.calls["feed_forward", engine.kernel]


# ---- the function itself ----


class Call:
    """refmoe_feed_forward_f32 with every array between guard words; `change` spoils one argument."""

    def __init__(self, kernel, rule, layer, threads=2, weighted=True):
        names = [ffi.string(lib.refmoe_kernel_name(i)).decode() for i in range(lib.refmoe_kernel_count())]
        self.rule, p = rule, layer.params
        (E, F, D), N = p["w_up"].shape, len(layer.x)
        inputs = [layer.offsets, layer.x, *(p[f"w_{n}"] for n in ("gate", "up", "down"))]
        inputs += [*(p[f"b_{n}"] for n in ("gate", "up", "down")), layer.weights]
        self.held = [Buffer(array) for array in inputs]
        self.rows = [Buffer((N, size), np.float32) for size in (F, F, F, F, D)]
        offsets, x, *w = (buffer.pointer() for buffer in self.held)
        gate, up, hidden, weighted_hidden, y = (buffer.pointer() for buffer in self.rows)
        fields = names.index(kernel), threads, CODES[rule.profile], CODES[rule.format], FORCES[rule.force_tier]
        self.act = ffi.new("refmoe_activation *", (lib.REFMOE_SILU, 1.0, float("inf"), 0.0))
        self.maps = [ffi.new("refmoe_linear *", one) for one in zip(w[:3], w[3:6], (gate, up, y), strict=True)]
        self.left_open, self.report = ffi.new("int64_t *", -7), ffi.new("refmoe_report *")
        self.slot_weights, self.slot_row = Buffer(np.ones(SLOT_ROW.shape, np.float32)), Buffer(SLOT_ROW)
        self.sum, self.held = Buffer((5, D), np.float32), [*self.held, self.slot_weights, self.slot_row]
        self.slots = self.new_slots()
        self.given = {"how": ffi.new("refmoe_how *", fields), "e": E, "n": N, "d": D, "f": F, "offsets": offsets,
                      "x": x, "act": self.act, "gate": self.maps[0], "up": self.maps[1],
                      "row_weights": w[6] if weighted else ffi.NULL, "hidden": hidden,
                      "weighted": weighted_hidden if weighted else ffi.NULL, "down": self.maps[2],
                      "slots": self.slots, "left_open": self.left_open, "report": self.report}  # fmt: skip

    def new_slots(self, **change):
        buffers = {"weights": self.slot_weights, "slot_row": self.slot_row, "out": self.sum}
        arrays = {name: buffer.pointer() for name, buffer in buffers.items()}
        return ffi.new("refmoe_slots *", {"tokens": 5, "top_k": 2} | arrays | change)

    def status(self, **change):
        return lib.refmoe_feed_forward_f32(*(self.given | change).values())


@pytest.mark.parametrize("kernel", READS_FEW)
def test_nothing_beside_the_results_is_written(kernel):
    layer = Layer()
    call = Call(kernel, Rule("exact", "float32"), layer)
    want, _ = layer.run(call.rule, True, backend="numpy")
    assert call.status() == lib.REFMOE_OK and call.left_open[0] == 0
    for buffer in call.held:
        buffer.assert_untouched()
    for buffer, name in zip(call.rows, STAGES, strict=True):
        buffer.assert_guards()
        assert differing_bits(buffer.array, getattr(want, name)) == 0
    call.sum.assert_guards()
    terms = [Gathered(want.y_rows, SLOT_ROW[:, k]) for k in range(2)]
    assert differing_bits(call.sum.array, Numerics(backend="numpy").sum("routed", terms)) == 0
    outputs = sum(getattr(want, name).size for name in ("gate_rows", "up_rows", "y_rows"))
    assert sum(getattr(call.report, tier) for tier in kernels.TIERS) == outputs and call.report.workspace_bytes > 0


@pytest.mark.parametrize("kernel", READS_FEW)
def test_a_workspace_is_asked_for_and_held_against_what_is_needed(kernel):
    call = Call(kernel, Rule("chain", "float32"), Layer())
    asked = ffi.new("refmoe_workspace *")
    call.given["how"].workspace = asked
    assert call.status() == lib.REFMOE_OK and asked.bytes > 0
    room = np.zeros(asked.bytes + 64, np.uint8)
    asked.at, asked.bytes = ffi.from_buffer(room), asked.bytes - 1
    assert call.status() == lib.REFMOE_BAD_WORKSPACE
    for buffer in [*call.rows, call.sum]:
        buffer.assert_untouched()
    needed = asked.bytes
    assert call.status() == lib.REFMOE_OK and call.report.workspace_bytes == needed
    assert not room[needed:].any()


@pytest.mark.parametrize("kernel", READS_FEW)
def test_bad_arguments_are_refused_before_anything_is_written(kernel):
    call = Call(kernel, Rule("exact", "float32"), Layer())
    falling = Buffer(np.array([0, 2, 1, 3, 4, 5, 6, 11], np.int64))
    without = ffi.new("refmoe_linear *", (ffi.NULL, ffi.NULL, call.maps[1].out))
    nowhere = ffi.new("refmoe_linear *", (call.maps[2].w, ffi.NULL, ffi.NULL))
    unproven = ffi.new("refmoe_activation *", (lib.REFMOE_GELU_TANH, 2.0, float("inf"), 0.0))
    needed = "row_weights", "weighted", "hidden", "act", "x", "gate", "left_open", "offsets"
    wrong = [{name: ffi.NULL} for name in needed] + [{"up": without}, {"down": nowhere}]
    changes = [(lib.REFMOE_BAD_POINTER, change) for change in wrong]
    changes += [(lib.REFMOE_BAD_SIZE, {"f": -1}), (lib.REFMOE_BAD_SIZE, {"d": 1 << 58})]
    changes += [(lib.REFMOE_BAD_OFFSETS, {"offsets": falling.pointer()}), (lib.REFMOE_BAD_PROFILE, {"act": unproven})]
    for status, change in changes:
        assert call.status(**change) == status, change
    for field, value, status in (("kernel", 99, lib.REFMOE_BAD_KERNEL), ("threads", 0, lib.REFMOE_BAD_THREADS),
                                 ("profile", lib.REFMOE_UNFUSED, lib.REFMOE_BAD_PROFILE),
                                 ("left_format", lib.REFMOE_E4M3, lib.REFMOE_BAD_FORMAT),
                                 ("right_format", lib.REFMOE_FLOAT64, lib.REFMOE_BAD_FORMAT)):  # fmt: skip
        how = ffi.new("refmoe_how *", call.given["how"][0])
        setattr(how, field, value)
        assert call.status(how=how) == status, field
    beyond, far = Buffer(SLOT_ROW + 1), Buffer(SLOT_ROW - 1)
    changes = [(lib.REFMOE_BAD_POINTER, {name: ffi.NULL}) for name in ("weights", "slot_row", "out")]
    changes += [(lib.REFMOE_BAD_SIZE, {"top_k": 0}), (lib.REFMOE_BAD_SIZE, {"tokens": -1})]
    changes += [(lib.REFMOE_BAD_SIZE, {"tokens": 0, "top_k": 129})]
    changes += [(lib.REFMOE_BAD_OFFSETS, {"slot_row": buffer.pointer()}) for buffer in (beyond, far)]
    for status, change in changes:
        assert call.status(slots=call.new_slots(**change)) == status, change
    for buffer in [*call.rows, *call.held, call.sum]:
        buffer.assert_untouched()
    assert call.left_open[0] == -7


@each_kernel
def test_many_rows_are_declined_and_nothing_is_written(kernel):
    call = Call(kernel, Rule("exact", "float32"), Layer((1, 5 if kernel in READS_FEW else 1)))
    assert call.status() == lib.REFMOE_MANY_ROWS
    for buffer in call.rows:
        buffer.assert_untouched()
