"""Whole tiny models run on refmoe's experts, forward and backward, against transformers' own."""

import harness
import numpy as np
import pytest
import torch
from harness import FORWARD_BAR, GRADIENT_BAR
from registry import BLOCKS
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from refmoe.integrations import transformers as adapter
from refmoe.integrations.transformers import register

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 12, "num_experts_per_tok": 3,
}  # fmt: skip
ROUTED = SIZES | {"n_routed_experts": 8, "moe_intermediate_size": 12}
LATENT_ATTENTION = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
# What each layout and gate needs once: halves, interleaved and biased and clamped, no gate and a latent width.
MODELS = {
    "mixtral": SIZES | {"num_local_experts": 8},
    "qwen2_moe": SIZES | {"num_experts": 8, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    "gpt_oss": SIZES | {"num_local_experts": 8, "swiglu_limit": 1.0, "layer_types": ["sliding_attention"] * 2},
    "deepseek_v3": ROUTED | LATENT_ATTENTION | {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 0},
    "nemotron_h": ROUTED | {
        "moe_shared_expert_intermediate_size": 20, "moe_latent_size": 8, "layers_block_type": ["attention", "moe"],
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    register()
    register("refmoe chain", profile="chain")


def model_of(name, dtype=torch.float32):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**MODELS[name]), dtype=torch.float32)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model.to(dtype).eval()


@pytest.fixture
def calls(monkeypatch):
    """Grows by one whenever refmoe's experts run."""
    made, plan = [], adapter.make_plan
    monkeypatch.setattr(adapter, "make_plan", lambda *args: made.append(1) or plan(*args))
    return made


def run(model, implementation):
    """(logits, name -> gradient) with the given experts."""
    model.set_experts_implementation(implementation)
    model.zero_grad()
    ids = torch.arange(24).reshape(2, 12) % 32
    out = model(ids, labels=ids)
    out.loss.backward()
    grads = {name: p.grad.double().numpy() for name, p in model.named_parameters() if p.grad is not None}
    return out.logits.detach().double().numpy(), grads


def worst(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("implementation", ["refmoe", "refmoe chain"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_on_refmoe(name, implementation, calls):
    model = model_of(name)
    logits, grads = run(model, "eager")
    assert not calls
    our_logits, our_grads = run(model, implementation)
    assert len(calls) == (1 if name == "nemotron_h" else 2)
    assert worst(our_logits, logits) <= FORWARD_BAR
    assert grads.keys() == our_grads.keys() and any("experts" in name for name in grads)
    assert max(worst(our_grads[n], grads[n]) for n in grads) <= GRADIENT_BAR


def expert_modules(block):
    """The modules that take another experts implementation."""
    return [module for module in block.modules() if hasattr(module, "is_concatenated")]


ADAPTED = [row for row in BLOCKS if row.replay is False and expert_modules(harness.build(row)[0])]


@pytest.mark.parametrize("row", ADAPTED, ids=[row.name for row in ADAPTED])
def test_every_block_runs_on_refmoe(row, calls):
    """The block's own router, and its experts by refmoe: every layout and every gate there is."""
    made = []
    for implementation in ("eager", "refmoe"):
        block, x, d_y = harness.build(row)
        for module in expert_modules(block):
            module.config._experts_implementation = implementation
        y = block(x) if row.call is None else row.call(block, x)
        y = (y[0] if isinstance(y, tuple) else y).reshape(x.shape)
        (y * d_y).sum().backward()
        grads = {name: p.grad.numpy() for name, p in block.named_parameters() if p.grad is not None}
        made.append((y.detach().numpy(), {"x": x.grad.numpy()} | grads))
    assert calls
    (y, grads), (our_y, our_grads) = made
    assert worst(our_y, y) <= FORWARD_BAR and grads.keys() == our_grads.keys()
    assert max(worst(our_grads[name], grads[name]) for name in grads) <= GRADIENT_BAR


def test_most_blocks_let_refmoe_in():
    assert len({row.cls for row in ADAPTED}) >= 40


def test_a_model_in_float64_runs_in_the_profile_float64():
    model = model_of("mixtral", torch.float64)
    logits, grads = run(model, "eager")
    our_logits, our_grads = run(model, "refmoe")
    assert worst(our_logits, logits) <= 1e-6  # transformers takes this router's softmax in float32
    assert max(worst(our_grads[n], grads[n]) for n in grads) <= 1e-6


def test_experts_agree_with_float64_closer_than_float32_could():
    """The same experts in float64 on both sides: nothing but the order of sums is left."""
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

    experts = MixtralExperts(MixtralConfig(**MODELS["mixtral"])).double()
    rng = torch.Generator().manual_seed(5)
    for tensor in experts.parameters():
        tensor.data.normal_(0, 0.5, generator=rng)
    x = torch.randn(20, 16, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.rand(20, 3, generator=rng, dtype=torch.float64).requires_grad_()
    indices = torch.rand(20, 8, generator=rng).topk(3).indices
    made = []
    for implementation in ("eager", "refmoe"):
        experts.config._experts_implementation = implementation
        y = experts(x, indices, weights)
        wanted = [x, weights, *experts.parameters()]
        made.append([y.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(y.square().sum(), wanted))])
    assert max(worst(ours, theirs) for theirs, ours in zip(*made, strict=True)) <= 1e-13


def test_a_model_in_bf16_has_gradients_in_bf16():
    model = model_of("mixtral", torch.bfloat16)
    model.set_experts_implementation("refmoe")
    ids = torch.arange(12).reshape(1, 12)
    model(ids, labels=ids).loss.backward()
    for name, tensor in model.named_parameters():
        assert tensor.grad.dtype == torch.bfloat16 and tensor.grad.isfinite().all(), name


def test_slots_of_other_machines_are_left_out():
    """An id of E or beyond stands for an expert that is elsewhere."""
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

    experts = MixtralExperts(MixtralConfig(**MODELS["mixtral"]))
    for tensor in experts.parameters():
        tensor.data.normal_(0, 0.5)
    x, weights = torch.randn(4, 16), torch.rand(4, 3)
    indices = torch.tensor([[0, 1, 8], [8, 8, 8], [2, 8, 3], [4, 5, 6]])
    experts.config._experts_implementation = "eager"
    theirs = experts(x, indices, weights).detach().numpy()
    experts.config._experts_implementation = "refmoe"
    ours = experts(x, indices, weights).detach().numpy()
    assert worst(ours, theirs) <= FORWARD_BAR and not ours[1].any()


def test_a_changed_weight_is_noticed():
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

    experts = MixtralExperts(MixtralConfig(**MODELS["mixtral"], experts_implementation="refmoe"))
    experts.config._experts_implementation = "refmoe"
    for tensor in experts.parameters():
        tensor.data.normal_()
    y = experts(torch.randn(2, 16), torch.tensor([[0, 1, 2]] * 2), torch.rand(2, 3))
    with torch.no_grad():
        experts.down_proj.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_experts_that_refmoe_cannot_state_are_refused():
    from transformers.models.inkling2.modeling_inkling2 import Inkling2Experts, Inkling2TextConfig

    class UnknownExperts(Inkling2Experts):
        pass

    config = Inkling2TextConfig(hidden_size=16, moe_intermediate_size=12, n_routed_experts=8)
    config._experts_implementation = "refmoe"
    with pytest.raises(ValueError, match="UnknownExperts: expected the usual gate"):
        UnknownExperts(config)(torch.randn(2, 16), torch.tensor([[0, 1]] * 2), torch.rand(2, 2))


def test_a_norm_of_each_experts_output_that_refmoe_does_not_know_is_refused():
    class OtherNorm(torch.nn.RMSNorm):
        pass

    row = next(row for row in BLOCKS if row.name == "muse_spark")
    block, x, _ = harness.build(row)
    block.experts.config._experts_implementation = "refmoe"
    block.experts.post_expert_norm = OtherNorm(block.experts.hidden_dim)
    with pytest.raises(ValueError, match=r"MuseSparkExperts\.post_expert_norm: expected one of .* got OtherNorm"):
        block(x)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile: expected"):
        register("never", profile="fast")
