"""The one error of a bundle: which file, which tensor, what is wrong."""

from ..safetensors import FileError as BundleError

__all__ = ["BundleError"]
