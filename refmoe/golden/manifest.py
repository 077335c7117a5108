"""manifest.json: what a bundle holds and what every number in it means, in one canonical text.   Spec 7.4"""

import hashlib
import json
import os
from pathlib import Path

from ..safetensors import MAX_HEADER, parse_json
from .errors import BundleError

SCHEMA = {"name": "refmoe-golden-bundle", "version": 1}
FIELDS = {"schema", "spec_version", "title", "config", "run", "inputs", "tensors", "limits", "digest"}
TENSOR_FIELDS = {"name", "role", "stage", "dtype", "shape", "sha256", "digest_of", "storage"}


def canonical(value):
    """The one text of a JSON value: sorted keys, one space of indent, ASCII, a final newline; no floats.

    Raises TypeError for a float: where bits matter a number is an integer or a C99 hexadecimal string.
    """
    _refuse_floats(value)
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _refuse_floats(value):
    if isinstance(value, float):
        raise TypeError(f"expected integers and strings, got the float {value!r}; write it with float.hex()")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _refuse_floats(inner)


def hex_float(value):
    """A C99 hexadecimal float without trailing zeros ("0x1.8p+1", "-0x0p+0"), or inf, -inf, nan."""
    text = float(value).hex()
    digits, mark, exponent = text.partition("p")
    return digits.rstrip("0").rstrip(".") + mark + exponent if "." in digits else text


def hexed(value):
    """The same nested value with every float as `hex_float`."""
    if isinstance(value, dict):
        return {key: hexed(inner) for key, inner in value.items()}
    return hex_float(value) if isinstance(value, float) else value


def own_digest(manifest):
    """SHA-256 of the canonical text of the manifest without its field "digest"."""
    return hashlib.sha256(canonical({k: v for k, v in manifest.items() if k != "digest"})).hexdigest()


def sealed(manifest):
    """The manifest with its own digest in it."""
    return {**manifest, "digest": own_digest(manifest)}


def read_manifest(path, spec_version):
    """The manifest in a file, trusted only after schema, canonical form, own digest and version have been checked.

    Raises BundleError: code 2 for a file that cannot be read and for another SPEC_VERSION, 1 for wrong content.
    """
    path = Path(path)
    text = _read_capped(path)
    manifest = parse_json(path, text)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise BundleError(path, "", f"its schema is not {SCHEMA['name']} version {SCHEMA['version']}")
    if canonical_or_none(manifest) != text:
        raise BundleError(path, "", "altered or not canonical: its bytes are not those of its canonical form")
    if manifest.get("digest") != own_digest(manifest):
        raise BundleError(path, "", "altered: its own digest does not match its content")
    if manifest.get("spec_version") != spec_version:
        raise BundleError(path, "", f"written for SPEC_VERSION {manifest.get('spec_version')!r}; this library has "
                          f"{spec_version!r}, so the bits need not agree", code=2)  # fmt: skip
    _check_shape(path, manifest)
    return manifest


def canonical_or_none(value):
    """canonical(value), or None for what has no canonical form."""
    try:
        return canonical(value)
    except (TypeError, RecursionError):
        return None


def _read_capped(path):
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_HEADER:
                raise BundleError(path, "", f"{size} bytes, more than the {MAX_HEADER} that are read")
            return file.read(MAX_HEADER + 1)
    except OSError as error:
        raise BundleError(path, "", f"cannot be read ({error.strerror})", code=2) from None


def _check_shape(path, manifest):
    if set(manifest) != FIELDS:
        odd = sorted(set(manifest) ^ FIELDS)
        raise BundleError(path, "", f"its fields are not those of the schema: {', '.join(odd)[:200]}")
    rows = manifest["tensors"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == TENSOR_FIELDS for row in rows):
        raise BundleError(path, "", "its list of tensors is not that of the schema")
    for section in ("config", "run", "inputs", "limits"):
        if not isinstance(manifest[section], dict):
            raise BundleError(path, "", f"its section {section!r} is not an object")


def write_text(path, text):
    """Writes bytes and forces them to the disk."""
    with open(path, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
