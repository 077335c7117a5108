"""The auxiliary losses that transformers computes, on one layer: value, and gradient of the logits.

Its balance loss counts a plain top K of the softmax and does not divide by K, whatever the router does; that is
`counts="all", divide_by_k=False, selection="plain"` here. Switch counts first choices, sequence by sequence.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from harness import FORWARD_BAR, GRADIENT_BAR, LENGTH, NUM, SEQUENCES, D, E, F, K

import refmoe
from refmoe.recipes import assemble_params, name_params

TOKENS = SEQUENCES * LENGTH
HOME = Path(transformers.__file__).parent / "models"
DEFINES = "def load_balancing_loss_func("
# Switch has a test of its own; the loss of doge counts product keys, which are not experts.
OTHERS = {"switch_transformers", "doge"}
FOUND = {p.parent.name for p in HOME.glob("*/modeling_*.py") if DEFINES in p.read_text(encoding="utf-8")}
MODELS = sorted(FOUND - OTHERS)


def logits_and_mask():
    rng = np.random.default_rng(7)
    logits = torch.tensor(rng.standard_normal((TOKENS, E)) * 2, dtype=torch.float32).requires_grad_()
    return logits, rng.random(TOKENS) < 0.7


def refmoe_losses(losses, logits, top_k, **given):
    """The record's losses, and d_logits from them alone."""
    config = refmoe.MoEConfig(hidden_size=D, intermediate_size=F, num_experts=E, top_k=top_k, losses=losses)
    params = refmoe.init_params(config)
    widened = {name: array.astype(np.float64) for name, array in name_params(params).items()}
    params = assemble_params(widened)
    x = np.ones((TOKENS, D))
    given = refmoe.Given(logits=logits.detach().numpy().astype(np.float64), **given)
    record = refmoe.moe_forward(x, params, config, NUM, given)
    return record.losses, refmoe.moe_backward(np.zeros_like(x), x, params, record, config, NUM, given).d_logits


def agree(ours, loss, d_ours, logits):
    loss.backward()
    value = loss.item()
    assert abs(float(ours) - value) <= FORWARD_BAR * abs(value)
    d_theirs = logits.grad.numpy()
    assert np.abs(d_theirs).max() > 0
    assert np.abs(d_ours - d_theirs).max() <= GRADIENT_BAR * np.abs(d_theirs).max()


def test_the_models_with_a_pooled_loss_are_many():
    assert len(MODELS) >= 30 and OTHERS <= FOUND


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("model", MODELS)
def test_pooled_balance_loss_on_one_layer(model, masked):
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    logits, mask = logits_and_mask()
    attention = torch.tensor(mask.reshape(SEQUENCES, LENGTH)).long() if masked else None
    theirs = module.load_balancing_loss_func((logits,), E, K, attention)
    balance = refmoe.BalanceLoss(coefficient=1.0, divide_by_k=False, selection="plain")
    given = {"token_mask": mask} if masked else {}
    ours, d_logits = refmoe_losses(refmoe.LossesConfig(balance=balance), logits, K, **given)
    agree(ours.balance, theirs, d_logits, logits)


def test_balanced_value_is_k():
    """Balanced counts and probabilities give K to transformers' scaling, and 1 once divided by K."""
    logits = torch.zeros(TOKENS, E)
    spread = np.arange(TOKENS * K).reshape(TOKENS, K) % E
    for divide, value in ((False, K), (True, 1)):
        losses = refmoe.LossesConfig(balance=refmoe.BalanceLoss(coefficient=1.0, divide_by_k=divide))
        ours, _ = refmoe_losses(losses, logits, K, topk_indices=spread)
        assert ours.balance == pytest.approx(value, rel=1e-15)


def test_switch_balance_loss():
    """First choices, a sequence at a time, averaged over sequences."""
    from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func

    logits, _ = logits_and_mask()
    probs = logits.reshape(SEQUENCES, LENGTH, E).softmax(-1)
    theirs = load_balancing_loss_func(probs, probs.argmax(-1))
    balance = refmoe.BalanceLoss(coefficient=1.0, counts="first", scope="sequence")
    ids = np.repeat(np.arange(SEQUENCES), LENGTH)
    ours, d_logits = refmoe_losses(refmoe.LossesConfig(balance=balance), logits, 1, sequence_ids=ids)
    agree(ours.balance, theirs, d_logits, logits)


def test_switch_z_loss():
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    logits, _ = logits_and_mask()
    theirs = router_z_loss_func(logits.reshape(SEQUENCES, LENGTH, E))
    ours, d_logits = refmoe_losses(refmoe.LossesConfig(z=refmoe.ZLoss(coefficient=1.0)), logits, 1)
    agree(ours.z, theirs, d_logits, logits)
