"""One layer of a checkpoint: its tensors, found by declared names, as the parameters of `moe_forward`."""

import re
from pathlib import Path
from typing import NamedTuple

from ...config import MoEConfig
from ...recipes import INTEGER_PARAMS, MoEParams, assemble_params, name_params, parameter_shapes
from ...refusals import require_path
from .places import carrier, expert_bias, expert_weights, identifiers, tensor_names
from .settings import find_family, layer_config
from .shards import open_shards


class Layer(NamedTuple):
    """What `read_layer` gives. `title`: of which model; `notes`: sentences on what was read and left out."""

    config: MoEConfig
    params: MoEParams
    title: str
    notes: tuple


class _Source(NamedTuple):
    """What every step of the reading needs."""

    shards: object
    root: str  # of the layer's tensor names
    where: str  # for messages
    block: tuple | None  # of 8-bit codes that share a scale


def read_layer(directory, layer):
    """(config, params, title, notes) of one mixture-of-experts layer of a Hugging Face checkpoint.

    Expert weights come as `Packed`, of which an expert is read from the memory map when it is asked for; all else as
    float32 carriers. Only the files that hold the layer are opened. Layers are numbered from 0, as in the tensors'
    names; an encoder-decoder's decoder counts on after its encoder. Raises ValueError, which lists what was looked for.
    """
    require_path("directory", directory)
    directory = Path(directory)
    if type(layer) is not int or layer < 0:
        raise ValueError(f"layer: expected a whole number from 0 on, got {layer!r}; see the tensors' names")
    if not directory.is_dir():
        raise ValueError(f"{directory}: looked for a folder with config.json and safetensors files, found no folder")
    model_type, family, settings, quantization = find_family(directory)
    config = layer_config(family, settings, directory / "config.json", layer)
    shards, title = open_shards(directory), f"layer {layer} of a {model_type} checkpoint"
    where = f"{directory}: {title}"
    root = _find_root(shards, family, settings, layer, where)
    source = _Source(shards, root, where, _block(quantization, where))
    params = assemble_params(_parameters(source, family, config))
    return Layer(config, params, title, _notes(model_type, source, params, _unread(settings, family)))


def _parameters(source, family, config):
    """name -> array or `Packed` of every parameter the configuration has."""
    shapes = {name: shape for name, (shape, _) in parameter_shapes(config).items()}
    arrays = {}
    for name in [name for name in family.tensors if name in shapes]:
        arrays[name] = _small(source, family, config, name, shapes.pop(name))
    for prefix, variants in (("shared.", family.shared), ("", family.experts)):
        own = {name: shapes.pop(name) for name in list(shapes) if name.startswith(prefix)}
        own = {name.removeprefix(prefix): shape for name, shape in own.items()}
        if own:
            arrays |= {prefix + name: array for name, array in _experts(source, variants, own).items()}
    return arrays


def _small(source, family, config, name, shape):
    """A parameter that is no expert weight, read whole."""
    tensor, read = _first(source, family.tensors[name]), identifiers if name in INTEGER_PARAMS else carrier
    if family.shared_rows and name in ("w_router", "w_shared_router"):
        E, n = config.num_choices, config.experts.shared_count
        both = carrier(tensor, (E + n, config.hidden_size))
        return both[:E] if name == "w_router" else both[E:]
    return read(tensor, (1, *shape) if name in family.one_before else shape).reshape(shape)


# --- finding ----------------------------------------------------------------------------------------------------------


def _find_root(shards, family, settings, layer, where):
    """The beginning of the names of the layer's tensors. ValueError if none of the declared ones has a router."""
    roots = family.roots
    if family.decoder_root:
        encoder = settings.get("num_layers")
        if type(encoder) is not int:
            raise ValueError(
                f"{where}: expected an integer num_layers, of the encoder, got {encoder!r}; see config.json"
            )
        if layer >= encoder:
            roots, layer = (family.decoder_root,), layer - encoder
    names = [(root, name) for root in roots for name in family.tensors["w_router"]]
    for root, name in names:
        if root.format(layer=layer) + name in shards:
            return root.format(layer=layer)
    looked = " or ".join(root.format(layer=layer) + name for root, name in names)
    raise ValueError(f"{where}: looked for its router {looked}, found none; {_layers(shards, names)}")


