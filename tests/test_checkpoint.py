"""Reading one layer of a checkpoint: every family and storage, shards, 8-bit and 4-bit codes."""

import json

import checkpoint_cases as cases
import numpy as np
import pytest
from checkpoint_cases import CASES, MIXTRAL, MLP, QWEN, D, E, block, each, expected, fused, stored, write

import refmoe
from refmoe.formats import FORMATS, Packed, decode, round_to
from refmoe.models.checkpoint import FAMILIES, NOT_YET, read_layer
from refmoe.models.checkpoint.settings import layer_config
from refmoe.recipes import name_params

QWEN3 = cases.typed("qwen3_moe", QWEN)


def assert_read(directory, config, params, layer=1):
    """The layer reads as this configuration and these parameters, bit for bit."""
    got = read_layer(directory, layer)
    assert got.config == config
    named = name_params(got.params)
    assert set(named) == set(params)
    for name, wanted in params.items():
        array = np.stack([named[name](e) for e in range(len(wanted))]) if callable(named[name]) else named[name]
        assert array.dtype == wanted.dtype and array.shape == wanted.shape, name
        assert np.array_equal(array, wanted), name
    return got


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_family_and_storage_reads_back(tmp_path, case, shards):
    settings, layer, tensors = CASES[case]
    config, params = expected(layer)
    assert_read(write(tmp_path / "model", settings, tensors(params), shards), config, params)


def test_every_family_of_the_table_has_a_case():
    settings = [case[0] for case in CASES.values()]
    inner = [s.get("thinker_config", s) for s in settings]
    assert set(FAMILIES) == {s.get("text_config", s)["model_type"] for s in inner}
    assert not set(FAMILIES) & set(NOT_YET)


@pytest.mark.parametrize("model_type", ["mixtral", "llama4_text", "gpt_oss"])
def test_a_square_tensor_is_read_by_the_declared_layout(tmp_path, model_type):
    """2F = D = 6: no shape could tell gate_up's (out, in) from (in, out), or halves from interleaved rows."""
    rng, root = np.random.default_rng(0), cases.FEED if model_type == "llama4_text" else MLP
    gate_up, down = round_to(rng.standard_normal((E, 6, 6)), "bf16"), round_to(rng.standard_normal((E, 6, 3)), "bf16")
    in_out, halves, ones = model_type != "mixtral", model_type != "gpt_oss", np.ones((E, 6), np.float32)
    tensors = {"experts.gate_up_proj": gate_up, "experts.down_proj": cases.turned(down) if in_out else down}
    tensors |= {"gate.weight": ones, "router.weight": ones, "router.bias": ones[:, 0]}
    tensors |= {"experts.gate_up_proj_bias": ones, "experts.down_proj_bias": ones}
    tensors |= {f"shared_expert.{name}_proj.weight": ones[:3] for name in ("gate", "up")}
    tensors |= {"shared_expert.down_proj.weight": ones[:3].T}
    settings = {**cases.typed(model_type, MIXTRAL), "intermediate_size": 3}
    params = read_layer(write(tmp_path / "model", settings, {root + n: a for n, a in tensors.items()}), 1).params
    for e in range(E):
        joined = gate_up[e].T if in_out else gate_up[e]
        assert np.array_equal(params.w_gate(e), joined[:3] if halves else joined[0::2])
        assert np.array_equal(params.w_up(e), joined[3:] if halves else joined[1::2])
        assert np.array_equal(params.w_down(e), down[e])


def test_the_layer_of_a_checkpoint_computes_what_its_parameters_compute(tmp_path):
    settings, layer, tensors = CASES["deepseek_v3 fused"]
    config, params = expected(layer)
    got = read_layer(write(tmp_path / "model", settings, tensors(params)), 1)
    x, num = np.random.default_rng(0).standard_normal((7, D)).astype(np.float32), refmoe.Numerics(backend="numpy")
    both = got.params, refmoe.init_params(config, recipe="bf16")
    records = [refmoe.moe_forward(x, p, config, num) for p in both]
    assert np.array_equal(records[0].y, records[1].y) and records[0].y.any()
    grads = [refmoe.moe_backward(x, x, p, r, config, num) for p, r in zip(both, records, strict=True)]
    assert np.array_equal(grads[0].d_x, grads[1].d_x)
    assert np.array_equal(grads[0].params.shared.w_up, grads[1].params.shared.w_up)


