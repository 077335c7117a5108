"""The one sentence of a refusal: what was wrong, what was expected, what came, and one fix.   Spec 0.4"""


def require(condition, error, argument, expected, got, fix):
    """Raises error("argument: expected ..., got ...; fix") unless the condition holds.   Spec 0.4"""
    if not condition:
        raise error(f"{argument}: expected {expected}, got {got}; {fix}")
