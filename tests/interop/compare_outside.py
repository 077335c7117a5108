"""Nothing is left out in silence: every model with experts is a row of the comparison, or is listed with why."""

import re
from pathlib import Path

import pytest
import transformers
from outside import ELSEWHERE, WRONG, reproduce
from registry import BLOCKS, classes, models

EXPERTS = re.compile(r"^class \w*(Experts|NaiveMoe|CDMoE|MoA|DbrxExpertGLU)\(", re.M)
HOME = Path(transformers.__file__).parent / "models"


def test_every_model_with_experts_is_compared_or_listed():
    sources = HOME.glob("*/modeling_*.py")
    shipped = {path.parent.name for path in sources if EXPERTS.search(path.read_text(encoding="utf-8"))}
    listed = set(models()) | set(WRONG) | {name for name in ELSEWHERE if "." not in name}
    assert shipped == listed


def test_no_model_is_both_compared_and_listed():
    assert not set(models()) & set(WRONG)


def test_the_readme_says_how_many_rows_there_are():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"with {len(BLOCKS)} rows of transformers' blocks" in text


def test_at_least_forty_blocks_are_compared():
    assert len(classes()) >= 40


@pytest.mark.parametrize("name", WRONG)
def test_what_is_listed_as_wrong_is_wrong(name):
    """When this fails, transformers has mended the block: give it a row."""
    assert reproduce(name)
