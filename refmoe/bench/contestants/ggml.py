"""ggml's mul_mat_id, as llama.cpp uses it, from the libraries that llama-cpp-python brings along."""

import ctypes
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import numpy as np

from ..child import Refused
from . import Loaded
from .numpy_loop import is_plain

TYPES = {"float32": 0, "fp16": 1, "bf16": 30}  # as ggml_type
INTEGERS = 26
ROOM = 64 << 20  # bytes for the graph and for rounding up


class Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """ggml_cplan; what follows the thread count differs by version and is left as ggml fills it."""

    _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                ("rest", ctypes.c_char * 256)]  # fmt: skip


def prepare(inputs, options):
    """Calls: "mul_mat_id"."""
    case = inputs.case
    if case.phase != "forward" or not is_plain(case.config.experts):
        raise Refused("written for the forward of silu-gated experts")
    graph = Graph(libraries(), inputs, int(os.environ.get("OMP_NUM_THREADS", "1")))
    facts = {"llama-cpp-python": importlib.metadata.version("llama-cpp-python"), "threads": graph.threads}
    return Loaded({"mul_mat_id": graph.compute}, facts)


def libraries():
    """(libggml-base, libggml-cpu). Raises ModuleNotFoundError without llama-cpp-python or its libraries."""
    found = importlib.util.find_spec("llama_cpp")
    folder = Path(found.origin).parent / "lib" if found else Path("/nowhere")
    base, cpu = (sorted(folder.glob(f"libggml-{part}.so*")) for part in ("base", "cpu"))
    if not (base and cpu):
        raise ModuleNotFoundError("llama-cpp-python with libggml-base and libggml-cpu")
    return ctypes.CDLL(str(base[0]), mode=ctypes.RTLD_GLOBAL), ctypes.CDLL(str(cpu[0]), mode=ctypes.RTLD_GLOBAL)


class Graph:
    """The layer as ggml's graph: two gathered products, swiglu, a third, weights, sum over a token's experts."""

    def __init__(self, found, inputs, threads):
        self.base, self.cpu = found
        self.threads, c, T = threads, inputs.case.config, inputs.case.tokens
        D, F, E, K = c.hidden_size, c.intermediate_size, c.num_experts, c.top_k
        kind, item = TYPES[inputs.case.store], 4 if inputs.case.store == "float32" else 2
        rows = 4 * T * (2 * D + K * (4 * F + 3 * D))
        self.context = self._start(3 * E * D * F * item + rows + ROOM)
        weights = {name: self._weights(inputs, name, kind, E) for name in ("w_gate", "w_up", "w_down")}
        x = self._filled(0, (D, 1, T), inputs.x)
        ids = self._filled(INTEGERS, (K, T), inputs.topk_indices.astype(np.int32))
        scale = self._filled(0, (1, K, T), inputs.topk_weights)
        gate, up = (self._op("ggml_mul_mat_id", weights[n], x, ids) for n in ("w_gate", "w_up"))
        hidden = self._op("ggml_mul", self._op("ggml_silu", gate), up)
        y_rows = self._op("ggml_mul", self._op("ggml_mul_mat_id", weights["w_down"], hidden, ids), scale)
        self.y = self._sum_of_slots(y_rows, D, T, K)
        self.shape = T, D
        self._plan()

    def _start(self, size):
        self.cpu.ggml_cpu_init()
        self.base.ggml_init.argtypes, self.base.ggml_init.restype = [Parameters], ctypes.c_void_p
        context = self.base.ggml_init(Parameters(size, None, False))
        if not context:
            raise MemoryError(f"ggml: {size} bytes")
        return ctypes.c_void_p(context)

    def _op(self, name, *tensors):
        function = getattr(self.base, name)
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(self.context, *tensors))

    def _tensor(self, kind, shape):
        sizes = [ctypes.c_int64(n) for n in shape]
        return self._op(f"ggml_new_tensor_{len(shape)}d", ctypes.c_int(kind), *sizes)

    def _data(self, tensor):
        function = self.base.ggml_get_data
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
        return function(tensor)

    def _filled(self, kind, shape, array):
        tensor = self._tensor(kind, shape)
        ctypes.memmove(self._data(tensor), np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return tensor

    def _weights(self, inputs, name, kind, experts):
        """(E, M, K) at the width of the store, filled expert by expert."""
        rows, cols = inputs.shapes()[name]
        tensor = self._tensor(kind, (cols, rows, experts))
        at = self._data(tensor)
        for e in range(experts):
            codes = at_width(inputs.expert(name, e), inputs.case.store)
            ctypes.memmove(at + e * codes.nbytes, codes.ctypes.data, codes.nbytes)
        return tensor

    def _sum_of_slots(self, y_rows, D, T, K):
        """(D, T): a token's K rows lie one after the other."""
        sizes = [ctypes.c_int64(D), ctypes.c_int64(T), ctypes.c_size_t(4 * D * K)]
        parts = [self._op("ggml_view_2d", y_rows, *sizes, ctypes.c_size_t(4 * D * k)) for k in range(K)]
        y = parts[0]
        for part in parts[1:]:
            y = self._op("ggml_add", y, part)
        return y if K > 1 else self._op("ggml_cont", y)

    def _plan(self):
        self.graph = self._op("ggml_new_graph")
        self.base.ggml_build_forward_expand(self.graph, self.y)
        self.cpu.ggml_graph_plan.restype = Plan
        self.plan = self.cpu.ggml_graph_plan(self.graph, ctypes.c_int(self.threads), None)
        self.work = np.empty(self.plan.work_size + 64, np.uint8)
        self.plan.work_data = (self.work.ctypes.data + 63) // 64 * 64

    def compute(self):
        """y (T, D)."""
        status = self.cpu.ggml_graph_compute(self.graph, ctypes.byref(self.plan))
        if status:
            raise RuntimeError(f"ggml_graph_compute: status {status}")
        floats = ctypes.cast(self._data(self.y), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, self.shape)


def at_width(array, store):
    """float32 values that the store holds, as its codes."""
    if store == "bf16":
        return np.ascontiguousarray((array.view(np.uint32) >> np.uint32(16)).astype(np.uint16))
    return np.ascontiguousarray(array, np.float16 if store == "fp16" else np.float32)