def test_the_decoder_counts_on_after_the_encoder(tmp_path):
    config, params = expected(cases.SWITCH_LAYER)
    _, other = expected(cases.SWITCH_LAYER, seed=1)
    tensors = cases.switch("encoder.block.1.layer.1.mlp.")(params) | cases.switch("decoder.block.1.layer.2.mlp.")(other)
    directory = write(tmp_path / "model", cases.typed("switch_transformers", cases.SWITCH), tensors)
    assert_read(directory, config, params, layer=1)
    assert_read(directory, config, other, layer=3)


PUBLISHED = {  # the fields of a published config.json that a reading may look at
    "mixtral-8x7b": {"model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
                     "num_experts_per_tok": 2, "num_local_experts": 8},
    "olmoe-1b-7b": {"model_type": "olmoe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024,
                    "norm_topk_prob": False, "num_experts": 64, "num_experts_per_tok": 8},
    "qwen1.5-moe-a2.7b": {"model_type": "qwen2_moe", "hidden_act": "silu", "hidden_size": 2048,
                          "intermediate_size": 5632, "moe_intermediate_size": 1408, "norm_topk_prob": False,
                          "num_experts": 60, "num_experts_per_tok": 4, "shared_expert_intermediate_size": 5632},
    "qwen3-30b-a3b": {"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
                      "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128,
                      "num_experts_per_tok": 8},
    "deepseek-v3": {"model_type": "deepseek_v3", "hidden_act": "silu", "hidden_size": 7168,
                    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256,
                    "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 8,
                    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4,
                    "topk_method": "noaux_tc"},
    "gpt-oss-20b": {"model_type": "gpt_oss", "hidden_act": "silu", "hidden_size": 2880, "intermediate_size": 2880,
                    "num_local_experts": 32, "num_experts_per_tok": 4, "swiglu_limit": 7.0},
    "kimi-k2": {"model_type": "kimi_k2", "hidden_act": "silu", "norm_topk_prob": True, "num_experts_per_tok": 8,
                "n_shared_experts": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_size": 7168,
                "moe_intermediate_size": 2048, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
                "routed_scaling_factor": 2.827},
    "glm-4.5": {"model_type": "glm4_moe", "hidden_act": "silu", "norm_topk_prob": True, "num_experts_per_tok": 8,
                "n_shared_experts": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_size": 5120,
                "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_group": 1, "topk_group": 1,
                "routed_scaling_factor": 2.5},
    "deepseek-v2": {"model_type": "deepseek_v2", "hidden_act": "silu", "hidden_size": 5120,
                    "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
                    "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
                    "norm_topk_prob": False, "routed_scaling_factor": 16.0, "scoring_func": "softmax"},
    "deepseek-v2-lite": {"model_type": "deepseek_v2", "hidden_act": "silu", "hidden_size": 2048,
                         "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
                         "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
                         "norm_topk_prob": False, "routed_scaling_factor": 1.0, "scoring_func": "softmax"},
    "dbrx": {"model_type": "dbrx", "d_model": 6144, "ffn_config": {"ffn_hidden_size": 10752, "moe_jitter_eps": 0,
             "moe_loss_weight": 0.05, "moe_num_experts": 16, "moe_top_k": 4}},
    "granite-3.1-1b-a400m": {"model_type": "granitemoe", "hidden_act": "silu", "hidden_size": 1024,
                             "intermediate_size": 512, "num_local_experts": 32, "num_experts_per_tok": 8},
    "llama-4-scout": {"model_type": "llama4_text", "hidden_act": "silu", "hidden_size": 5120,
                      "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_local_experts": 16,
                      "num_experts_per_tok": 1},
    "ernie-4.5-21b-a3b": {"model_type": "ernie4_5_moe", "hidden_act": "silu", "hidden_size": 2560,
                          "moe_intermediate_size": 1536, "moe_num_experts": 64, "moe_k": 6,
                          "moe_num_shared_experts": 2, "use_bias": False},
    "minimax-m2": {"model_type": "minimax_m2", "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 1536,
                   "num_local_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid",
                   "use_routing_bias": True, "shared_intermediate_size": 0},
    "lfm2-8b-a1b": {"model_type": "lfm2_moe", "hidden_size": 2048, "moe_intermediate_size": 1792, "num_experts": 32,
                    "num_experts_per_tok": 4, "norm_topk_prob": True, "use_expert_bias": True,
                    "routed_scaling_factor": 1.0},
    "nemotron-3-nano": {"model_type": "nemotron_h", "mlp_hidden_act": "relu2", "hidden_size": 2688,
                        "moe_intermediate_size": 1856, "n_routed_experts": 128, "num_experts_per_tok": 6,
                        "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5,
                        "moe_shared_expert_intermediate_size": 3712},
    "qwen3-next-80b-a3b": {"model_type": "qwen3_next", "hidden_act": "silu", "hidden_size": 2048,
                           "moe_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
                           "norm_topk_prob": True, "shared_expert_intermediate_size": 512},
    "muse-spark-816b-a42b": {"model_type": "muse_spark_text", "hidden_act": "silu", "hidden_size": 8192,
                             "intermediate_size": 16384, "moe_hidden_size": 4096, "moe_intermediate_size": 4096,
                             "num_local_experts": 256, "num_experts_per_tok": 8, "routed_scaling_factor": 1.0,
                             "output_multiplier": 0.1767766952966369, "rms_norm_eps": 1e-5, "post_norm_eps": 1e-8},
    "qwen4-exp": {"model_type": "qwen4_exp_text", "hidden_act": "silu", "hidden_size": 2048, "num_experts": 512,
                  "moe_intermediate_size": 512, "num_experts_per_tok": 10, "norm_topk_prob": True,
                  "shared_expert_intermediate_size": 512},
    "switch-base-8": {"model_type": "switch_transformers", "d_model": 768, "d_ff": 3072, "num_experts": 8,
                      "expert_capacity": 64, "num_layers": 12},
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_configuration_is_the_preset_but_for_its_losses(preset):
    settings = PUBLISHED[preset]
    config = layer_config(FAMILIES[settings["model_type"]], settings, "config.json").to_dict()
    wanted = refmoe.load_preset(preset).to_dict()
    assert config.pop("losses") == refmoe.LossesConfig().__dict__
    wanted.pop("losses")
    assert config == wanted


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_floats_keep_their_value(tmp_path, dtype):
    config, params = expected(cases.SOFTMAX0)
    tensors = {name: stored(array, dtype) for name, array in block(each)(params).items()}
    got = assert_read(write(tmp_path / "model", QWEN3, tensors), config, params)
    assert FORMATS[got.params.w_up.format].safetensors == dtype


def test_only_the_layers_own_files_are_opened(tmp_path):
    """The shard of another layer may be missing, or nonsense."""
    config, params = expected(cases.SOFTMAX0)
    directory = write(tmp_path / "model", QWEN3, block(each)(params))
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    (directory / "b.safetensors").write_bytes(b"nonsense")
    where = dict.fromkeys(block(each)(params), "a.safetensors")
    where |= {"model.layers.0.mlp.gate.weight": "b.safetensors", "model.layers.2.mlp.gate.weight": "c.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert "1 of 3 files opened" in assert_read(directory, config, params).notes[0]
    with pytest.raises(ValueError, match=r"c\.safetensors: .*index\.json names this file, and it is missing"):
        read_layer(directory, 2)


def test_expert_weights_are_views_of_the_file(tmp_path):
    params = expected(cases.SOFTMAX0)[1]
    got = read_layer(write(tmp_path / "model", cases.typed("mixtral", MIXTRAL), block(fused)(params)), 1)
    for e in range(E):
        codes = got.params.w_up.codes[e]
        assert not codes.flags.owndata and not codes.flags.writeable


def test_tensors_of_types_the_layer_does_not_use_do_not_matter(tmp_path):
    config, params = expected(cases.SOFTMAX0)
    other = {
        "tokens": ("I64", np.arange(3)),
        "odd": ("F7_E9", np.zeros(2, np.uint8)),
        "none": ("F32", np.zeros((0, 2), "f4")),
    }
    assert_read(write(tmp_path / "model", QWEN3, block(each)(params) | other), config, params)


def test_a_single_file_goes_before_an_index(tmp_path):
    config, params = expected(cases.SOFTMAX0)
    directory = write(tmp_path / "model", QWEN3, block(each)(params))
    (directory / "model.safetensors.index.json").write_text("{}")
    assert_read(directory, config, params)


def test_training_noise_is_left_out_and_said_so(tmp_path):
    settings = {**cases.typed("mixtral", MIXTRAL), "router_jitter_noise": 0.1}
    notes = read_layer(write(tmp_path / "model", settings, block(fused)(expected(cases.SOFTMAX0)[1])), 1).notes
    assert any("router_jitter_noise acts in training only" in note for note in notes)
    assert any("losses are left at zero" in note for note in notes)


# --- codes and scales -------------------------------------------------------------------------------------------------


def fp8_expert(tensors, leaf, e, joined):
    """Codes and scales of an expert's weight, by the names in the file."""
    if not joined:
        name = f"{MLP}experts.{e}.{leaf}_proj.weight"
        return [tensors[n][1] for n in (name, f"{name}_scale_inv")]
    name = f"{MLP}experts.{'down' if leaf == 'down' else 'gate_up'}_proj"
    parts = [tensors[n][1][e] for n in (name, f"{name}_scale_inv")]
    return parts if leaf == "down" else [np.split(part, 2)[leaf == "up"] for part in parts]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize("experts", [each, fused])
def test_fp8_blocks_are_read_as_codes_and_scales(tmp_path, experts, dtype):
    directory, config, tensors = cases.fp8_checkpoint(tmp_path, experts, dtype)
    got = read_layer(directory, 1)
    assert got.config == config
    assert any("stored in E4M3 in blocks of 2 x 4" in note for note in got.notes)
    for leaf in ("gate", "up", "down"):
        w = getattr(got.params, f"w_{leaf}")
        assert isinstance(w, Packed) and (w.format, w.block) == ("E4M3", (2, 4))
        for e in range(E):
            codes, scales = fp8_expert(tensors, leaf, e, experts is fused)
            scales = decode(scales, cases.FORMAT[dtype])
            values = decode(codes, "E4M3").astype(np.float64)
            for m, k in np.ndindex(values.shape):
                assert w.exact(e)[m, k] == values[m, k] * float(scales[m // 2, k // 4])
    assert got.params.w_up.dtype == (np.float32 if dtype == "F8_E8M0" else np.float64)
    assert got.params.shared.w_up.shape == (1, 4, D) and got.params.shared.w_up.format == "E4M3"


def test_an_fp8_layer_runs_in_the_exact_profile(tmp_path):
    got = read_layer(cases.fp8_checkpoint(tmp_path)[0], 1)
    x = np.random.default_rng(1).standard_normal((5, D)).astype(np.float32)
    record = refmoe.moe_forward(x, got.params, got.config, refmoe.Numerics(backend="numpy"))
    assert np.isfinite(record.y).all() and record.y.any()


def test_mxfp4_blocks_are_read_as_codes_and_scales(tmp_path):
    directory, config, params, tensors = cases.mxfp4_checkpoint(tmp_path)
    got = read_layer(directory, 1)
    assert got.config == config
    for name in ("w_router", "router_bias", "b_gate", "b_up", "b_down"):
        assert np.array_equal(getattr(got.params, name), params[name])
    table = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    for leaf, name, rows in (("w_gate", "gate_up", slice(0, None, 2)), ("w_up", "gate_up", slice(1, None, 2)),
                             ("w_down", "down", slice(None))):  # fmt: skip
        w = getattr(got.params, leaf)
        blocks, scales = (tensors[f"{MLP}experts.{name}_proj_{part}"][1][:, rows] for part in ("blocks", "scales"))
        codes = np.zeros(w.shape, int)
        codes[..., 0::2], codes[..., 1::2] = (half.reshape(E, w.shape[1], -1) for half in (blocks & 15, blocks >> 4))
        wanted = table[codes & 7] * np.where(codes & 8, -1.0, 1.0) * 2.0 ** (np.repeat(scales, 32, axis=2) - 127.0)
        assert (w.format, w.block, w.dtype) == ("E2M1", (1, 32), np.float32)
        assert all(np.array_equal(w(e), wanted[e]) for e in range(E))


def test_an_mxfp4_row_by_hand(tmp_path):
    """Expert 2, row 5 of the joined tensor is row 2 of up; its first byte 0xB7 holds 6 and -1.5; the scale is 2^-3."""

    def change(settings, tensors):
        tensors[f"{MLP}experts.gate_up_proj_blocks"][1][2, 5, 1, 0] = 0xB7
        tensors[f"{MLP}experts.gate_up_proj_scales"][1][2, 5, 1] = 124

    w = read_layer(cases.mxfp4_checkpoint(tmp_path, change=change)[0], 1).params.w_up
    assert w(2)[2, 32:34].tolist() == [0.75, -0.1875]
