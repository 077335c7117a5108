"""Which fields of the losses contradict each other, or the rest: (holds, argument, expected, got, fix).   Spec 4"""


def loss_rules(config):
    """The rules of the section `losses`."""
    loss = config.losses.importance
    if loss is not None:
        fix = "a variance of one number needs ddof=0"
        yield loss.ddof < config.num_choices, "losses.importance.ddof", "0 with one expert", loss.ddof, fix
        got, fix = (loss.ddof, loss.eps), "it is divided by T^2: leave them out, or set form='cv2'"
        ok = loss.form == "cv2" or got == (0, 0.0)
        yield ok, "losses.importance.form", "no ddof and no eps with 'deviation'", got, fix
    for name in ("device", "communication"):
        loss = getattr(config.losses, name)
        if loss is not None:
            E, ok = config.num_experts, config.num_experts % loss.num_devices == 0
            fix = "give each device as many experts"
            yield ok, f"losses.{name}.num_devices", f"a divisor of num_experts = {E}", loss.num_devices, fix
    loss = config.losses.load
    if loss is not None:
        E, fix = config.num_choices, "with every expert in use there is no threshold"
        yield config.top_k < E, "losses.load", f"a top_k below the {E} ids", config.top_k, fix
    loss = config.losses.communication
    if loss is not None:
        wanted, fix = f"at most num_devices = {loss.num_devices}", "lower it or add devices"
        ok = loss.device_limit <= loss.num_devices
        yield ok, "losses.communication.device_limit", wanted, loss.device_limit, fix
