"""A bundle in the forms that others read: plain bytes with an index, FlashInfer-Bench's definitions and workloads."""

from .command import EXPORTS, export_bundle

__all__ = ["EXPORTS", "export_bundle"]
