"""Cases for other people's kernels: one bug a flag, each proven by an implementation that has it (tests/mutants).

Dispatch and experts come with their choice and weights given, so that no tie of a router hides them; routers stand
apart, with margins, and ties apart from those. A plain relu expert of width one is the background of all: what a case
adds to it is what its flags are about.
"""

from .conformance_flags import FLAGS
from .conformance_router import NOTES as ROUTER_NOTES
from .conformance_router import losses, routers
from .form import Case, Recipe, f32, ints, sizes

ABOUT = "Small cases for kernels, routers, losses and whole layers; each flag is proven by mutants."
LONGEST = 4096  # elements: everything stands in the file, for readers without this package

NOTES = ROUTER_NOTES | {
    "RowOrder": ("rows of an expert in slot order, not in token order", "a permuted row tensor"),
    "EmptyExpert": ("experts without rows skipped in the offsets", "every later expert runs its neighbour's rows"),
    "StaleGradient": ("weight gradient of an expert without rows left as it was", "garbage in an optimiser"),
    "Offsets": ("offsets off by one expert or one row", "a neighbour's weights, or a row without gradient"),
    "PaddedRows": ("padding read as rows", "NaN in the weight gradients"),
    "BlockTail": ("rows beyond the last full block lost, or not the tokens'", "late tokens get nothing"),
    "PowerOfTwo": ("ids masked or shifted as if there were a power of two of experts", "another expert runs"),
    "UnusedSlot": ("index -1 read as the last expert", "a phantom row"),
    "ZeroWeight": ("a slot of weight 0 not dispatched", "the router never learns from it"),
    "Capacity": ("one row more or less than the capacity", "other slots are dropped"),
    "CapacityZero": ("capacity 0 read as no limit", "nothing is dropped"),
    "SlotMajor": ("capacity counted token by token where first choices go first", "other slots are dropped"),
    "DroppedGradient": ("a slot without a row keeps a gradient", "the router is rewarded for nothing"),
    "CombineAdd": ("a token's rows overwrite each other", "one expert's output for the sum of several"),
    "WeightTwice": ("the weight applied twice, or left out on the way back", "outputs or gradients scaled"),
    "WeightGradient": ("the weight's gradient from the weighted row, or not by a product with it", "a wrong router"),
    "WeightPlace": ("the weight applied to the expert's input", "another function under a non-linear expert"),
    "DownBias": ("the down bias added after the weights, or not at all", "a bias for each choice, unweighted"),
    "BiasGradient": ("gradient of a bias not summed over rows, or left out", "biases that do not learn"),
    "GateUp": ("gate and up exchanged", "another function, of the same shape"),
    "GateUpLayout": ("gate and up interleaved where they stand in halves", "rows of both mixed"),
    "Orientation": ("weights read transposed", "wrong everywhere, or only when F = D"),
    "BothPaths": ("d_x without the path through the gate, or through up", "training that almost works"),
    "GatedBackward": ("gradient of the gate without up, or of up without the activation", "a wrong slope"),
    "SiluSlope": ("silu' taken for its sigmoid", "a slope off by up to a tenth"),
    "ReluAtZero": ("relu'(0) = 1", "gradient through dead units"),
    "ClampEdge": ("clamp derivative exclusive at the limit", "no gradient at exactly the limit"),
    "ClampSides": ("gate clamped below as well, or up on one side", "large negative values leak or are lost"),
    "LinearOffset": ("offset left out", "up + 1 becomes up"),
    "Alpha": ("alpha left out of the sigmoid", "another activation"),
    "OneRounding": ("the activation rounded to a narrow format before it is multiplied", "errors of 2^-9"),
    "LongSum": ("the last products of a sum dropped when their number is no multiple of four", "a term is missing"),
    "NarrowSum": ("partial sums in 16 bits", "the last bits, and infinity beyond 65504"),
    "NoTokens": ("a batch without tokens, or without unmasked ones, not handled", "a crash, or NaN"),
    "SharedGate": ("the shared expert's gate without its sigmoid, or without a gradient", "another layer"),
    "SharedExpert": ("the shared expert left out of y or of d_x", "half a layer"),
    "DropRenorm": ("weights renormalised after the drop where before is meant", "kept experts too loud"),
    "SourcesOfX": ("d_x without the router's part", "training that almost works"),
    "AuxGradient": ("the losses' gradient dropped, or scaled with the task's", "no balancing, and nothing crashes"),
    "CountBeforeDrop": ("the balance loss counts what was kept", "an overloaded expert looks balanced"),
}


