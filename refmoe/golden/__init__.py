"""Golden bundles: one layer's computation as files that anyone can check, and that check themselves.   Spec 7"""

from .bundle import Written, write_bundle
from .errors import BundleError
from .verify import Checked, check_bundle

__all__ = ["BundleError", "Checked", "Written", "check_bundle", "write_bundle"]
