"""The balance loss, and its forms over devices: counts times probabilities.   Spec 4.1, 4.6, 5.8"""

from .products import products, products_backward


def balance_loss(logits, counts, scopes, config, num):
    """coefficient E sum_e f_e P_e, averaged over scopes;  f_e = n_e / (K T) or n_e / T,  P_e = mean probs.   Spec 4.1

    logits (T, E), counts (S, E) -> scalar
    """
    divisor, factors, probs = _balance(scopes, config)
    return products("losses.balance", logits, counts, divisor, scopes, factors, probs, num)


def balance_loss_backward(d_loss, logits, counts, scopes, config, num):
    """d_logits_j = a p_j (n_j - sum_e n_e p_e) for softmax, alike for the others; +0 for masked tokens.   Spec 5.8

    d_loss scalar, logits (T, E), counts (S, E) -> d_logits_balance (T, E)
    """
    divisor, factors, probs = _balance(scopes, config)
    return products_backward("d_logits_balance", d_loss, logits, counts, divisor, scopes, factors, probs, num)


def _balance(scopes, config):
    loss = config.losses.balance
    norm = config.top_k if loss.counts == "all" and loss.divide_by_k else 1
    divisor = norm * scopes.tokens_counted * scopes.tokens_local * len(scopes.tokens_local)
    return divisor, (loss.coefficient, config.num_choices), loss.probs


def device_loss(logits, counts, scopes, config, num):
    """coefficient sum_i f_i P_i over devices i: f_i = the mean of its experts' f, P_i = the sum of theirs.   Spec 4.6

    logits (T, E), counts (S, E): the choices of e's whole device -> scalar. DeepSeek-V2
    """
    loss = config.losses.device
    divisor, factors = _device(loss, config.top_k, scopes)
    return products("losses.device", logits, counts, divisor, scopes, factors, loss.probs, num)


def device_loss_backward(d_loss, logits, counts, scopes, config, num):
    """The gradient of the balance loss, with the counts of e's device in place of n_e.   Spec 5.8

    d_loss scalar, logits (T, E), counts (S, E) -> d_logits_device (T, E)
    """
    loss = config.losses.device
    divisor, factors = _device(loss, config.top_k, scopes)
    return products_backward("d_logits_device", d_loss, logits, counts, divisor, scopes, factors, loss.probs, num)


def communication_loss(logits, counts, scopes, config, num):
    """coefficient sum_i f_i P_i over devices i: f_i = devices / (M T) times the tokens sent to i.   Spec 4.6

    logits (T, E), counts (S, E): the tokens sent to e's device -> scalar. DeepSeek-V2
    """
    loss = config.losses.communication
    divisor, factors = _device(loss, loss.device_limit, scopes)
    return products("losses.communication", logits, counts, divisor, scopes, factors, loss.probs, num)


def communication_loss_backward(d_loss, logits, counts, scopes, config, num):
    """The gradient of the balance loss, with the tokens sent to e's device in place of n_e.   Spec 5.8

    d_loss scalar, logits (T, E), counts (S, E) -> d_logits_communication (T, E)
    """
    loss = config.losses.communication
    divisor, factors = _device(loss, loss.device_limit, scopes)
    tables = logits, counts, divisor, scopes, factors, loss.probs
    return products_backward("d_logits_communication", d_loss, *tables, num)


def _device(loss, choices, scopes):
    local = scopes.tokens_local
    return choices * local * local * len(local), (loss.coefficient, loss.num_devices)
