"""Values of a config against what a class says that it takes."""

from collections.abc import Sequence
from typing import Any

import pytest
from omegaconf import OmegaConf

from clusterlab.checks import build
from clusterlab.errors import UserError


class Silent:
    def __init__(self, width):
        self.width = width


class Typed(Silent):
    def __init__(
        self,
        width: int,
        scale: float = 1.0,
        unbiased: bool = True,
        kind: str = "a",
        limit: int | None = None,
        filters: Sequence[int] = (),
        part: Silent | None = None,
        span: tuple[int, str] = (1, "epoch"),
    ) -> None:
        super().__init__(width)
        self.part = part


class Unsaid(Silent):
    def __init__(self, width: int, other: "NotThere | None" = None) -> None:  # noqa: F821
        super().__init__(width)


def config(name: str, **values: Any) -> Any:
    return OmegaConf.create({"a": {"_target_": f"{__name__}.{name}", "width": 2, **values}})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("width", "2", "a whole number"),
        ("width", 2.0, "a whole number"),
        ("width", True, "a whole number"),
        ("width", None, "a whole number"),
        ("scale", "abc", "a number"),
        ("scale", float("nan"), "a number"),
        ("scale", False, "a number"),
        ("unbiased", "abc", "true or false"),
        ("unbiased", 1, "true or false"),
        ("limit", 1.5, "a whole number or null"),
        ("filters", 32, "a list of whole numbers"),
        ("filters", [32, "x"], "a list of whole numbers"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_place(name: str, value: Any, expected: str):
    with pytest.raises(UserError) as told:
        build(config("Typed", **{name: value}).a)
    assert str(told.value) == f"Expected {expected} as a.{name}, got {value!r}; set a.{name}."


def test_a_number_for_a_word_is_to_be_quoted():
    with pytest.raises(UserError) as told:
        build(config("Typed", kind=2024).a)
    quoted = """quote it, as in "a.kind='2024'"."""
    assert str(told.value) == f"Expected a word as a.kind, got 2024; {quoted}"


@pytest.mark.parametrize(
    "values",
    [
        {"scale": 1, "unbiased": False, "kind": "b", "limit": 3},
        {"scale": float("inf"), "limit": None, "filters": [32, 64]},
        {"span": [3, "step"]},
        {"part": {"_target_": f"{__name__}.Silent", "width": "of any type"}},
    ],
)
def test_values_of_their_types_are_taken(values: dict[str, Any]):
    assert build(config("Typed", **values).a).width == 2


def test_what_was_taken_from_elsewhere_is_told_with_that_place():
    node = config("Typed", scale="${loss.gamma}")
    node.loss = {"gamma": "abc"}
    with pytest.raises(UserError, match=r"a number as loss\.gamma, got 'abc'; set loss\.gamma"):
        build(node.a)


def test_parts_are_looked_at_wherever_they_are():
    part = {"_target_": f"{__name__}.Typed", "width": "abc"}
    for node in ({"a": {"part": part}}, {"a": {"b": [part]}}):
        with pytest.raises(UserError, match=r"a whole number as a\..+, got 'abc'"):
            build(OmegaConf.create(node).a)


def test_classes_of_others_too():
    node = {"_target_": "torch.optim.Adam", "_partial_": True, "fused": "abc", "lr": 0.1}
    with pytest.raises(UserError, match="true or false or null as fused, got 'abc'"):
        build(OmegaConf.create(node))


def test_a_class_that_does_not_say_is_given_anything():
    assert build(config("Silent", width="abc").a).width == "abc"
    assert build(config("Unsaid", width="abc").a).width == "abc"
