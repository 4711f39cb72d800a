"""The command line's verbs, one module each with a `run` function: the nodes of the workflow."""
