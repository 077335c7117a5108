"""The pytest plugin: a test that asks for `refmoe_case` runs once a case.   Spec 7.13

    pytest -p refmoe.testing.plugin

    @pytest.mark.refmoe(chapter="experts", call="expert_ffn")      # either, both or neither
    def test_my_kernel(refmoe_case):
        assert_conforms(refmoe_case, my_kernel(**refmoe_case.inputs))
"""

from . import cases


def pytest_configure(config):
    config.addinivalue_line("markers", "refmoe(chapter=None, call=None, invalid=False): the cases of `refmoe_case`")


def pytest_generate_tests(metafunc):
    if "refmoe_case" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("refmoe")
        metafunc.parametrize("refmoe_case", cases(**(mark.kwargs if mark else {})), ids=str)
