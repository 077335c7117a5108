"""Every optional argument of the outer doors, wrong by itself beside arguments that are right: one sentence each.

The functions and their options are found as in test_refusals_walk.py; a new function needs a call that is right here.
"""

import dataclasses
import inspect

import numpy as np
import pytest
from test_refusals_walk import BAD, functions, refused

import refmoe
from refmoe import compare, encodings, golden, testing
from refmoe.golden.inputs import make_inputs, recipe_rows
from refmoe.golden.narrow import Options
from refmoe.testing.vectors import results

SIZES = {"hidden_size": 4, "intermediate_size": 4, "num_experts": 4, "top_k": 2}
CONFIG = refmoe.MoEConfig(**SIZES)
NUM = refmoe.Numerics(backend="numpy")
ROWS = recipe_rows(CONFIG, NUM, 3, True, 0)
LABEL = {"spec_version": refmoe.SPEC_VERSION, "title": "one", "tokens": 3, "rows": ROWS}
WRONG = BAD | {"bytes": b"yes", "a minus": -1, "another class": object(), "a flag": True}
FLAGS = {"any_order", "force", "invalid", "oracle", "rigorous"}
COUNTS = {"capacity", "limit", "max_m", "num_tokens", "seed", "threads", "top_k"}


def fits(option, default, what):
    """Is this one of WRONG right for the option?"""
    if what == "a flag":  # an integer in Python; one thread is what it says
        return option in FLAGS | {"threads"}
    return (what == "None" and default is None) or (what == "an int" and option in COUNTS)


def options(function):
    return [p for p in inspect.signature(function).parameters.values() if p.default is not p.empty]


OPTIONS = {(name, p.name): (function, p.default) for name, function in functions() for p in options(function)}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """name -> the arguments of a call that is right."""
    bundle = tmp_path_factory.mktemp("options") / "bundle"
    golden.write_bundle(bundle, CONFIG, NUM, **LABEL)
    return _of_layers() | _of_encodings() | {
        "golden.check_bundle": {"directory": bundle, "spec_version": refmoe.SPEC_VERSION},
        "golden.write_bundle": {"directory": bundle.with_name("another"), "config": CONFIG, "num": NUM, **LABEL},
    }  # fmt: skip


def _layer():
    x, params = np.ones((3, 4), np.float32), refmoe.init_params(CONFIG)
    return {"x": x, "params": params, "config": CONFIG, "num": NUM}


def _of_layers():
    layer, case = _layer(), testing.find_case("experts/7")
    record, accumulator = refmoe.moe_forward(**layer), compare.find_accumulator("f32")
    mine = {"config": CONFIG, "inputs": make_inputs(CONFIG, NUM, 3, ROWS, {}, None), "num": NUM}
    return {
        "refmoe.check_gradients": {"config": CONFIG},
        "refmoe.init_params": {"config": CONFIG},
        "refmoe.load_preset": {"name": "mixtral-8x7b"},
        "refmoe.moe_backward": {"d_y": layer["x"], "record": record, **layer},
        "refmoe.moe_forward": layer,
        "refmoe.show_config": {},
        "models.load_preset": {"name": "mixtral-8x7b"},
        "compare.compare_tensors": {"mine": {"y": compare.Mine(record.y, "F32")}, "accumulator": accumulator, **mine},
        "testing.assert_conforms": {"case": case, "got": results(case)},
        "testing.cases": {},
    }


