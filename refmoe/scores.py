"""Score functions of the router's logits, and back.   Spec 1.2, 5.2

Each gradient is one stage that evaluates the derivative at the logit, never from a stored, rounded score.
"""

from .numerics import Named


def softmax(logits, num):
    """scores_j = exp(logits_j) / sum_i exp(logits_i).   Spec 1.2

    logits (T, E) -> scores (T, E)
    """
    return num.evaluate("scores", SOFTMAX, logits, core=1)


def softmax_backward(d_scores, logits, num):
    """d_logits_j = p_j (d_scores_j - sum_i d_scores_i p_i), p = softmax(logits).   Spec 5.2

    d_scores (T, E), logits (T, E) -> d_logits (T, E)
    """
    return num.evaluate("d_logits_task", SOFTMAX_BACKWARD, d_scores, logits, core=1)


def _softmax_backward(m, d_scores, z):
    p = m.softmax(z)
    return p * m.centre(d_scores, p, z)


SOFTMAX = Named("softmax", lambda m, z: m.softmax(z), 1.0)
SOFTMAX_BACKWARD = Named("softmax_backward", _softmax_backward, 1.0)
_SIGMOID, _SQRT_SOFTPLUS, _RELU = ((name, 1.0, None, 0.0) for name in ("sigmoid", "sqrt_softplus", "relu"))
SIGMOID = Named("gated", lambda m, z: m.sigmoid(z), _SIGMOID)  # alpha 1, no limit, no offset


def softmax_tokens(logits, num):
    """scores_te = exp(logits_te) / sum_i exp(logits_ie), over the tokens i of one scope.   Spec 1.2; Mesh-TensorFlow

    logits (T, E) of one scope -> scores (T, E)
    """
    return num.evaluate("scores", SOFTMAX, logits.T, core=1).T.copy()


def softmax_tokens_backward(d_scores, logits, num):
    """d_logits_te = p_te (d_scores_te - sum_i d_scores_ie p_ie), p the softmax over tokens.   Spec 5.2

    d_scores (T, E), logits (T, E) of one scope -> d_logits (T, E)
    """
    return num.evaluate("d_logits_task", SOFTMAX_BACKWARD, d_scores.T, logits.T, core=1).T.copy()


def sigmoid(logits, num):
    """scores = 1 / (1 + exp(-logits)).   Spec 1.2

    logits (T, E) -> scores (T, E)
    """
    return num.evaluate("scores", SIGMOID, logits)


def sigmoid_backward(d_scores, logits, num):
    """d_logits = d_scores s (1 - s), s = sigmoid(logits).   Spec 5.2

    d_scores (T, E), logits (T, E) -> d_logits (T, E)
    """
    formula = Named("gated_backward", lambda m, d, z: d * m.sigmoid_derivative(z), _SIGMOID)
    return num.evaluate("d_logits_task", formula, d_scores, logits)


def sqrt_softplus(logits, num):
    """scores = sqrt(log(1 + exp(logits))).   Spec 1.2; the score of DeepSeek-V4

    logits (T, E) -> scores (T, E)
    """
    return num.evaluate("scores", Named("gated", lambda m, z: m.sqrt_softplus(z), _SQRT_SOFTPLUS), logits)


def sqrt_softplus_backward(d_scores, logits, num):
    """d_logits = d_scores sigmoid(logits) / (2 sqrt(softplus(logits))).   Spec 5.2

    d_scores (T, E), logits (T, E) -> d_logits (T, E)
    """
    formula = Named("gated_backward", lambda m, d, z: d * m.sqrt_softplus_derivative(z), _SQRT_SOFTPLUS)
    return num.evaluate("d_logits_task", formula, d_scores, logits)


def relu(logits, num):
    """scores = max(logits, 0).   Spec 1.2; the score of ReMoE

    logits (T, E) -> scores (T, E)
    """
    return num.evaluate("scores", Named("gated", lambda m, z: m.relu(z), _RELU), logits)


def relu_backward(d_scores, logits, num):
    """d_logits = d_scores where logits > 0, else 0.   Spec 5.2

    d_scores (T, E), logits (T, E) -> d_logits (T, E)
    """
    formula = Named("gated_backward", lambda m, d, z: d * m.step(z), _RELU)
    return num.evaluate("d_logits_task", formula, d_scores, logits)


SCORE_FNS = {
    "softmax": (softmax, softmax_backward),
    "softmax_tokens": (softmax_tokens, softmax_tokens_backward),
    "sigmoid": (sigmoid, sigmoid_backward),
    "sqrt_softplus": (sqrt_softplus, sqrt_softplus_backward),
    "relu": (relu, relu_backward),
}

# The derivative s'(z) of the scores that are functions of their own logit alone, for formulas that go on from it.
ELEMENTWISE_SLOPES = {
    "sigmoid": lambda m, z: m.sigmoid_derivative(z),
    "sqrt_softplus": lambda m, z: m.sqrt_softplus_derivative(z),
    "relu": lambda m, z: m.step(z),
}
