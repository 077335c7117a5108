"""Pictures of sizes, for slides. matplotlib is imported where it is used.   Spec 0.3"""

from pathlib import Path

from ...refusals import require
from ...writing import check_folder
from .counts import PARTS, by_part, counted
from .sweep import sweep_experts
from .tensors import is_whole

INK, TOTAL, ACTIVE, GREY, SOFT = "#1a1a2e", "#3566b8", "#d1495b", "#9aa0a6", "#5f6368"
ENDINGS = (".png", ".svg", ".pdf")
PART_COLOURS = dict(zip(PARTS, ("#6d597a", TOTAL, "#4fb0c6", "#86bbd8", "#f0a202", "#7a9e5f", GREY, "#c9ccd1")))
_STYLE = {
    "font.size": 13, "axes.titlesize": 16, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "figure.facecolor": "white",
}  # fmt: skip


def figure(width, height):
    """An empty figure, drawn without a display; ImportError says how to get matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib ({error}); install refmoe[plot]") from None
    with matplotlib.rc_context(_STYLE):
        return Figure(figsize=(width, height), dpi=150, layout="constrained"), matplotlib.rc_context(_STYLE)


def check_picture(path):
    """Before anything is computed: can the picture be there?  path None is none.

    Raises ValueError for its folder or its ending, ImportError without matplotlib.
    """
    if path is None:
        return
    check_folder("--plot", path)
    wanted, fix = "a file name that ends in .png, .svg or .pdf", "choose one of these"
    require(Path(path).suffix.lower() in ENDINGS, ValueError, "--plot", wanted, repr(str(path)), fix)
    figure(1, 1)


def save(fig, path):
    """The picture in a file; its format by the name's ending. ValueError for an ending that is not one of ENDINGS."""
    check_picture(path)
    fig.savefig(path)


def draw_sweep(info, others, path):
    """Two pictures side by side: size against the number of experts, and mixtures against dense models.

    Left: the model's total grows with the experts while what a token uses barely moves. Right: models of `others`, each
    beside a dense model that uses as many parameters for a token.
    """
    fig, style = figure(15, 6.6)
    with style:
        left, right = fig.subplots(1, 2)
        _draw_growth(left, info)
        _draw_pairs(right, _spaced(others, 12))
        save(fig, path)


def _draw_growth(axes, info):
    rows = sweep_experts(info)
    E = [row["num_experts"] for row in rows]
    for key, colour, text in (("total", TOTAL, "stored"), ("active", ACTIVE, "used by a token")):
        values = [row[key] / 1e9 for row in rows]
        axes.plot(E, values, color=colour, linewidth=3, marker="o", markersize=6)
        axes.annotate(f"{text}: {_billions(values[-1])}", (E[-1], values[-1]), (0, 12), textcoords="offset points",
                      color=colour, ha="right", fontweight="bold")  # fmt: skip
    published = info["full"]["num_experts"]
    axes.axvline(published, color=GREY, linestyle=":", zorder=0)
    side = ("left", 6) if 2 * published < E[-1] else ("right", -6)
    axes.annotate(f"published: {published}", (published, 0.24), (side[1], 0), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha=side[0], color=SOFT)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="routed experts in a layer", ylabel="parameters (billions)")
    powers = [e for e in E if e.bit_count() == 1]
    axes.set_xticks(powers, [str(e) for e in powers])
    axes.minorticks_off()
    axes.set_ylim(rows[0]["active"] / 1e9 / 1.6, rows[-1]["total"] / 1e9 * 1.6)
    axes.set_title(f"More experts: more stored, hardly more used\n{info['name']}, top {info['full']['top_k']}", pad=14)
    _plain(axes.yaxis)


def _draw_pairs(axes, infos):
    for at, info in enumerate(infos):
        dense, mixture = counted(info)["active"] / 1e9, counted(info)["total"] / 1e9
        axes.plot([dense, mixture], [at, at], color=GREY, linewidth=2.5, zorder=1)
        axes.annotate(f"{mixture / dense:.1f}x", (mixture, at), (9, 0), textcoords="offset points", va="center",
                      color=TOTAL, fontweight="bold")  # fmt: skip
        axes.scatter([dense], [at], s=75, color=ACTIVE, zorder=2, label="dense, same active size" if not at else None)
        axes.scatter([mixture], [at], s=75, color=TOTAL, zorder=2, label="mixture of experts" if not at else None)
    axes.set_yticks(range(len(infos)), [info["name"] for info in infos])
    axes.set(xscale="log", xlabel="parameters stored (billions)")
    axes.set_xlim(right=axes.get_xlim()[1] * 2)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title("Dense against mixture,\nat equal parameters used by a token", pad=14)
    _plain(axes.xaxis)


def _spaced(infos, number):
    """At most `number` of the models, evenly spaced in the order of their total size, the ends included."""
    ordered = sorted(infos, key=lambda info: counted(info)["total"])
    if len(ordered) <= number:
        return ordered
    return [ordered[at * (len(ordered) - 1) // (number - 1)] for at in range(number)]


def _billions(value):
    return f"{value:,.0f}B" if value >= 100 else f"{value:.3g}B"


def _plain(axis):
    """0.1, 1, 10 and 1,000 instead of powers."""
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def draw_models(infos, path):
    """A bar a model, stacked by part, and beside each what a token uses of it."""
    fig, style = figure(14, 1.8 + 0.4 * len(infos))
    with style:
        total, active = fig.subplots(1, 2, sharey=True)
        _draw_bars(total, infos, "total", "stored (billions)")
        _draw_bars(active, infos, "active", "used by a token (billions)")
        labels = [info["name"] + ("" if is_whole(info) else ", MoE alone") for info in infos]
        total.set_yticks(range(len(infos)), labels)
        total.set_ylim(len(infos) - 0.4, -0.6)  # the first model on top
        fig.legend(*total.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
        save(fig, path)


def _draw_bars(axes, infos, key, label):
    starts = [0.0] * len(infos)
    for part in PARTS:
        sizes = [by_part(info).get(part, {}).get(key, 0) / 1e9 for info in infos]
        if any(sizes):
            axes.barh(range(len(infos)), sizes, left=starts, color=PART_COLOURS[part], label=part, height=0.7)
        starts = [start + size for start, size in zip(starts, sizes)]
    for at, end in enumerate(starts):
        axes.annotate(f"{end:,.4g}", (end, at), (5, 0), textcoords="offset points", va="center", fontsize=10.5)
    axes.set_xlabel(label)
    axes.set_xlim(0, max(starts) * 1.16)
    axes.tick_params(axis="y", length=0)
