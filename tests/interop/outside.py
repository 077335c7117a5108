"""The mixture-of-experts code of transformers that no row compares, and why; what is wrong is shown to be wrong.

`WRONG` gives, for a block that does not compute what it is
named for, the reason and a reproduction. `ELSEWHERE` is not a feed-forward mixture over tokens.
"""

import importlib

import torch

ELSEWHERE = {
    "vitpose_backbone": "the last linear map is chosen by the id of a data set; nothing is routed",
    "jetmoe.JetMoeMoA": "the experts are projections of attention",
}


# name -> (what is wrong, three lines whose last is true while it is).
WRONG = {
    "nllb_moe": (
        "the experts' forward one-hots a mask of zeros and ones once more, so only expert_0 and expert_1 ever run",
        """
block = NllbMoeSparseMLP(NllbMoeConfig(d_model=16, num_experts=8, moe_token_dropout=0.0), 12).eval()
for e in range(2, 8): torch.nn.init.constant_(block.experts[f"expert_{e}"].fc2.bias, float("nan"))
wrong = block.router(x[0])[0].argmax(-1).max() > 1 and block(x).isfinite().all()
""",
    ),
    "doge": (
        "the keys' logits are reshaped so that rows of different tokens mix: the last token changes earlier ones",
        """
block = DogeCDMoE(DogeConfig(hidden_size=16, intermediate_size=12, num_experts=16, num_experts_per_tok=3))
changed = torch.cat([x[:, :-1], x[:, -1:] + 3.0], dim=1)
wrong = (block(x)[0] - block(changed)[0])[:, :-1].abs().max() > 1e-3
""",
    ),
}


def reproduce(name):
    """Runs the three lines, with the model's classes, torch and x (1, 20, 16) in reach -> what they call wrong."""
    torch.manual_seed(0)
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    names = vars(module) | {"torch": torch, "x": torch.randn(1, 20, 16)}
    exec(WRONG[name][1], names)
    return bool(names["wrong"])
