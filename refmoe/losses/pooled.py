"""The balance loss of several layers at once, as transformers computes it.   Spec 4.7, 5.8"""

import numpy as np

from .. import selection
from ..config import MoEConfig
from ..numerics import Numerics
from ..refusals import is_finite_number, require, require_instance, shown
from ..scores import SCORE_FNS
from .balance import balance_loss, balance_loss_backward
from .scopes import balance_counts, loss_scopes


def pooled_balance_loss(logits, config, num, given):
    """losses.balance over the tokens of all layers: coefficient E sum_e f_e P_e, f and P over L T rows.   Spec 4.7

    logits: L arrays (T, E); given: what goes with the T tokens of each -> scalar. Hugging Face's loss is family B with
    the plain selection. Raises ValueError without such a loss in the configuration.
    """
    return balance_loss(*_pooled(logits, config, num, given), config, num)


def pooled_balance_loss_backward(d_loss, logits, config, num, given):
    """The gradient of each layer's logits.   Spec 5.8

    d_loss scalar, logits: L arrays (T, E) -> L arrays d_logits_balance (T, E)
    """
    require(is_finite_number(d_loss), ValueError, "d_loss", "a finite number", shown(d_loss), "give one for the loss")
    d_logits = balance_loss_backward(d_loss, *_pooled(logits, config, num, given), config, num)
    return np.split(d_logits, len(logits))


def _require_layers(logits, config, num, given):
    require_instance("config", config, MoEConfig, "use load_preset or MoEConfig")
    require_instance("num", num, Numerics, "use Numerics()")
    ok, got = hasattr(given, "token_mask") and hasattr(given, "sequence_ids"), type(given).__name__
    require(ok, TypeError, "given", "a Given", got, "build it with refmoe.Given(...)")
    ok, fix = isinstance(logits, list | tuple | np.ndarray) and len(logits) > 0, "give a list of them"
    require(ok, TypeError, "logits", "arrays (T, E), one a layer", shown(logits), fix)
    tokens = np.shape(logits[0])[:1] or (0,)
    for z in logits:
        num.check_stored("logits", z, (*tokens, config.num_logits))


def _pooled(logits, config, num, given):
    """Logits, counts and scopes of all layers' tokens, one layer after the other."""
    _require_layers(logits, config, num, given)
    loss = config.losses.balance
    got, fix = loss and loss.selection, "set losses.balance.selection='plain': only logits are known here"
    require(got == "plain", ValueError, "losses.balance", "a loss with selection 'plain'", repr(got), fix)
    got, fix = config.routing.score_fn, "a softmax over tokens is taken layer by layer"
    require(got != "softmax_tokens", ValueError, "routing.score_fn", "scores of single tokens", repr(got), fix)
    z, repeated = np.concatenate(logits), {}
    for name in ("token_mask", "sequence_ids"):
        if getattr(given, name) is not None:
            repeated[name] = np.tile(getattr(given, name), len(logits))
    given = given._replace(**repeated)
    scores = SCORE_FNS[config.routing.score_fn][0](z, num)
    scopes = loss_scopes(len(z), loss, config, given)
    return z, balance_counts(scores, selection.ranked(scores, config.top_k), scopes, config, given), scopes