def cases():
    """Every case of the suite, with the flags of the bugs it catches."""
    for part in (_plans, _capacity, _weights, _experts, _activations, routers, losses, _layers, _refused):
        for case in part():
            yield case._replace(flags=tuple(FLAGS.get(case.comment, ())))


def routed(comment, indices, weights=None, D=1, F=1, E=1, recipe="dyadic", store="float32", dispatch=None,
           experts=None, refused="", **given):  # fmt: skip
    """Tokens through experts, there and back: the choice is given, and the weights, which are 1 by default."""
    indices = ints(indices) if len(indices) else ints([]).reshape(0, 1)
    T, K = indices.shape
    choices = {"gated": False, "activation": "relu"} | (experts or {})
    config = sizes(E, K, D, F, experts=choices, **({"dispatch": dispatch} if dispatch else {}))
    shapes = {"x": (T, D), "d_y": (T, D), "w_up": (E, F, D), "w_down": (E, D, F)}
    shapes |= {"w_gate": (E, F, D)} if choices["gated"] else {}
    inputs = {name: Recipe(name, shape, recipe, 0, 0) for name, shape in shapes.items()}
    inputs |= {
        "topk_indices": indices,
        "topk_weights": f32([[1.0] * K] * T).reshape(T, K) if weights is None else f32(weights),
    }
    return Case(comment, (), "routed", inputs | given, config, store=store, refused=refused)


ONE = {"x": f32([[2.0], [3.0]]), "d_y": f32([[1.0], [-2.0]]), "w_up": f32([[[1.0]]]), "w_down": f32([[[2.0]]])}


def experts_of(count, tokens):
    """Width one: tokens 1, 2, 3 ..., experts that multiply by 1 and by 2, 3, 4 ..."""
    return {
        "x": f32([[1.0 + t] for t in range(tokens)]),
        "d_y": f32([[(-1.0) ** t * (1 + t % 3)] for t in range(tokens)]),
        "w_up": f32([[[1.0]]] * count),
        "w_down": f32([[[2.0 + e]] for e in range(count)]),
    }


def _plans():
    yield routed("one expert, two tokens, width one: the background", [[0], [0]], **ONE)
    yield routed("one token", [[0]], **{n: a[:1] for n, a in ONE.items()})
    yield routed("no tokens at all", [], E=2, D=2, F=2)
    yield routed("every expert chosen by every token", [[0, 1], [1, 0]], E=2, **experts_of(2, 2))
    yield routed("first choices are later experts", [[1, 0], [0, 1], [0, 1], [1, 0]], E=2, **experts_of(2, 4))
    full = experts_of(4, 4)
    yield routed("the first expert gets nothing", [[1], [3], [1], [3]], E=4, **full)
    yield routed("the first half of the experts gets nothing, as a rank may", [[2], [3], [3], [2]], E=4, **full)
    yield routed("the middle experts get nothing", [[0], [3], [0], [3]], E=4, **full)
    yield routed("the last expert gets nothing", [[2], [0], [0], [2]], E=4, **full)
    yield routed("all tokens to the last expert", [[3]] * 4, E=4, **full)
    yield routed("all tokens to the first expert", [[0]] * 4, E=4, **full)
    yield routed("three experts", [[2], [1], [2], [1]], E=3, **experts_of(3, 4))
    yield routed("five experts", [[4, 1], [1, 4]], E=5, **experts_of(5, 2))
    yield routed("more rows than a block, and no multiple of it", [[0]] * 7, **experts_of(1, 7))
    yield routed("unused slots have no row", [[-1, 0], [1, -1], [0, 1], [-1, -1]], E=2, **experts_of(2, 4))
    yield routed("a weight of exactly 0", [[0, 1], [1, 0]], [[1.0, 0.0], [0.0, 1.0]], E=2, **experts_of(2, 2))


def _capacity():
    wanted = [[0, 1], [0, 1], [1, 0], [0, 1]]
    for capacity in (0, 1, 2, 4, 9):
        dispatch = {"capacity": capacity}
        yield routed(f"capacity {capacity}", wanted, E=2, dispatch=dispatch, **experts_of(2, 4))


