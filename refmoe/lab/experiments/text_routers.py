"""E13: hash, frozen and learned routing on text.   spec/lab/E13.md"""

import numpy as np

from ...config import BalanceLoss, ExpertsConfig, LossesConfig, MoEConfig, RoutingConfig
from ..decoder import DecoderConfig, DecoderNumerics, decoder_forward
from ..decoder.model import make_given
from ..experiment import Experiment, Finding
from ..measures import log, max_violation, mean, shared_information
from ..optimisers import Optimiser
from ..plots import curves, label_panel, strip
from ..schedules import Schedule
from ..text import held_out_part, load_corpus, windows
from ..training import TrainingConfig, evaluate, start, train

ARMS = ("hash", "frozen", "learned")


def make_config(arm, s):
    """One block: attention, then a mixture; the arm is how it chooses."""
    hashed = {"selection": "hash", "hash_vocab_size": 256} if arm == "hash" else {}
    losses = LossesConfig(balance=BalanceLoss(coefficient=s["coefficient"])) if arm == "learned" else LossesConfig()
    layer = MoEConfig(hidden_size=s["hidden"], intermediate_size=s["width"], num_experts=s["experts"], top_k=s["top_k"],
                      routing=RoutingConfig(**hashed), experts=ExpertsConfig(), losses=losses)  # fmt: skip
    decoder = DecoderConfig(hidden_size=s["hidden"], num_heads=2, context=s["context"], blocks=(layer,))
    falling = Schedule(((0, 0.0), (max(1, s["steps"] // 10), s["rate"]), (s["steps"], s["rate"] / 10)))
    return TrainingConfig(decoder, Optimiser("adam"), falling, s["sequences"])


def measure(arm, seed, settings):
    """Trains on the text; bits a byte held out, and what the expert tells about the byte."""
    s, num, corpus = settings, DecoderNumerics("float64", threads=1), load_corpus(settings["text"] or None)
    config = make_config(arm, s)
    state, losses = start(config, seed, num), []
    params = state.params  # changed in place
    router = params.blocks[0].feed_forward.w_router
    fixed = router.copy()
    for _, made in train(state, s["steps"], config, corpus, seed, num):
        losses.append(made.loss)
        if arm != "learned":
            router[:] = fixed
    bits = 1 / float(log([2.0])[0])
    every = max(1, s["steps"] // 40)
    numbers = {"bits": evaluate(params, config, corpus, num) * bits, **chosen_by(params, config, corpus, num)}
    smooth = [mean(losses[at : at + every]) * bits for at in range(0, len(losses) - every + 1, every)]
    return {"numbers": numbers, "series": {"bits": smooth}}


def chosen_by(params, config, corpus, num, sequences=16):
    """Numbers of who is chosen for held-out text."""
    data, S = held_out_part(corpus), config.decoder.context
    tokens, targets = windows(data, np.arange(sequences) * (len(data) - S - 1) // (sequences - 1), S)
    given = make_given(tokens, config.decoder)
    record = decoder_forward(tokens, targets, params, config.decoder, num, given).blocks[0].feed_forward
    told = shared_information(record.routing.topk_indices[:, 0], tokens.reshape(-1))
    return {"shared_information": told, "max_violation": max_violation(record.plan.assigned_per_expert)}


def findings(table, settings):
    t = table
    return [
        Finding("learned_frozen", "A learned router leaves fewer bits a byte than a frozen random one",
                t.difference("frozen", "learned", "bits"), "bits"),
        Finding("learned_hash", "A learned router leaves fewer bits a byte than a hash of the byte",
                t.difference("hash", "learned", "bits"), "bits"),
        Finding("hash_frozen", "A hash of the byte leaves fewer bits a byte than a frozen random router",
                t.difference("frozen", "hash", "bits"), "bits"),
        Finding("information", "The expert tells more about the byte under the hash than under the learned router",
                t.difference("hash", "learned", "shared_information")),
    ]  # fmt: skip


def draw(figure, table, settings):
    axes = figure.subplot_mosaic([["curve", "curve"], ["bits", "information"]])
    groups = [table.series(arm, "bits") for arm in ARMS]
    at = np.arange(len(groups[0][0])) * max(1, settings["steps"] // 40)
    curves(axes["curve"], at, groups, ARMS)
    label_panel(axes["curve"], "Bits a byte while training", "step", "bits a byte")
    strip(axes["bits"], ARMS, [table.numbers(arm, "bits") for arm in ARMS])
    values = [v for arm in ARMS for v in table.numbers(arm, "bits")]
    axes["bits"].set_ylim(min(values) - 0.05, max(values) + 0.05)
    label_panel(axes["bits"], "Bits a byte held out (axis does not start at 0)")
    strip(axes["information"], ARMS, [table.numbers(arm, "shared_information") for arm in ARMS])
    label_panel(axes["information"], "What the expert tells about the byte (1 = everything)")


EXPERIMENT = Experiment(
    id="E13",
    name="text-routers",
    title="Hash, frozen and learned routing on text",
    question="On text, how much is a learned router worth over a hash of the byte, or a random router?",
    settings={"steps": 200, "sequences": 8, "context": 32, "experts": 8, "top_k": 1, "hidden": 32, "width": 32,
              "rate": 0.01, "coefficient": 0.01, "text": ""},
    quick={"steps": 20, "sequences": 4},
    arms=lambda settings: ARMS,
    measure=measure,
    findings=findings,
    draw=draw,
    corpus=True,
    limits=(
        ("hidden", "an even number, for two heads", lambda s: s["hidden"] % 2 == 0),
        ("steps", "at least 2, for a rate that rises and falls", lambda s: s["steps"] > 1),
    ),
)  # fmt: skip