def _layers(shards, names):
    patterns = [re.escape(root + name).replace(r"\{layer\}", r"(\d+)") for root, name in names]
    found = {int(match[1]) for name in shards.files for pattern in patterns if (match := re.fullmatch(pattern, name))}
    listed = ", ".join(map(str, sorted(found)))
    return f"layers with one: {listed}" if found else "no layer has one"


def _first(source, names):
    for name in names:
        if source.root + name in source.shards:
            return source.shards.tensor(source.root + name)
    looked = " or ".join(source.root + name for name in names)
    raise ValueError(f"{source.where}: looked for {looked}, found none")


def _experts(source, variants, shapes):
    """name -> parameter, out of the first variant whose every tensor is there."""
    experts, looked, found = next(iter(shapes.values()))[0], [], []
    for places in variants:
        names = [source.root + name for leaf in shapes for name in tensor_names(places[leaf], experts)]
        missing = [name for name in dict.fromkeys(names) if name not in source.shards]
        if not missing:
            return {name: _parameter(source, places[name], shape) for name, shape in shapes.items()}
        looked.append(", ".join(dict.fromkeys(source.root + places[leaf].name for leaf in shapes)))
        found.append((len(set(names)) - len(missing), missing))
    _, missing = max(found, key=lambda row: row[0])  # of the variant that is there in the greatest part
    looked = " or else ".join(looked).replace("{e}", f"{{0..{experts - 1}}}")
    raise ValueError(f"{source.where}: looked for {looked}; {len(missing)} are missing, the first is {missing[0]}")


def _parameter(source, place, shape):
    tensors = [source.shards.tensor(source.root + name) for name in tensor_names(place, shape[0])]
    if len(shape) == 2:
        return expert_bias(tensors[0], place, shape)
    return expert_weights(tensors, lambda tensor: _scales(source, place, tensor), place, shape, source.block)


def _scales(source, place, tensor):
    blocks = place.stack == "blocks"
    name = tensor.name.removesuffix("_blocks") + "_scales" if blocks else tensor.name + place.scales
    if name not in source.shards:
        raise ValueError(f"{source.where}: looked for {name}, the scales of {tensor.dtype} codes, found none")
    return source.shards.tensor(name)


# --- what is said about it --------------------------------------------------------------------------------------------


def _block(quantization, where):
    """(rows, columns) of 8-bit codes that share a scale, as config.json declares them; None if it does not."""
    block = quantization.get("weight_block_size")
    if block is None:
        return None
    if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        raise ValueError(f"{where}: expected weight_block_size [rows, columns], got {block!r}; correct config.json")
    return tuple(block)


def _unread(settings, family):
    """The fields of config.json that the family's configuration does not come from."""
    read = [field if isinstance(field, str) else field[0] for field in family.fields.values()]
    return {name: value for name, value in settings.items() if name not in "|".join(read).split("|")}


def _notes(model_type, source, params, settings):
    opened, files = len(source.shards.opened), len(set(source.shards.files.values()))
    stored = {}
    for name, array in name_params(params).items():
        if callable(array):
            how = array.format + (f" in blocks of {array.block[0]} x {array.block[1]}" if array.block else "")
            stored.setdefault(how, []).append(name)
    notes = [f"{model_type} tensors {source.root}*, {opened} of {files} files opened"]
    notes += [f"{', '.join(names)}: stored in {how}" for how, names in stored.items()]
    notes.append("losses are left at zero: config.json does not say how they are counted")
    noise = [name for name in ("router_jitter_noise", "moe_jitter_eps", "input_jitter_noise") if settings.get(name)]
    return tuple(notes + [f"{name} acts in training only and is left out" for name in noise])
