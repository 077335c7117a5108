"""Tables of `refmoe params`, and the same as plain data for JSON.   Spec 0.3"""

from ..listing import unverified
from .counts import STORAGE, by_part, cost, counted, stored_bytes
from .published import comparison
from .tensors import choices, is_whole, moe_blocks

CONVENTIONS = """\
total: the text backbone; no vision tower, no multi-token prediction module; stored selection biases are counted.
active: all but the routed experts a token does not choose; "without" leaves out the input embedding, a look-up
(a tied table is left out whole). Published figures follow no common rule: where it is not stated which of the two
is meant, the nearer one is compared (marked ~). attention: also recurrences and convolutions that mix tokens; other:
norms and what fits nowhere else. The KV cache is not a parameter and is excluded."""

WHOLE, ALONE = "text backbone", "MoE layers alone"
_COLUMNS = "{:<22}{:>10}{:>19}{:>16}{:>16}{:>7}  {:>7}{:>8}  {:>7}{:>8}{}"
_TITLES = ("model", "experts", "total", "active", "without", "share", "printed", "differs", "printed", "differs", "")


def summary(info, batch=1):
    """Everything that is counted of one model, as plain dictionaries and numbers."""
    counts = counted(info)
    return {
        "name": info["name"],
        "scope": WHOLE if is_whole(info) else ALONE,
        "counts": counts,
        "share_active": counts["active"] / counts["total"],
        "parts": by_part(info),
        "bytes": stored_bytes(info),
        "token": cost(info, batch),
        "published": comparison(info),
        "unverified": unverified(info),
        "kv_cache": "excluded",
    }


def overview(infos):
    """One line a model, then the reasons of differences and the conventions."""
    whole = [info for info in infos if is_whole(info)]
    lines = [_COLUMNS.format(*_TITLES)]
    lines += [_line(info) for info in whole]
    reasons = [line for info in whole for line in _reasons(info)]
    lines += ["", "Why figures differ:", *reasons] if reasons else []
    return "\n".join([*lines, "", *_alone([info for info in infos if not is_whole(info)]), CONVENTIONS])


_PARTIAL = "{:<22}{:>8}{:>10}{:>21}{:>18}{:>7}  {:>9}{:>9}{}"


def _alone(infos):
    """The table of models of which only the MoE layers are counted."""
    if not infos:
        return []
    title = "MoE layers alone: the rest of these models is not counted, and the printed figures are of the whole model."
    head = _PARTIAL.format("model", "layers", "experts", "total", "active", "share", "printed", "printed", "")
    return [title, "", head.rstrip(), *map(_partial_line, infos), ""]


def _partial_line(info):
    counts, (E, k) = counted(info), choices(info)
    printed = [row["figure"] if row else "-" for row in info["model"]["published"].values()]
    return _PARTIAL.format(
        info["name"], moe_blocks(info), f"{E}/{float(k):g}", f"{counts['total']:,}", f"{counts['active']:,.0f}",
        f"{counts['active'] / counts['total']:.1%}", *printed, "  u" if unverified(info) else "",
    ).rstrip()  # fmt: skip


def _line(info):
    counts, printed = counted(info), comparison(info)
    E, k = choices(info)
    mark = "  u" if unverified(info) else ""
    total, active = (_printed(printed[key]) for key in ("total", "active"))
    return _COLUMNS.format(
        info["name"], f"{E}/{float(k):g}", *(f"{value:,.0f}" for value in counts.values()),
        f"{counts['active'] / counts['total']:.1%}", *total, *active, mark,
    ).rstrip()  # fmt: skip


def _printed(row):
    if row is None:
        return "-", ""
    near = "" if row.get("convention_stated", True) else "~"
    return near + row["figure"], f"{row['relative']:+.1%}" + ("*" if row["needs_reason"] else "")


def _reasons(info):
    rows = comparison(info)
    return [f"  {info['name']}, {key}: {row['reason']}" for key, row in rows.items() if row and row["reason"]]


def details(info, batch=1):
    """A model by part, by storage format and for one token, as text."""
    counts, data = counted(info), summary(info, batch)
    lines = [f"{info['name']}: {info['description']}", "", *([] if is_whole(info) else [_scope(info), ""])]
    lines += [f"{'':<12}{'total':>21}{'active':>18}{'active':>9}"]
    for part, row in data["parts"].items():
        lines.append(f"{part:<12}{row['total']:>21,}{row['active']:>18,.0f}{row['active'] / row['total']:>9.1%}")
    lines.append(f"{'all':<12}{counts['total']:>21,}{counts['active']:>18,.0f}{data['share_active']:>9.1%}")
    if is_whole(info):
        lines.append(f"{'without input embedding':<33}{counts['active_without_input_embedding']:>18,.0f}")
    return "\n".join([*lines, "", *_storage_lines(data), "", *_token_lines(data), *_end_lines(info, data)])


def _scope(info):
    figures = {key: row["figure"] for key, row in info["model"]["published"].items() if row}
    printed = ", ".join(f"{key} {figure}" for key, figure in figures.items()) or "nothing"
    layers = info["model"]["moe_layers"]
    return f"The {layers} MoE layers alone; the rest of the model is not counted. Printed of the whole: {printed}."


def _storage_lines(data):
    lines = [f"{'stored as':<12}{'bytes':>21}{'GiB':>18}{'read a token':>16}"]
    for name in STORAGE:
        size, read = data["bytes"][name], data["token"]["weight_bytes"][name]
        lines.append(f"{name:<12}{size:>21,}{size / 2**30:>18,.1f}{read / 2**30:>12,.2f} GiB")
    return lines


def _token_lines(data):
    token = data["token"]
    return [
        f"decoding {token['batch']} token(s) together: {token['flops'] / 1e9:,.2f} Gflop a token in matrices "
        f"(attention over the context excluded);",
        f"random routing meets {token['experts_met']:,.1f} of {token['experts']} experts in each of "
        f"{token['moe_layers']} layers; real routers are skewed and meet fewer.",
        "fp8: one byte and a float32 scale for 128 x 128 in projections and experts, the rest bf16;",
        "mxfp4: 4 bits and a scale byte for 32 in routed experts, the rest bf16. KV cache excluded.",
    ]


def _end_lines(info, data):
    lines = [_published_line(key, row) for key, row in data["published"].items() if row]
    if "mean_experts" in info["model"]:
        few, many = (counted(info, experts)["active"] for experts in (0, info["full"]["top_k"]))
        lines.append(f"active for a mean of {info['model']['mean_experts']} experts with weights: from {few:,.0f} with "
                     f"none to {many:,.0f} with {info['full']['top_k']}")  # fmt: skip
    if data["unverified"]:
        lines.append("unverified: " + ", ".join(data["unverified"]))
    return ["", *lines] if lines else []


def _published_line(key, row):
    near = "" if row.get("convention_stated", True) else "the nearer of the two, "
    why = f": {row['reason']}" if row["reason"] else ""
    return f"published {key} {row['figure']}, counted {near}{row['counted']:,.0f} ({row['relative']:+.2%}){why}"
