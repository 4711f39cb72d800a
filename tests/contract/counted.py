"""The network calls of an update, counted as `Turn` counts them: each by what is differentiated in it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from harness.backends.base import Weights
from harness.backends.torch import TorchOps
from harness.method import Batch, Method, bind
from harness.networks.torch import Transformer
from harness.networks.transformer import TransformerSpec

Kinds = Counter[str]
"""Calls of whole batches by the name of a `Turn`'s field: one of k inputs for each sample counts k."""


class CountedNetwork:
    """The network as a denoiser's `apply`; a call's kind is known once the gradients are taken."""

    def __init__(self, spec: TransformerSpec, batch: int) -> None:
        self.module, self.batch, self.calls = Transformer(spec), batch, list[dict[str, Any]]()

    def __call__(self, params: Mapping[str, Tensor], z: Tensor, t: Tensor, condition: Any) -> Any:
        call: dict[str, Any] = {"batches": len(z) / self.batch, "kind": "forward"}
        self.calls.append(call)
        v, features = torch.func.functional_call(self.module, dict(params), (z, t, condition))
        if any(forward_ad.unpack_dual(value).tangent is not None for value in params.values()):
            call["kind"] = "jvp"
            return v, features
        kind = "gradient" if any(value.requires_grad for value in params.values()) else "input_gradient"
        for output in (v, *features):
            if output.requires_grad:  # what is called and then held constant costs no backward pass
                output.register_hook(lambda grad: call.update(kind=kind))
        return v, features

    def kinds(self) -> Kinds:
        """All calls so far."""
        found: Kinds = Counter()
        for call in self.calls:
            assert call["batches"] == int(call["batches"]), "a call is of whole batches"
            found[call["kind"]] += int(call["batches"])
        return found


def network_calls(
    method: Method, turn: str, weights: Mapping[str, Weights], batch: Batch, draws: Batch, count: int
) -> Kinds:
    """The calls of one update of `count` samples, reduced arrays and gradients included."""
    network, ops = CountedNetwork(method.spec, count), TorchOps()
    params, inputs, drawn = (tree_map(torch.from_numpy, dict(arrays)) for arrays in (weights, batch, draws))
    leaves = [value.requires_grad_() for name in method.turns[turn].trains for value in params[name].values()]
    nets = bind(method, method.networks(), network, params)
    with torch.no_grad():
        reduced = method.reduce(turn, nets, inputs, drawn, ops)
    loss, _ = method.loss(turn, nets, inputs, drawn, reduced, ops)
    torch.autograd.grad(loss, leaves, allow_unused=True)
    return network.kinds()
