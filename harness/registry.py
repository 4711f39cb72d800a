"""The registry: every method by id, be it the engine's own, a file of `baselines/` or an installed package's."""

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from harness.errors import UserError
from harness.method import Method

BUILTIN_MODULES = ("harness.teacher", "harness.moment_matching")
ENTRY_POINT_GROUP = "fewstep.methods"


@cache
def registry() -> dict[str, type[Method]]:
    """Every method by id: the engine's own, those of the files in `baselines/`, and those of installed entry points.

    Raises UserError for an entry point that gives no method, and for two methods of one id.
    """
    import baselines

    modules = [*BUILTIN_MODULES, *(f"baselines.{module.name}" for module in pkgutil.iter_modules(baselines.__path__))]
    found = [
        item
        for name in modules
        for item in vars(importlib.import_module(name)).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == name and hasattr(item, "id")
    ]
    found += [_installed(entry) for entry in entry_points(group=ENTRY_POINT_GROUP)]
    methods: dict[str, type[Method]] = {}
    for method in found:
        if (other := methods.setdefault(method.id, method)) is not method:
            places = " and ".join(f"{item.__module__}.{item.__qualname__}" for item in (other, method))
            raise UserError(f"method {method.id!r} is registered twice; rename one of the two: {places}")
    return methods


def _installed(entry: EntryPoint) -> type[Method]:
    """What an entry point names, which is to be a method."""
    where = f"the entry point {entry.name} = {entry.value} in {ENTRY_POINT_GROUP}"
    try:
        method = entry.load()
    except Exception as error:  # whatever the package raises when it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where} cannot be imported ({why}); mend or uninstall its package") from error
    if not (isinstance(method, type) and issubclass(method, Method) and hasattr(method, "id")):
        raise UserError(f"{where} is not a subclass of Method with an id; mend or uninstall its package")
    return method


def get_method(method_id: str) -> type[Method]:
    """The method class of this id; an unknown id raises a UserError that lists the known ones."""
    methods = registry()
    if method_id not in methods:
        near = get_close_matches(method_id, methods, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown method {method_id!r}; {hint}known methods: {', '.join(sorted(methods))}")
    return methods[method_id]
