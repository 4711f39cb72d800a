"""What `fewstep teacher` and `fewstep distill` share: one training run at its address."""

import numpy as np

from harness.backends import get_backend
from harness.backends.base import Weights
from harness.checkpoint import differences, load_checkpoint, require_config
from harness.config import digest
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.method import Average, CopyOf, Head, Method, Preconditioner, Start
from harness.networks.transformer import TransformerSpec, initial_head, initial_weights
from harness.noise import Noise
from harness.provenance import run_record, source_hash
from harness.training import SECOND_MOMENTS, BatchStream, Run
from harness.workspace import RunAddress, Workspace


def source_modules(backend: str, method_class: type[Method]) -> tuple[str, ...]:
    """The modules whose import closure decides what a training run computes."""
    return "harness.verbs.train", f"harness.backends.{backend}", method_class.__module__


def train(workspace: Workspace, address: RunAddress) -> None:
    """Train the run at `address`, or go on with it, or do nothing where it is already complete.

    Raises UserError where data or teacher are missing, or another configuration's result lies in the folder.
    """
    data = ImageSet.load(workspace.data("train"))
    shape = (data.images.shape[1], data.images.shape[2], data.images.shape[3])
    spec = workspace.spec(shape, data.num_classes)
    method = workspace.make_method(address, spec)
    schedule, adam = workspace.training(address)
    backend = get_backend(address.backend)
    weights, parent = starting_weights(workspace, address, method, spec)
    config = workspace.run_config(address)
    manifest = {"config": config, "data": data.digest, "method": method.id, "network": vars(spec), **parent}
    folder = workspace.run(address)
    result = folder / f"{method.result}.safetensors"
    if result.exists():
        _, existing = load_checkpoint(result)
        differing = differences({k: existing.get(k) for k in manifest}, manifest)
        names = ["train.json", "train.jsonl"] + ([SECOND_MOMENTS] if method.second_moments_of else [])
        differing += [f"{name} is missing" for name in names if not (folder / name).exists()]
        if not differing:
            print(f"{result}: already trained")
            return
        why = "; ".join(differing[:3])
        raise UserError(f"{result}: another run's result ({why}); delete its folder, or choose another --results")
    folder.mkdir(parents=True, exist_ok=True)
    learner = backend.learner(method, spec, weights, adam)
    streams = {"data": BatchStream("data", {"images": data.images, "labels": data.labels}, Noise(address.seed))}
    run = Run(folder, backend, learner, schedule, address.seed, streams)
    key = digest({**manifest, "source": source_hash(*source_modules(address.backend, type(method)))})
    summary = {"params": spec.n_parameters, "config": digest(config), "provenance": run_record()}
    run.train(manifest, key, summary, f"{address.backend} {method.id} {address.student}")


def starting_weights(
    workspace: Workspace, address: RunAddress, method: Method, spec: TransformerSpec
) -> tuple[dict[str, Weights], dict[str, str]]:
    """Each network's weights at the start of training, and the digest of every file that they come from, by source."""
    origins: dict[str, str] = {}

    def read(source: str) -> Weights:
        run = workspace.parent(address) if source == "parent" else workspace.teacher(address)
        path = workspace.checkpoint(run)
        if source == "second_moments":
            path = path.with_name(SECOND_MOMENTS)
        arrays, manifest = load_checkpoint(path)
        require_config(path, manifest, workspace.run_config(run))
        origins[source] = manifest["digest"]
        if source == "second_moments":
            eps = np.float32(manifest["eps"])
            return {name: 1 / (np.sqrt(v) + eps) for name, v in arrays.items()}
        return arrays

    def start(name: str, kind: Start) -> Weights:
        if isinstance(kind, Average):
            return start(kind.of, starts[kind.of])
        if isinstance(kind, CopyOf):
            return read(kind.source)
        if isinstance(kind, Preconditioner):
            return read("second_moments")
        if isinstance(kind, Head):
            return initial_head(name, kind.shapes, address.seed)
        return initial_weights(spec, address.seed)

    starts = method.networks()
    return {name: start(name, kind) for name, kind in starts.items()}, origins
