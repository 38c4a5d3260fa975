"""The parameter sets have the shapes of the real models."""

from __future__ import annotations

import math

import pytest

from fusedopt.bench import suites
from fusedopt.bench.suites import SUITES


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("resnet50", 161, 25_557_032),
        ("vit-b16", 152, 86_567_656),
        ("vit-l16", 296, 304_326_632),
        ("gpt2", 148, 124_439_808),
        ("bert-large", 391, 335_141_888),
        ("llama7b", 291, 6_738_415_616),
        ("llama7b-shard8", 291, 842_301_952),
        ("1x64", 1, 64),
        ("1x1Mi", 1, 1_048_576),
        ("1x32Mi", 1, 33_554_432),
        ("1x64Mi", 1, 67_108_864),
        ("8x256", 8, 2_048),
        ("1000x64", 1000, 64_000),
        ("1000x256", 1000, 256_000),
        ("1000x1024", 1000, 1_024_000),
        ("10000x64", 10_000, 640_000),
        ("misaligned", 256, 4_194_815),
        ("465groups", 465, 119_040),
        ("480groups", 480, 122_880),
        ("2matrices", 2, 2_949_120),
        ("48matrices", 48, 70_778_880),
        ("embedding", 1, 64_000_000),
    ],
)
def test_totals(name: str, tensors: int, elements: int) -> None:
    shapes = SUITES[name].shapes
    assert (len(shapes), sum(math.prod(shape) for shape in shapes)) == (tensors, elements)


def test_wrong_totals_raise() -> None:
    with pytest.raises(ValueError, match=r"suite wrong: \(1, 6\) tensors and elements, not \(1, 7\)"):
        suites.Suite("wrong", ((2, 3),), tensors=1, elements=7)


def test_shards_make_up_the_whole_model() -> None:
    whole, shard = SUITES["llama7b"].shapes, SUITES["llama7b-shard8"].shapes
    assert [(8 * first, *rest) for first, *rest in shard] == list(whole)


@pytest.mark.parametrize("name", ["misaligned", "64x1Mi-misaligned"])
def test_misaligned_tensors_leave_every_rest_and_begin_one_element_late(name: str) -> None:
    assert {size % 4 for size in SUITES[name].sizes} == {1, 2, 3}
    assert SUITES[name].offset == 1


def test_each_of_the_groups_has_one_tensor() -> None:
    assert SUITES["465groups"].group_each


def test_a_cut_suite_keeps_its_kind() -> None:
    cut = SUITES["465groups"].cut(tensors=3, side=10)
    assert (cut.shapes, cut.group_each, cut.elements) == (((10,),) * 3, True, 30)
