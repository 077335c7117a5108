"""What the command line of every wing is made of: a parser that refuses in one line, and the numbers it reads."""

import argparse
from math import inf

DIGITS = 18  # of a number without another bound


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line on standard error and status 2; the usage is for --help."""

    def error(self, message):
        """Ends the program: what was wrong, and where the possibilities are listed."""
        said = " ".join(message.split())
        self.exit(2, f"refmoe: error: {said}; `{self.prog} --help` shows what is possible\n")

    def parse_known_args(self, args=None, namespace=None):
        """Refuses what is unknown here, so that the command whose option it would be is named."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"expected the arguments of `{self.prog}`, got {' '.join(map(repr, unknown))}")
        return namespace, unknown


def whole(least, most=None):
    """text -> a whole number of these bounds, both within. Raises argparse.ArgumentTypeError."""
    upto = "on" if most is None else f"to {most}"

    def read(text):
        ok = text.isascii() and text.isdigit()
        if ok and len(text) <= DIGITS and least <= int(text) <= (inf if most is None else most):
            return int(text)
        wanted = f"at most {DIGITS} digits" if ok and len(text) > DIGITS else f"a whole number from {least} {upto}"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {shown(text)}")

    return read


count, positive = whole(0), whole(1)


def above_zero(text):
    """A finite number above 0. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, as 0.001, got {shown(text)}")
    return value


def shown(text, most=60):
    """What was typed, in quotes; its beginning where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."
