"""Memory of arrays and of scratch: lent again when nothing refers to it, never before; bounded, and given back."""

import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kernel_calls import Buffer, differing_bits, ffi, lib
from kernel_cases import RULES, Case, wide
from kernel_oracle import Rule

from refmoe import Given, MoEConfig, Numerics, dispatch, init_params, kernels, load_preset, moe_forward
from refmoe.kernels import memory
from refmoe.kernels.memory import LEAST, Pool

KERNELS = [name for name, can_run, _ in kernels.available() if can_run]
BIG = (LEAST // 4 + 5,)


def place(array):
    return array.ctypes.data


# ---- the pool ----


def test_a_system_without_these_calls_imports_and_keeps_nothing():
    """Others than POSIX have neither."""
    code = "import os; del os.sysconf, os.register_at_fork; import refmoe.kernels.memory as m; print(m.POOL.most)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_memory_is_lent_again_when_its_array_is_gone():
    pool = Pool(1 << 24)
    first = pool.empty(BIG, np.float32)
    at = place(first)
    assert at % 64 == 0 and first.flags.c_contiguous and first.flags.writeable and first.dtype == np.float32
    del first
    assert place(pool.empty((LEAST // 8 + 2, 2), np.int32)) == at


@pytest.mark.parametrize("keep", [
    lambda a: a[3:5],
    lambda a: a.reshape(-1, 1).T[:, ::2],
    lambda a: a.view(np.uint8)[7:],
    memoryview,
    lambda a: np.from_dlpack(a),
    lambda a: np.asarray(memoryview(a)[2:]),
    lambda a: [a.flat],
    lambda a: ffi.from_buffer(a),
], ids=["slice", "turned", "bytes", "memoryview", "dlpack", "array of a view", "iterator", "cffi"])  # fmt: skip
def test_whatever_refers_to_an_array_keeps_its_memory(keep):
    pool = Pool(1 << 24)
    array = pool.empty(BIG, np.float32)
    at, kept = place(array), keep(array)
    del array
    others = [pool.empty(BIG, np.float32) for _ in range(3)]
    assert at not in map(place, others)
    del kept
    assert place(pool.empty(BIG, np.float32)) == at


def test_an_array_in_a_circle_gives_its_memory_back_when_it_is_collected():
    pool = Pool(1 << 24)
    circle = [pool.empty(BIG, np.float32)]
    circle.append(circle)
    del circle
    assert not pool.idle
    gc.collect()
    assert len(pool.idle) == 1


def test_memory_is_not_lent_for_much_less_than_it_is():
    pool = Pool(1 << 24)
    at = place(pool.empty((8 * LEAST,), np.uint8))
    assert place(pool.empty((2 * LEAST,), np.uint8)) != at
    assert place(pool.empty((7 * LEAST,), np.uint8)) == at


def test_idle_memory_is_bounded_and_the_longest_idle_goes_first():
    pool = Pool(5 * LEAST)
    arrays = [pool.empty((2 * LEAST,), np.uint8) for _ in range(4)]
    places = list(map(place, arrays))
    for i in (2, 0, 3, 1):
        arrays[i] = None
        assert pool.idle_bytes <= 5 * LEAST
    assert len(pool.idle) == 2
    again = [pool.empty((2 * LEAST,), np.uint8) for _ in range(2)]
    assert {place(a) for a in again} == {places[3], places[1]}
    del again
    pool.release()
    assert pool.idle_bytes == 0 and not pool.idle
    assert not pool._loans


def test_what_is_larger_than_may_lie_idle_is_not_kept():
    pool = Pool(LEAST)
    pool.empty((2 * LEAST,), np.uint8)
    assert not pool.idle


def test_small_arrays_are_none_of_its_business():
    pool = Pool(1 << 24)
    pool.empty((LEAST // 4 - 1,), np.float32)
    assert not pool.idle and not pool._loans


def test_threads_never_share_an_array():
    pool, wrong = Pool(1 << 24), []

    def work(mark):
        for turn in range(300):
            array = pool.empty((LEAST + 97 * (turn % 5),), np.uint8)
            array[::4096] = mark
            other = pool.empty((LEAST,), np.uint8)
            other[::4096] = mark + 100
            if (array[::4096] != mark).any():
                wrong.append((mark, turn))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.idle_bytes <= 1 << 24


def test_a_child_does_not_wait_for_a_lock_that_another_thread_held():
    held, done = threading.Event(), threading.Event()

    def hold():
        with memory.POOL._lock:
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        os._exit(int(memory.empty(BIG, np.float32).size != BIG[0]))
    done.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


# ---- results ----


def test_results_that_are_kept_are_never_written_again():
    engine, rule = kernels.load(KERNELS[-1], 2), Rule("chain", "float32")
    case = Case(wide, rule, (40, 30), M=600, K=40)
    kept = [engine.grouped_matmul(rule, case.x * np.float32(i), case.w, case.offsets) for i in range(3)]
    copies = [array.copy() for array in kept]
    kept[1] = None
    later = [engine.grouped_matmul(rule, -case.x, case.w, case.offsets) for _ in range(3)]
    assert not {*map(place, later)} & {place(kept[0]), place(kept[2])}
    assert all(a is None or differing_bits(a, b) == 0 for a, b in zip(kept, copies, strict=True))


def test_a_layer_lends_its_stages_again_and_keeps_what_a_record_holds():
    config = load_preset("qwen3-30b-a3b", scale="minimal")
    params, num, given = init_params(config, seed=0), Numerics(profile="chain", backend="c"), Given()
    T = LEAST // config.hidden_size
    x = np.random.default_rng(0).standard_normal((T, config.hidden_size), np.float32)
    record = moe_forward(x, params, config, num, given)
    before = {name: array.copy() for name, array in record.experts._asdict().items() if array is not None}
    for scale in (2, 3):
        moe_forward(x * np.float32(scale), params, config, num, given, keep="y")
    for name, array in before.items():
        assert differing_bits(getattr(record.experts, name), array) == 0
    stages = [getattr(record.experts, name) for name in ("x_rows", "gate_rows", "up_rows", "hidden_rows", "y_rows")]
    assert all(a.nbytes >= LEAST for a in stages)
    del record, stages
    gc.collect()  # of what other tests left behind
    num.engine.release()
    assert not memory.POOL.idle
    y = moe_forward(x, params, config, num, given, keep="y").y
    lent = list(memory.POOL.idle.values())
    again = moe_forward(x, params, config, num, given, keep="y").y
    assert differing_bits(again, y) == 0 and place(again) != place(y)
    assert len(lent) >= 5 and {*map(id, memory.POOL.idle.values())} <= {*map(id, lent)}


def test_permute_copies_the_same_bits_with_either_engine():
    x = np.arange(6, dtype=np.float32).reshape(3, 2) - np.float32(2)
    x[1, 0], x[2, 1] = -0.0, np.nan
    config, weights = MoEConfig(hidden_size=2, intermediate_size=2, num_experts=2, top_k=2), np.ones((3, 2), np.float32)
    plan = dispatch.make_plan(np.array([[0, 1], [1, 0], [1, -1]]), weights, config, Given())
    want = dispatch.permute(x, plan)
    for backend in ("c", "numpy"):
        got = dispatch.permute(x, plan, Numerics(backend=backend))
        assert (got.view(np.uint32) == want.view(np.uint32)).all() and got.shape == (5, 2)


@pytest.mark.parametrize("index", [[3], [-4], [0, 3]])
def test_an_index_out_of_the_rows_is_not_clipped(index):
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="permute: expected"):
        Numerics(backend="c").engine.permute(x, np.array(index), 1)


# ---- a workspace of the caller's ----


class Lent:
    """Calls the products in a workspace of exactly what they ask for: full of ones, odd, between guard words."""

    def __init__(self, kernel, threads):
        self.engine = kernels.load(kernel, threads)
        self.engine._in_workspace = self._in_workspace
        self.calls = 0

    def _in_workspace(self, how, call):
        own = how.workspace = ffi.new("refmoe_workspace *")
        assert call() == lib.REFMOE_OK and own.bytes > 0
        room = Buffer(np.full(own.bytes // 2 + 1, 0xFFFF, np.uint16))
        own.at = ffi.cast("char *", room.pointer()) + (len(room.array) * 2 - own.bytes)
        own.bytes -= 1
        bytes_before = own.bytes
        assert call() == lib.REFMOE_BAD_WORKSPACE and own.bytes == bytes_before + 1
        room.assert_untouched()
        assert call() == lib.REFMOE_OK
        room.assert_guards()
        self.calls += 1
        return lib.REFMOE_OK


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.profile}-{rule.format}")
@pytest.mark.parametrize("kernel", KERNELS)
def test_products_in_a_callers_workspace_have_the_same_bits(kernel, rule):
    case = Case(wide, rule, (2, 0, 40, 7), 13, 70)
    want = list(case.outputs(kernels.load(kernel, 1), rule))
    for threads in (1, 2):
        lent = Lent(kernel, threads)
        got = list(case.outputs(lent.engine, rule))
        assert lent.calls == 7
        assert [differing_bits(a, b) for a, b in zip(got, want, strict=True)] == [0] * 7


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", (1, 2))
def test_sums_of_many_terms_work_in_a_callers_workspace(kernel, threads):
    """Up to 128 terms ask for none, and nothing is taken from the system behind its back."""
    lent, rule = Lent(kernel, threads), Rule("exact", "float32", "exact")  # which fills all that a thread has
    for count in (128, 129, 136):  # 136: whole lines of the cache
        terms = [[(term, None)] for term in wide(np.random.default_rng(count), (count, 40, 5))]
        want = Numerics(backend="numpy").sum("routed", [term for ((term, _),) in terms])
        assert differing_bits(lent.engine.sum(rule, terms), want) == 0
    assert lent.calls == 2


def test_a_workspace_grows_with_what_is_asked_and_serves_the_next_call():
    engine, rule = kernels.load(KERNELS[-1], 1), Rule("exact", "float32")
    few, many = Case(wide, rule, (2,), 3, 4), Case(wide, rule, (2,), 3, 4000)
    asked = []
    run = engine._in_workspace
    engine._in_workspace = lambda how, call: run(how, lambda: asked.append(how.workspace.bytes) or call())
    for case in (few, few, many, few):
        engine.grouped_matmul(rule, case.x, case.w, case.offsets)
    small, large = asked[1], asked[-1]
    assert asked == [1, small, small, small, large, large] and 1 < small < large


class Fickle(list):
    """What another thread empties between a look and a hand."""

    def __bool__(self):
        return True


def test_another_thread_may_take_the_last_idle_desk_or_room():
    engine, rule = kernels.load(KERNELS[-1], 1), Rule("exact", "float32")
    engine._desks, engine._rooms = Fickle(), Fickle()
    case = Case(wide, rule, (2,), 3, 4)
    want = engine.grouped_matmul(rule, case.x, case.w, case.offsets)
    engine._desks.clear(), engine._rooms.clear()
    assert differing_bits(engine.grouped_matmul(rule, case.x, case.w, case.offsets), want) == 0
    assert len(engine._desks) == len(engine._rooms) == 1


# ---- threads ----


def test_threads_may_run_where_they_might_before():
    """A thread that leaves another one's core is free again: masks of all threads, after calls that wake them."""
    allowed = os.sched_getaffinity(0)
    config = MoEConfig(hidden_size=256, intermediate_size=1024, num_experts=8, top_k=8)
    params, num = init_params(config, seed=0), Numerics(profile="chain", backend="c", threads=2)
    x = np.ones((8, 256), np.float32)
    for _ in range(12):
        time.sleep(0.15)
        moe_forward(x, params, config, num)
    masks = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
    assert all(mask == allowed for mask in masks) and len(masks) > 1
