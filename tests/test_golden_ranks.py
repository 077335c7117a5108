"""Chapter 2.11, the view of virtual ranks: all ranks together are the single rank, in every bit."""

import json

import numpy as np
import pytest
from golden_case import add_one_bit, check, contents, forge, refused, reseal, tiny, write
from law_bridge import LAW

import refmoe
from refmoe import dispatch
from refmoe.__main__ import main
from refmoe.experts import expert_ffn, expert_ffn_backward
from refmoe.experts.records import FeedForward
from refmoe.golden.ranks import RankPlan, check_ranks, rank_plan
from refmoe.golden.verify import open_bundle
from refmoe.recipes import MoEParams, init_params

NUM = refmoe.Numerics(backend="numpy")
SHARED = {"shared_intermediate_size": 4, "shared_count": 2, "biases": True}
TOKENS = 7


def case(**more):
    return tiny(num_experts=6, experts=SHARED, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """R -> (manifest, tensors) of the same case."""
    room, found = tmp_path_factory.mktemp("ranks"), {}
    for ranks in (1, 2, 3, 6):
        write(room / str(ranks), case(), tokens=TOKENS, ranks=ranks)
        with open_bundle(room / str(ranks), refmoe.SPEC_VERSION) as (manifest, reader):
            found[ranks] = room / str(ranks), manifest, {name: reader.codes(name) for name in reader.entries}
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("capacity", [None, 2])
def test_the_integers_are_the_laws(ranks, capacity):
    config = case(**({"dispatch": {"capacity": capacity}} if capacity else {}))
    indices = np.argsort(np.random.default_rng(3).random((TOKENS, 6)), axis=1, kind="stable")[:, :2].astype(np.int64)
    plan = dispatch.make_plan(indices, np.full((TOKENS, 2), 0.5, np.float32), config, refmoe.Given(), None)
    experts = np.repeat(np.arange(6), plan.tokens_per_expert)
    rows = list(zip(experts.tolist(), dispatch.row_tokens(plan).tolist(), strict=True))
    want, got = LAW.rank_plan(rows, TOKENS, 6, ranks), rank_plan(plan, TOKENS, 6, ranks)
    assert set(want) <= set(RankPlan._fields)
    for name, values in want.items():
        assert getattr(got, name).tolist() == values, name


def split(rows, sizes):
    return np.split(rows, np.cumsum(sizes)[:-1])


def exchanged(buffers, splits):
    """An all-to-all: buffers[s] cut by splits[s], chunk d of it to d; what each received, in the order of senders."""
    chunks = [split(buffer, sizes) for buffer, sizes in zip(buffers, splits, strict=True)]
    return [np.concatenate([chunk[d] for chunk in chunks]) for d in range(len(splits))]


def weights_of(params, ids):
    part = {name: getattr(params, name)[ids] for name in ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")}
    return MoEParams(**part)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_a_runtime_on_the_buffers_has_the_bits_of_the_single_rank(made, ranks):
    """Each rank computes with its own experts and its own tokens alone; nothing but the buffers passes between them."""
    _, _, t = made[ranks]
    config, per = case(), 6 // ranks
    params, counts = init_params(config, seed=0), t["ranks.tokens_per_expert"]
    token_ends, sent = t["ranks.token_offsets"], t["ranks.input_splits"].sum(axis=1)
    received = t["ranks.output_splits"].sum(axis=1)
    there = exchanged(split(t["ranks.dispatch.send_rows"], sent), t["ranks.input_splits"])
    assert np.array_equal(np.concatenate(there), t["ranks.dispatch.received_rows"])
    d_there = exchanged(split(t["ranks.combine_backward.send_rows"], sent), t["ranks.input_splits"])
    assert np.array_equal(np.concatenate(d_there), t["ranks.combine_backward.received_rows"])
    sorts = split(t["ranks.chunk_sort"], received)
    back, d_back, first = [], [], 0
    for rank in range(ranks):
        ids = range(rank * per, (rank + 1) * per)
        offsets = np.concatenate([[0], np.cumsum(counts[:, ids].sum(axis=0))]).astype(np.int64)
        order = sorts[rank] - first
        x_rows, d_y_rows, own = there[rank][order], d_there[rank][order], weights_of(params, ids)
        out = expert_ffn(x_rows, own, offsets, config.experts, NUM)
        saved = FeedForward(out.gate_rows, out.up_rows, out.hidden_rows)
        rows, grads = expert_ffn_backward(d_y_rows, x_rows, saved, own, offsets, config.experts, NUM, MoEParams())
        for name in ("w_gate", "w_up", "w_down", "b_down"):
            assert np.array_equal(grads[name], t[f"grads.params.{name}"][ids])
        unsort = np.argsort(order, kind="stable")
        back.append(out.y_rows[unsort])
        d_back.append(rows.d_x_rows[unsort])
        first += int(received[rank])
    assert np.array_equal(np.concatenate(back), t["ranks.combine.send_rows"])
    assert np.array_equal(np.concatenate(d_back), t["ranks.dispatch_backward.send_rows"])
    home = exchanged(back, t["ranks.output_splits"])
    assert np.array_equal(np.concatenate(home), t["ranks.combine.received_rows"])
    d_home = exchanged(d_back, t["ranks.output_splits"])
    assert np.array_equal(np.concatenate(d_home), t["ranks.dispatch_backward.received_rows"])
    for rank in range(ranks):
        tokens = slice(int(token_ends[rank]), int(token_ends[rank + 1]))
        indices, weights = t["routing.topk_indices"][tokens], t["routing.topk_weights"][tokens]
        plan = dispatch.make_plan(indices, weights, config, refmoe.Given(), None)
        assert np.array_equal(dispatch.combine(home[rank], weights, plan, NUM), t["routed"][tokens])
        d_x = dispatch.permute_backward(d_home[rank], plan, NUM, "d_x_experts")
        assert np.array_equal(d_x, t["grads.d_x_experts"][tokens])


def test_partial_gradients_are_one_rounding_a_rank_away(made):
    whole = made[1][2]
    names = [name for name in whole if name.startswith("ranks.partial.")]
    assert {n.removeprefix("ranks.partial.") for n in names} == {
        "w_router", *(f"shared.{kind}_{leaf}" for kind in "wb" for leaf in ("gate", "up", "down"))}  # fmt: skip
    for name in names:
        single = whole["grads.params." + name.removeprefix("ranks.partial.")]
        assert np.array_equal(whole[name][0], single), "with one rank it is the gradient"
        for ranks in (2, 3):
            parts = made[ranks][2][name].astype(np.float64)
            assert parts.shape == (ranks, *single.shape)
            bound = np.abs(parts).sum(axis=0) * 2.0**-24 + np.abs(single) * 2.0**-24 + 2.0**-149
            assert (np.abs(parts.sum(axis=0) - single) <= bound).all()
            assert not np.array_equal(parts[0], single)


def test_the_view_is_an_addition(made, tmp_path):
    write(tmp_path / "b", case(), tokens=TOKENS)
    with open_bundle(tmp_path / "b", refmoe.SPEC_VERSION) as (manifest, reader):
        names = list(reader.entries)
        assert all(np.array_equal(reader.codes(name), made[3][2][name]) for name in names)
    rows = made[3][1]["tensors"]
    assert [row for row in rows if row["role"] != "view"] == manifest["tensors"]
    assert {row["stage"] for row in rows if row["role"] == "view"} == {"2.11"}


def test_the_view_is_checked(made, tmp_path):
    assert check(made[3][0]).differences == []
    write(tmp_path / "b", case(), tokens=TOKENS, ranks=3)
    assert contents(tmp_path / "b") == contents(made[3][0])
    forge(tmp_path / "b", "ranks.send_row", add_one_bit)
    assert [name for name, _ in check(tmp_path / "b").differences] == ["ranks.send_row"]
    for wrong in (4, 0, -1, "3", 10**30):
        reseal(tmp_path / "b", lambda data, wrong=wrong: data["run"].update(ranks=wrong))
        assert "does not describe a case" in refused(tmp_path / "b")


OTHER_LAYERS = ("gpt-oss-20b", "switch-base-8", "deepseek-v3", "gemma-4-26b-a4b", "qwen1.5-moe-a2.7b")


@pytest.mark.parametrize("preset", OTHER_LAYERS)
def test_real_layers_have_the_view(tmp_path, preset):
    config = refmoe.load_preset(preset, scale="minimal")
    ranks = next(r for r in range(2, 99) if config.num_experts % r == 0)
    write(tmp_path / "b", config, tokens=5, ranks=ranks, backward=preset != "switch-base-8")
    assert check(tmp_path / "b").differences == []


def test_ranks_that_cannot_be_are_refused(tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(tiny().to_dict()))
    asked = ["golden", "--config", str(tmp_path / "c.json"), "--ranks", "3", "--out", str(tmp_path / "b")]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert said == "refmoe: error: --ranks: expected a divisor of the 4 experts, got 3; choose a divisor\n"
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(ValueError, match="expected a plan of experts with weights"):
        check_ranks(tiny(experts={"zero_experts": 1}), 2)
    with pytest.raises(ValueError, match="expected a divisor"):
        check_ranks(tiny(), 0)
    asked[asked.index("3")] = "2"
    assert main([*asked, "--tokens", "3"]) == 0
