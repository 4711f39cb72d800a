"""The options that several verbs of the command line share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BackendName(StrEnum):
    """The frameworks."""

    torch = "torch"
    jax = "jax"


Profile = Annotated[str, typer.Option(help="a profile of workflows/config, or a path that ends in .yaml")]
Results = Annotated[Path | None, typer.Option(help="an existing folder for results [default: results/runs]")]
BackendOption = Annotated[BackendName, typer.Option(help="the framework")]
Seed = Annotated[int, typer.Option(min=0, help="the training seed")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; the default gives the same weights on any machine")]
MethodOption = Annotated[str, typer.Option(help="the method's id, for example moment-matching/alternating")]
Variant = Annotated[str, typer.Option(help="`default`, or the name of an ablation")]
Guidance = Annotated[float, typer.Option(min=0, help="weight with which the student's teacher is guided")]
Student = Annotated[str, typer.Option(help="the student: k8, k4, ...; `teacher` for the teacher itself")]