def _weights():
    two = [[0, 1], [1, 0]]
    halves = [[0.5, 0.25], [2.0, -0.5]]
    yield routed("weights, width one", two, halves, E=2, **experts_of(2, 2))
    bent = {"w_up": f32([[[1.0]]]), "w_down": f32([[[2.0]]]), "x": f32([[2.0], [3.0]]), "d_y": f32([[1.0], [-2.0]])}
    yield routed("weights of a gated relu", [[0], [0]], [[0.5], [2.0]],
                 experts={"gated": True}, w_gate=f32([[[1.0]]]), **bent)  # fmt: skip
    yield routed("weights and biases", two, halves, E=2, D=1, F=1, experts={"biases": True}, **experts_of(2, 2),
                 b_up=f32([[1.0], [2.0]]), b_down=f32([[3.0], [-1.0]]))  # fmt: skip
    yield routed("the same in bf16, with a full significand", two, halves, E=2, D=3, F=2, recipe="bf16", store="bf16")


def _experts():
    gated = {"gated": True}
    yield routed("gate and up differ", [[0], [0]], experts=gated, **ONE | {"w_up": f32([[[-3.0]]])},
                 w_gate=f32([[[2.0]]]))  # fmt: skip
    alike = {"w_gate": f32([[[1.0], [2.0]]]), "w_up": f32([[[1.0], [2.0]]]), "w_down": f32([[[1.0, 3.0]]])}
    yield routed("two gates and two ups", [[0], [0]], F=2, experts=gated, x=ONE["x"], d_y=ONE["d_y"], **alike)
    yield routed("D = F = 2", [[0], [0]], D=2, F=2)
    yield routed("D = 3, F = 2", [[0], [0]], D=3, F=2)
    yield routed("sums of six and seven products", [[0], [0]], D=6, F=7)
    yield routed("a whole block of experts, gated", [[0, 2], [3, 1], [2, 0], [1, 3], [0, 3], [2, 1]], E=4, D=4, F=4,
                 weights=[[1.0, 0.5]] * 6, experts=gated)  # fmt: skip
    yield routed("sums beyond eleven bits", [[0], [0]], D=2, F=1, x=f32([[2048.0, 1.0], [1.0, 4096.0]]),
                 d_y=f32([[1.0, 1.0], [1.0, 2.0]]), w_up=f32([[[1.0, 1.0]]]), w_down=f32([[[1.0], [2.0]]]))  # fmt: skip
    for store in ("float32", "bf16"):
        for experts in ({"gated": True, "activation": "silu"}, {"gated": False, "activation": "silu"}):
            kind = "gated" if experts["gated"] else "plain"
            yield routed(f"a {kind} silu expert, stored in {store}", [[0, 1], [1, 0]], [[0.75, 0.5], [0.25, 1.0]], E=2,
                         D=4, F=4, recipe="bf16", store=store, experts=experts)  # fmt: skip


def _activations():
    edge = {"x": f32([[1.0]] * 6), "d_y": f32([[1.0], [-1.0], [2.0], [1.0], [-2.0], [1.0]])}
    zero = {"x": f32([[0.0], [1.0]]), "d_y": f32([[1.0], [-2.0]]), "w_up": f32([[[1.0]]]), "w_down": f32([[[2.0]]])}
    yield routed("relu at exactly 0", [[0], [0]], **zero)
    choices = {"gated": True, "activation": "relu", "limit": 4.0}
    rows = {"w_up": f32([[[1.0]]]), "w_down": f32([[[1.0]]]), "w_gate": f32([[[1.0]]])}
    at = {"x": f32([[4.0], [4.0], [5.0], [3.0]]), "d_y": edge["d_y"][:4]}
    yield routed("at a limit of 4, beyond it, within it", [[0]] * 4, experts=choices, **rows, **at)
    below = {"x": f32([[-6.0], [-2.0], [-8.0], [-4.0]]), "d_y": edge["d_y"][:4]}
    signs = rows | {"w_gate": f32([[[-1.0]]])}
    yield routed("up at -4 and below it", [[0]] * 4, experts=choices, **signs, **below)
    gptoss = {"gated": True, "activation": "silu", "limit": 4.0, "alpha": 1.702, "linear_offset": 1.0}
    yield routed("silu with a limit, alpha and an offset", [[0]] * 4, experts=gptoss, **rows, **at)
    deep = rows | {"w_gate": f32([[[1.0]]])}
    yield routed(
        "the same far below: no clamp from below", [[0]] * 4, experts=gptoss | {"alpha": 0.125}, **deep, **below
    )
    offset = {"gated": True, "activation": "relu", "linear_offset": 1.0}
    yield routed("an offset beside relu", [[0], [0]], experts=offset, w_gate=f32([[[1.0]]]), **ONE)


