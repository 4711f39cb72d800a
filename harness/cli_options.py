"""What several verbs of the command line share: options, and the refusal of those that would have no effect."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError


class BackendName(StrEnum):
    """The frameworks."""

    torch = "torch"
    jax = "jax"


Profile = Annotated[str, typer.Option(help="a profile of workflows/config, or a path that ends in .yaml")]
Results = Annotated[Path | None, typer.Option(help="an existing folder for results [default: results/runs]")]
ReferenceFolder = Annotated[
    Path | None, typer.Option(help="the folder of the reference [default: results/reference/PROFILE]")
]
BackendOption = Annotated[BackendName, typer.Option(help="the framework")]
Seed = Annotated[int, typer.Option(min=0, help="the training seed")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; the default gives the same weights on any machine")]
MethodOption = Annotated[str, typer.Option(help="the method's id, for example moment-matching/alternating")]
Variant = Annotated[str, typer.Option(help="`default`, or the name of an ablation")]
Guidance = Annotated[float, typer.Option(min=0, help="weight with which the student's teacher is guided")]
Student = Annotated[str, typer.Option(help="the student: k8, k4, ...; `teacher` for the teacher itself")]


def refuse(context: typer.Context, names: tuple[str, ...], mode: str) -> None:
    """Raise UserError for the first of these options that stands on the command line: `mode` would not heed it."""
    for parameter in context.command.params:
        if parameter.name in names and on_command_line(context, parameter.name):
            raise UserError(f"{context.command.name}: {parameter.opts[0]} has no effect {mode}; leave it out")


def on_command_line(context: typer.Context, name: str) -> bool:
    """Whether the option was given by the user."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
