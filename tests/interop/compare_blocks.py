"""Every row of the registry against transformers; and, so that agreement means something, rows that must not agree."""

from dataclasses import replace

import harness
import pytest
from harness import FORWARD_BAR, GRADIENT_BAR
from registry import BLOCKS

ROWS = {row.name: row for row in BLOCKS}


@pytest.mark.parametrize("row", BLOCKS, ids=[row.name for row in BLOCKS])
def test_block(row, results):
    result = harness.run(row)
    results.append(result)
    assert result.forward <= FORWARD_BAR
    assert result.gradient <= GRADIENT_BAR, result.worst


def test_names_are_unique():
    assert len(ROWS) == len(BLOCKS)


# A layer that differs in one choice: the comparison must see each.
WRONG_CHOICES = [
    ("mixtral", "routing", {"normalize": False}),
    ("olmoe", "routing", {"normalize": True}),
    ("mixtral", "experts", {"activation": "gelu"}),
    ("mixtral, gelu", "experts", {"activation": "gelu_tanh"}),
    ("jamba, as Grok-1", "experts", {"activation": "gelu"}),
    ("flint", "routing", {"score_fn": "sqrt_softplus"}),
    ("deepseek_v4", "routing", {"score_fn": "sigmoid"}),
    ("deepseek_v3", "routing", {"scaling_factor": 2.4}),
    ("deepseek_v3", "routing", {"group_score_topn": 1}),
    ("deepseek_v3", "routing", {"group_score_topn": 5}),
    ("deepseek_v3", "routing", {"num_groups": 1, "top_groups": 1}),
    ("deepseek_v2", "routing", {"group_score_topn": 2}),
    ("kolibri1", "routing", {"selection_base": "scores"}),
    ("lfm2_moe, small sums", "routing", {"norm_eps": 0.0}),
    ("ernie4_5_moe", "routing", {"norm_eps": 0.0}),
    ("ernie4_5_moe", "routing", {"norm_eps_mode": "add"}),
    ("gpt_oss", "experts", {"alpha": 1.0}),
    ("gpt_oss", "experts", {"limit": None}),
    ("gpt_oss", "experts", {"linear_offset": 0.0}),
    ("glm5_next", "experts", {"limit": 1.1}),
    ("hy_v4", "experts", {"shared_clamped": True}),
    ("step3p7, limits", "experts", {"limit_position": "pre"}),
    ("step3p7, limits", "experts", {"shared_limit": 1.1}),
    ("inkling2", "experts", {"gate_softcap": None}),
    ("inkling2", "experts", {"up_softcap": 1.6}),
    ("aria, gelu beside", "experts", {"shared_activation": None}),
    ("cohere2_moe, averaged", "experts", {"shared_combine": "sum"}),
    ("axk1", "experts", {"norm_eps": 0.6}),
    ("muse_spark", "experts", {"post_expert_norm_eps": None}),
    ("muse_spark", "experts", {"post_expert_norm": "rms_centered"}),
    ("laguna, soft cap", "routing", {"logits_softcap": None}),
    ("gemma4", "routing", {"input_norm_eps": 0.5}),
    ("longcat_flash, identities", "experts", {"identity_experts": 0, "zero_experts": 8}),
    ("zaya", "experts", {"identity_experts": 1, "zero_experts": 0}),
    ("phimoe", "routing", {"sparsemixer_eps": 0.4}),
    ("llama4", "experts", {"weight_position": "output"}),
    ("switch_transformers", "dispatch", {"capacity": 2}),
    ("switch_transformers", "dispatch", {"capacity_scope": "batch"}),
]


@pytest.mark.parametrize("name, section, change", WRONG_CHOICES, ids=[f"{n}, {c}" for n, _, c in WRONG_CHOICES])
def test_a_wrong_choice_is_seen(name, section, change):
    row = ROWS[name]
    layer = replace(row.layer, **{section: replace(getattr(row.layer, section), **change)})
    assert differs(row._replace(layer=layer))


WRONG_LAYOUTS = [
    ("gpt_oss", "halves, transposed, biased"),
    ("openai_privacy_filter", "interleaved, transposed, biased"),
]


@pytest.mark.parametrize("name, form", WRONG_LAYOUTS)
def test_a_wrong_layout_is_seen(name, form):
    row = ROWS[name]
    assert differs(row._replace(layout=row.layout._replace(form=form)))


def test_the_fill_of_masked_groups_is_seen():
    """Biases of both signs: with -inf no expert of another group is taken, with 0.0 some are."""
    row = ROWS["axk2, replayed"]
    layer = replace(row.layer, routing=replace(row.layer.routing, group_mask="-inf"))
    assert differs(row._replace(layer=layer, replay=False))


def differs(row):
    """True if forward or gradients are beyond their bar a hundredfold, or other experts are chosen."""
    try:
        result = harness.run(row)
    except harness.OtherExperts:
        return True
    return result.forward > 100 * FORWARD_BAR or result.gradient > 100 * GRADIENT_BAR
