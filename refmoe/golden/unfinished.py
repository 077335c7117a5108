"""What a long run does beside computing: it keeps its finished pieces, and says how far it is.   Spec 7.4.1"""

from contextlib import contextmanager
from math import prod

from ..formats import Packed
from ..recipes import parameter_shapes
from .digests import GRADIENT, tensor_digest
from .inputs import is_expert_tensor
from .progress import Progress, display
from .quantised import SOURCE as QUANTISED
from .weights import AHEAD, CACHE_BYTES, MAKE
from .work import Work, key_of

WORK_BYTES = 1 << 30  # of expert weights by recipe: below it a run takes seconds, and nothing is kept of it
PRICES = {MAKE: 1e-8, GRADIENT: 1.5e-9}  # seconds a unit may take: only their ratio shows, in how even the progress is


@contextmanager
def unfinished(directory, config, num, label, stored, options):
    """The `Work` of a long run, DIR.work, which goes when the bundle is there; None for a short run.

    An error, Ctrl-C included, that ends the run bears a note that says what is kept and where.
    """
    key = _key(config, num, label, stored, options)
    if key is None:
        yield None
        return
    work = Work(directory.with_name(directory.name + ".work"), key)
    try:
        yield work
    except BaseException as error:
        work.close()
        if len(work):
            again = "the same command goes on from there, another one needs it removed"
            error.add_note(f"{len(work)} finished pieces are kept in {work.folder}: {again}")
        raise
    work.remove()


def _key(config, num, label, stored, options):
    """Everything the pieces depend on; None where nothing is kept: a short run, and weights of a checkpoint."""
    spec_version, title, tokens, rows = label
    if _recipe_bytes(config, num, rows) < WORK_BYTES or any(isinstance(a, Packed) for a in stored.values()):
        return None
    own = {name: [str(a.dtype), list(a.shape), tensor_digest(a)] for name, a in sorted(stored.items())}
    asked = [options.container, options.narrow.limits(), options.ranks]
    return key_of([spec_version, title, tokens, rows, config.to_dict(), num.profile, num.store, own, asked])


def _recipe_bytes(config, num, rows):
    return sum(elements * num.dtype(0).itemsize for _, elements in _by_recipe(config, rows))


def _by_recipe(config, rows):
    """(experts, elements) of each expert tensor that is made by recipe."""
    for name, (shape, _) in parameter_shapes(config).items():
        row = rows.get(f"params.{name}", {"source": None})
        if is_expert_tensor(f"params.{name}") and row["source"] in ("recipe", QUANTISED):
            yield shape[0], prod(shape)


@contextmanager
def watched(config, num, tokens, rows, say):
    """The `Progress` of a run that somebody looks at; None if nobody does, or it is short."""
    if say is None or _recipe_bytes(config, num, rows) < WORK_BYTES:
        yield None
        return
    show = display(say)
    amounts = expected_amounts(config, num, tokens, rows)
    try:
        yield Progress({kind: (amount, PRICES[kind]) for kind, amount in amounts.items()}, show)
    finally:
        show("", 0.0, None)


def expected_amounts(config, num, tokens, rows):
    """kind -> amount of what takes the time: elements of weights to make, bytes of gradients to digest."""
    backward, item = "d_y" in rows, num.dtype(0).itemsize
    made = 0
    for experts, elements in _by_recipe(config, rows):
        hit = expected_hits(experts, config.top_k, tokens) if experts == config.num_experts else experts
        again = 0 if elements * item <= CACHE_BYTES or experts <= AHEAD + 2 else hit * backward
        made += elements // experts * (experts + again)
    return {MAKE: made, GRADIENT: sum(n for _, n in _by_recipe(config, rows)) * item * backward}


def expected_hits(experts, top_k, tokens):
    """Experts that at least one of the tokens chooses, if they choose evenly."""
    return round(experts * (1 - (1 - min(top_k, experts) / experts) ** tokens))
