"""Values of a config against the signatures of what is built from it."""

import math
from collections.abc import Iterable, Sequence
from inspect import isclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from clusterlab.errors import problem, quote

ONE = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
MANY = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of words"}
UNIONS, LISTS = (Union, UnionType), (Sequence, list, tuple)


def check_types(node: DictConfig) -> None:
    """Refuse a value that is not of the type which the class it goes to says in its signature.

    Args:
        node: A config, with ``_target_`` or with nodes below that have one.

    Raises:
        UserError: Naming the first.
    """
    types = signature(node) if "_target_" in node else {}
    for name in map(str, node):
        value = node[name]
        for part in value if isinstance(value, ListConfig) else [value]:
            if isinstance(part, DictConfig):
                check_types(part)
        if name in types and not fits(value, types[name]):
            given = node._get_node(name)._dereference_node()  # type: ignore[union-attr]
            key = given._get_full_key(None)  # of what the value was taken from
            expected = list(dict.fromkeys(in_words(types[name])))
            remedy = f"set {key}"
            if ONE[str] in expected and isinstance(value, int | float):  # a folder named 2024
                remedy = quote(key, value)
            raise problem(f"{' or '.join(expected)} as {key}", f"{value!r}", remedy)


def signature(node: DictConfig) -> dict[str, Any]:
    """Return the types of what a config node's class or function takes, as far as it says."""
    try:
        target = get_object(node._target_)
        return get_type_hints(target.__init__ if isclass(target) else target)
    except (ImportError, NameError, TypeError):  # what is not there is told where it is built
        return {}


def fits(value: Any, kind: Any) -> bool:
    """Tell whether a config's value is of a type; of one that is not plain, it is.

    Example:
        >>> fits(1, float), fits("1", float), fits(1.5, int), fits(None, int | None)
        (True, False, False, True)
    """
    if get_origin(kind) in UNIONS:
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) in LISTS:
        ones = [one for one in get_args(kind) if one is not Ellipsis]
        return isinstance(value, ListConfig) and all(any(fits(v, k) for k in ones) for v in value)
    if kind not in (*ONE, NoneType) or isinstance(value, DictConfig):
        return True
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and not math.isnan(value)
    return isinstance(value, kind)


def in_words(kind: Any) -> Iterable[str]:
    """Name the types of which a value may be."""
    if get_origin(kind) in UNIONS:
        for one in get_args(kind):
            yield from in_words(one)
    elif get_origin(kind) in LISTS:
        yield MANY.get(get_args(kind)[0], "a list")
    else:
        yield ONE.get(kind, "null")