def _layer(comment, config, T=2, recipe="dyadic", store="float32", **given):
    D, F, E, inner = config["hidden_size"], config["intermediate_size"], config["num_experts"], config["experts"]
    shapes = {
        "x": (T, D),
        "d_y": (T, D),
        "params.w_router": (E, D),
        "params.w_up": (E, F, D),
        "params.w_down": (E, D, F),
    }
    shapes |= {"params.w_gate": (E, F, D)} if inner.get("gated", True) else {}
    S = inner.get("shared_intermediate_size", 0)
    shared = {"params.shared.w_up": (1, S, D), "params.shared.w_down": (1, D, S)}
    shared |= {"params.shared.w_gate": (1, S, D)} if inner.get("gated", True) else {}
    shared |= {"params.shared.w_shared_gate": (1, D)} if inner.get("shared_gate") else {}
    inputs = {name: Recipe(name, shape, recipe, 0, 0) for name, shape in (shapes | (shared if S else {})).items()}
    return Case(comment, (), "layer", inputs | given, config, store=store)


def _layers():
    plain = {"gated": False, "activation": "relu"}
    relu = {"score_fn": "relu"}
    x = {"x": f32([[3.0, 1.0], [1.0, 4.0]]), "params.w_router": f32([[1.0, 0.0], [0.0, 1.0]])}
    yield _layer("a whole layer of relu scores and relu experts, nothing rounded",
                 sizes(2, 2, 2, 2, routing=relu, experts=plain), **x)  # fmt: skip
    shared = plain | {"shared_intermediate_size": 2}
    yield _layer("with a shared expert", sizes(2, 2, 2, 2, routing=relu, experts=shared), **x)
    yield _layer("with a gated shared expert",
                 sizes(2, 2, 2, 2, routing=relu, experts=shared | {"shared_gate": True}), **x)  # fmt: skip
    drops = {"dispatch": {"capacity": 1}}
    after = {"score_fn": "relu", "normalize": True}
    both = {
        "x": f32([[3, 1, 0, 0], [3, 0, 1, 0]]),
        "params.w_router": f32([[i == j for i in range(4)] for j in range(4)]),
    }
    yield _layer("renormalised, then dropped", sizes(4, 2, 4, 2, routing=after, experts=plain, **drops), **both)
    losses = {"balance": {"coefficient": 0.5}}
    uneven = {"x": f32([[2.0, 1.0], [2.0, 0.5], [3.0, 1.0], [0.5, 2.0]]), "params.w_router": x["params.w_router"]}
    yield _layer("a balance loss and its gradient",
                 sizes(2, 1, 2, 2, routing=relu, experts=plain, losses=losses), T=4, **uneven)  # fmt: skip
    yield _layer("a balance loss under a capacity",
                 sizes(2, 1, 2, 2, routing=relu, experts=plain, losses=losses, **drops), T=4, **uneven)  # fmt: skip
    every = {"gated": True, "activation": "silu", "shared_intermediate_size": 3, "shared_gate": True}
    routing = {"score_fn": "softmax", "normalize": True}
    for store in ("float32", "bf16"):
        config = sizes(4, 2, 4, 3, routing=routing, experts=every, losses=losses | {"z": {"coefficient": 0.125}})
        yield _layer(f"everything at once, stored in {store}", config, 5, "bf16", store)


def _refused():
    for comment, wrong in (("twice", [[1, 1]]), ("too large", [[0, 2]]), ("below -1", [[-2, 0]])):
        yield routed(f"an expert named {comment}", wrong, E=2, refused="topk_indices", **experts_of(2, 1))
