"""Strict validation: YAML without surprises, models without leniency, and one clear line for every mistake."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    for position, item in enumerate(items):
        if item in items[:position]:
            raise ValueError(f"holds {item!r} twice")
    return items


Count = Annotated[int, Field(ge=1)]
Distinct = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]


class StrictModel(BaseModel):
    """Base of every section: unknown keys are errors, text is no number, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, and all of them."""
    names = list(dict.fromkeys(known))
    near = get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(names)}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently keeps the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text; syntax errors and repeated keys raise a UserError, `where:line: ...`."""
    try:
        loader = _UniqueKeyLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def validate(model: type[Model], data: Any, where: str, prefix: tuple[str, ...] = ()) -> Model:
    """`data` as a model; what is wrong is raised as a UserError, which opens with `where` (a file, or what asks).

    `prefix` holds the keys under which `data` stands in that file. The model's config decides how strict this is.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # a mistyped key is also a missing one: name the cause first
        first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
        raise UserError(f"{where}: {_explain(model, first, prefix)}") from None


_SHOULD = {
    "int_type": "be a whole number",
    "float_type": "be a number",
    "string_type": "be text",
    "bool_type": "be true or false",
    "dict_type": "be a mapping",
    "model_type": "be a mapping",
    "model_attributes_type": "be a mapping",
    "list_type": "be a list",
    "invalid_key": "be text",
}


def _explain(model: type[BaseModel], error: Mapping[str, Any], prefix: tuple[str, ...]) -> str:
    path, models = _locate(model, error["loc"])
    key = ".".join((*prefix, *path)) or "the whole"
    value, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}; {suggest(path[-1], [name for item in models for name in item.model_fields])}"
        case "missing":
            return f"the key {key} is missing"
        case "union_tag_not_found":
            return f"the key {key}.{_quoted(context['discriminator'])[0]} is missing"
        case "union_tag_invalid":
            return f"{key} is called {context['tag']!r}; {suggest(context['tag'], _quoted(context['expected_tags']))}"
        case "literal_error":
            return f"{key} is {value!r}; {suggest(str(value), _quoted(context['expected']))}"
        case "too_short":
            return f"{key} is empty"
        case "value_error":
            return f"{key}: {context['error']}" if path else str(context["error"])
        case "int_type" | "float_type" as kind if number := _meant_number(value, whole=kind == "int_type"):
            return f"{key} is the text {value!r}; write {number}"
        case kind:
            should = _SHOULD.get(kind) or error["msg"].partition(" should ")[2] or f"pass this check: {error['msg']}"
            return f"{key} is {reprlib.repr(value)}, but should {should}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _locate(model: type[BaseModel], location: Iterable[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The dotted path of an error, and the models that hold its last key."""
    path: list[str] = []
    models = [model]
    for part in location:
        tagged = [item for item in models if "name" in item.model_fields and item.model_fields["name"].default == part]
        if tagged and len(models) > 1:
            models = tagged
        elif part != "[key]":
            path.append(str(part))
            fields = [item.model_fields[part] for item in models if part in item.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)] if fields else models
    return path, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]


def _meant_number(text: Any, whole: bool) -> str | None:
    """How YAML wants a number written that it reads as text: 1e-4 as 1.0e-4, quoted ones without quotes."""
    if not isinstance(text, str) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE):
        return None
    mantissa, _, exponent = text.lower().partition("e")
    if not exponent:
        return f"{text} without quotes"
    if whole:
        return f"{float(text):.0f}"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}"
