"""config.json of a checkpoint -> the configuration of one of its layers, by the table of families."""

from ...config import MoEConfig
from .families import FAMILIES, NOT_YET
from .shards import read_json

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}  # where a field other than hidden_act names one
READABLE = ("fp8", "mxfp4")  # methods of quantization_config whose tensors have a reading here


def find_family(directory):
    """(model_type, Family, fields of config.json, quantization_config) of a checkpoint's text model.

    Raises ValueError for an unknown model_type, or one that is known and not read.
    """
    path = directory / "config.json"
    whole = read_json(path)
    inner = _inner(whole)
    nested = isinstance(inner, dict) and str(whole.get("model_type")) not in FAMILIES
    settings = {**inner, "transformers_version": whole.get("transformers_version")} if nested else whole
    model_type = settings.get("model_type")
    for name in map(str, (whole.get("model_type"), model_type)):
        if name in NOT_YET:
            raise ValueError(f"{path}: model_type {name!r} is not read: {NOT_YET[name]}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"{path}: expected a model_type with a declared layout ({known}), got {model_type!r}")
    quantization = whole.get("quantization_config") or settings.get("quantization_config") or {}
    family = _as_written(FAMILIES[model_type], settings, path)
    return model_type, family, settings, _checked_quantization(path, quantization)


def _inner(whole):
    """The fields of the text model inside a model with other parts; None where there is none."""
    thinker = whole.get("thinker_config")
    return thinker.get("text_config") if isinstance(thinker, dict) else whole.get("text_config")


def _as_written(family, settings, path):
    """The family with the layouts of the version that wrote the files, where versions differ under the same names."""
    if not family.since_5:
        return family
    version = settings.get("transformers_version")
    major = str(version).partition(".")[0]
    if not (major.isascii() and major.isdigit()):
        raise ValueError(f"{path}: looked for transformers_version, which alone tells the layout here, got {version!r}")
    return family._replace(experts=family.since_5) if int(major) >= 5 else family


def _checked_quantization(path, quantization):
    if not isinstance(quantization, dict):
        raise ValueError(f"{path}: expected quantization_config to be an object, got {quantization!r}; correct it")
    method = quantization.get("quant_method")
    if quantization and method not in READABLE:
        raise ValueError(f"{path}: expected quant_method {' or '.join(READABLE)}, got {method!r}; it is not read")
    return quantization


def layer_config(family, settings, where, layer=0):
    """MoEConfig of a layer. Losses stay at their neutral values: config.json does not say how they are meant.

    Raises ValueError for a field that is missing, contradicts its other name, or has a value the reading is not for.
    """
    for name, accepted in family.expects:
        value = _lookup(settings, name)
        if value is not _ABSENT and value not in accepted:
            wanted = " or ".join(map(repr, accepted))
            raise ValueError(f"{where}: expected {name} {wanted} in this family, got {value!r}; no rule here states it")
    flat = dict(family.rules) | {path: _field(settings, field, where, layer) for path, field in family.fields.items()}
    if family.groups_if and _lookup(settings, family.groups_if[0]) != family.groups_if[1]:
        flat = {path: value for path, value in flat.items() if "group" not in path}
    if family.when and _lookup(settings, family.when[0]) == family.when[1]:
        flat |= family.when[2]
    if family.hash_layers and _hashed(settings, layer, *family.hash_layers):
        vocabulary = _field(settings, "vocab_size", where, layer)
        flat |= {"routing.selection": "hash", "routing.hash_vocab_size": vocabulary, "routing.selection_bias": False}
    flat = _coherent(flat | {"experts.shared_intermediate_size": _shared_width(settings, family, where)})
    try:
        return MoEConfig.from_dict(_nested(flat))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _coherent(flat):
    """Without the fields that say something about what is not there. A limit or a cap of 0 means none."""
    flat = {path: value or None if path.endswith(("limit", "softcap")) else value for path, value in flat.items()}
    beside = flat.get("experts.shared_activation")
    flat["experts.shared_activation"] = ACTIVATIONS.get(beside, beside) if isinstance(beside, str) else beside
    limit, shared = flat.get("experts.limit"), flat.get("experts.shared_limit")
    if "experts.shared_limit" in flat and limit and not shared:
        flat["experts.shared_clamped"] = False
    absent = {
        "routing.norm_eps": not flat.get("routing.normalize"),
        "experts.limit_position": not limit and not shared,
        "experts.shared_activation": flat["experts.shared_activation"] in (None, flat.get("experts.activation")),
    }
    if not flat["experts.shared_intermediate_size"]:
        absent |= {path: True for path in flat if path.startswith("experts.shared_")}
    return {path: value for path, value in flat.items() if not absent.get(path)}


def _hashed(settings, layer, kinds, count):
    """Does the layer choose by a table of token ids: says the list of kinds, or else the number of such layers?"""
    listed = _lookup(settings, kinds)
    if isinstance(listed, list) and layer < len(listed):
        return str(listed[layer]).startswith("hash")
    first = _lookup(settings, count)
    return type(first) is int and layer < first


def _shared_width(settings, family, where):
    width = 1 if family.shared_width else 0
    for name in family.shared_width:
        value = _field(settings, (name, 0), where, 0)
        if value == 0:
            return 0
        if type(value) is not int:
            raise ValueError(f"{where}: expected an integer {name}, got {value!r}; correct the file")
        width *= value
    return width


def _field(settings, field, where, layer):
    names, *default = (field,) if isinstance(field, str) else field
    found = {name: _lookup(settings, name.removesuffix("[]")) for name in names.split("|")}
    for name, value in found.items():
        if name.endswith("[]") and isinstance(value, list):
            found[name] = value[layer] if layer < len(value) else _ABSENT
    found = {name: value for name, value in found.items() if value is not _ABSENT and value is not None}
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise ValueError(f"{where}: expected one value of {' and '.join(found)}, got {values}; remove one")
    if not values and not default:
        raise ValueError(f"{where}: looked for the field {names.replace('|', ' or ')}, found none; add it")
    return values[0] if values else default[0]


_ABSENT = object()


def _lookup(settings, name):
    """The value of a field, dots leading into objects; _ABSENT if it is not there."""
    for part in name.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return _ABSENT
        settings = settings[part]
    return settings


def _nested(flat):
    out = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        place = out
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return out