def _of_encodings():
    record = refmoe.moe_forward(**_layer())
    weights, plan = {"topk_weights": record.routing.topk_weights}, {"plan": record.plan}
    both, many = weights | plan, weights | {"num_experts": 4}
    made = {
        "aligned_rows": {"encoded": encodings.to_aligned_rows(**plan, alignment=2), **weights, "alignment": 2},
        "block_aligned": {"encoded": encodings.to_block_aligned(**plan, block_size=2), **many, "block_size": 2},
        "capacity_one_hot": {"encoded": encodings.to_capacity_one_hot(**both)},
        "capacity_pairs": {"pairs": encodings.to_capacity_pairs(**plan), **many},
        "dense_map": {"dense": encodings.to_dense_map(**both)},
        "masked_batched": {"encoded": encodings.to_masked_batched(**plan), **weights},
        "offsets": {"offsets": encodings.to_offsets(**plan), "row_slot": record.plan.row_slot, **weights},
        "padded_rows": {"encoded": encodings.to_padded_rows(**both), **weights},
        "row_id_map": {"encoded": encodings.to_row_id_map(**both)},
        "sorted_slots": {"encoded": encodings.to_sorted_slots(**plan), **many},
    }
    there = {"capacity_one_hot": both, "capacity_pairs": plan, "masked_batched": plan, "padded_rows": both}
    forms = {f"encodings.from_{name}": call for name, call in made.items()}
    return forms | {f"encodings.to_{name}": call for name, call in there.items()} | {"encodings.complete_offsets": {}}


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_wrong_option_gets_one_sentence(right, name, option):
    function, default = OPTIONS[name, option]
    for what, bad in WRONG.items():
        if not fits(option, default, what):
            refused(function, right[name] | {option: bad}, what)
    assert name != "golden.write_bundle" or not right[name]["directory"].exists()


def test_the_calls_are_right(right, capsys):
    """Or every refusal above would be one of something else."""
    for name, function in functions():
        if name in right and name != "encodings.complete_offsets":  # which needs one of its options
            function(**right[name])
    assert "versions" in capsys.readouterr().out
    golden.write_bundle(**right["golden.write_bundle"], force=True)


def test_a_container_that_there_is_not_is_refused_before_a_byte_is_written(tmp_path):
    for bad in ("tar", None, np.zeros(2)):
        given = {"directory": tmp_path / "b", "config": CONFIG, "num": NUM, **LABEL, "options": Options(container=bad)}
        refused(golden.write_bundle, given, bad)
    assert not list(tmp_path.iterdir())


# ---- classes whose fields are arguments ----

SECTIONS = {"routing": refmoe.RoutingConfig, "dispatch": refmoe.DispatchConfig, "experts": refmoe.ExpertsConfig,
            "losses": refmoe.LossesConfig}  # fmt: skip
OF_LOSSES = {spec.name: spec.metadata["section"] for spec in dataclasses.fields(refmoe.LossesConfig)
             if "section" in spec.metadata}  # fmt: skip
SHAPELESS = {"a list": [1, 2], "an empty array": np.zeros(0), "two": np.zeros(2), "an array of 2.5": np.array(2.5),
             "bytes": b"yes", "another class": object()}  # fmt: skip


def configured(section, field, bad):
    """A configuration with one field of one section."""
    if section in OF_LOSSES:
        return refmoe.MoEConfig(**SIZES, losses=refmoe.LossesConfig(**{section: OF_LOSSES[section](**{field: bad})}))
    return refmoe.MoEConfig(**SIZES, **{section: SECTIONS[section](**{field: bad})})


@pytest.mark.parametrize("section", [*SECTIONS, *OF_LOSSES])
def test_no_field_of_a_configuration_takes_what_is_no_value(section):
    for spec in dataclasses.fields((SECTIONS | OF_LOSSES)[section]):
        for what, bad in SHAPELESS.items():
            refused(configured, {"section": section, "field": spec.name, "bad": bad}, f"{spec.name} {what}")


@pytest.mark.parametrize("size", SIZES)
def test_no_size_takes_what_is_no_value(size):
    for what, bad in SHAPELESS.items():
        refused(refmoe.MoEConfig, SIZES | {size: bad}, what)


@pytest.mark.parametrize("field", [spec.name for spec in dataclasses.fields(refmoe.Numerics) if spec.init])
def test_no_field_of_numerics_takes_what_is_no_value(field):
    for what, bad in {**SHAPELESS, "a NaN": float("nan"), "a minus": -1}.items():
        refused(refmoe.Numerics, {field: bad}, what)
