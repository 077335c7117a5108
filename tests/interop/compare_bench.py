"""The peers of `refmoe bench` compute the layer they are timed with, and its gradients."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

import refmoe
from refmoe.bench import child
from refmoe.bench.cases import Inputs, make_case
from refmoe.bench.contestants import house, torch_dense, transformers_experts

SIZES = {"hidden_size": 64, "intermediate_size": 32, "num_experts": 8, "top_k": 2}  # strides that grouped_mm takes
PRESETS = "qwen3-30b-a3b", "gpt-oss-20b"


def case_of(preset, phase, store="float32", **sizes):
    config = dataclasses.replace(refmoe.load_preset(preset, scale="minimal"), **SIZES | sizes)
    return make_case(preset, config, 16, phase, store)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("phase", ["forward", "training"])
@pytest.mark.parametrize("store", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["torch dense", "transformers"])
def test_y(name, store, phase, preset):
    _, answer = child.load(name, case_of(preset, phase, store).to_dict(), {})
    wanted = {"torch dense": {"loop"}, "transformers": set(transformers_experts.SETTINGS)}[name]
    assert wanted <= set(answer["settings"]) and not answer["failed"]
    assert all(error < child.TOLERANCE[store] for s, error in answer["errors"].items() if s in wanted)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loop_goes_the_whole_way_back(preset):
    inputs = Inputs(case_of(preset, "training"))
    peer, layer, num = torch_dense.Layer(torch, inputs), house.Layer(inputs), refmoe.Numerics()
    peer.step()
    grads = layer.backward(num, layer.forward(num, "backward"))
    joined = np.concatenate([grads.params.w_gate, grads.params.w_up], axis=1)
    for tensor, want in ((peer.x, grads.d_x_experts), (peer.weights, grads.d_topk_weights), (peer.first, joined),
                         (peer.down, grads.params.w_down)):  # fmt: skip
        np.testing.assert_allclose(tensor.grad.numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_copies_beyond_the_memory_are_refused():
    with pytest.raises(child.Refused, match="GiB of weights"):
        transformers_experts.refuse_copies(make_case("case", refmoe.load_preset("mixtral-8x7b"), 4096))


MODULES = {"jax ragged_dot": "jax", "ggml": "llama_cpp", "onnxruntime": "onnxruntime"}


@pytest.mark.parametrize("phase", ["forward", "training"])
@pytest.mark.parametrize("store", ["float32", "bf16"])
@pytest.mark.parametrize("name", MODULES)
def test_a_peer_computes_the_layer_or_says_why_not(name, store, phase):
    """A peer that is not installed, as here, or whose operator has no such layer, is refused in words and not timed."""
    try:
        _, answer = child.load(name, case_of("qwen3-30b-a3b", phase, store).to_dict(), {})
    except ModuleNotFoundError as error:
        assert importlib.util.find_spec(MODULES[name]) is None and MODULES[name] in str(error).replace("-", "_")
    except child.Refused as refusal:
        assert len(str(refusal).split()) > 2
    else:
        assert answer["settings"] and not answer["failed"]
