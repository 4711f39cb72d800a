"""What `fewstep teacher` and `fewstep distill` share: one training run at its address."""

from dataclasses import replace
from functools import cache

import numpy as np
from tqdm import tqdm

from harness.addresses import RunAddress
from harness.backends import get_backend
from harness.backends.base import Weights
from harness.checkpoint import content_digest, differences, load_checkpoint, require_config
from harness.config import digest
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.method import Average, CopyOf, Head, Method, Preconditioner, Pretrained, Start
from harness.networks.transformer import TransformerSpec, initial_head, initial_weights
from harness.noise import Noise
from harness.prompts import Captions, Conditions, rows_of, text_width, training_conditions
from harness.provenance import run_record, source_hash
from harness.training import SECOND_MOMENTS, BatchStream, Run, snapshot
from harness.workspace import Workspace


def source_modules(backend: str, method_class: type[Method]) -> tuple[str, ...]:
    """The modules whose import closure decides what a training run computes."""
    return "harness.verbs.train", f"harness.backends.{backend}", method_class.__module__


def train(workspace: Workspace, address: RunAddress) -> None:
    """Train the run at `address`, or go on with it, or do nothing where it is already complete.

    Raises UserError where data or teacher are missing, or another configuration's result lies in the folder.
    """
    config = workspace.run_config(address)  # first: it knows of methods, students and options that do not exist
    data = ImageSet.load(workspace.data("train"))
    shape = (data.images.shape[1], data.images.shape[2], data.images.shape[3])
    conditions = training_conditions(workspace, data)
    spec = workspace.spec(shape, data.num_classes, text_width(conditions))
    method = workspace.make_method(address, spec)
    schedule, adam = workspace.training(address)
    backend = get_backend(address.backend)
    streams = {"data": data_stream(data, conditions, address.seed)}
    weights, origins = starting_weights(workspace, address, method, spec, streams["data"])
    if workspace.needs_pairs(address):
        streams["pairs"], origins["pairs"] = pairs_stream(workspace, address, conditions)
    if isinstance(conditions, Captions):
        origins |= {"text": conditions.table.digest, "text_encoder": conditions.table.identity["encoder_weights"]}
    manifest = {"config": config, "data": data.digest, "method": method.id, "network": vars(spec), **origins}
    folder = workspace.run(address)
    result = folder / f"{method.result}.safetensors"
    if result.exists():
        _, existing = load_checkpoint(result)
        differing = differences({k: existing.get(k) for k in manifest}, manifest)
        files = [folder / "train.json", folder / "train.jsonl"]
        files += [folder / SECOND_MOMENTS] if method.second_moments_of else []
        files += [snapshot(folder, update) for update in schedule.snapshots]
        differing += [f"{path.relative_to(folder)} is missing" for path in files if not path.exists()]
        if not differing:
            print(f"{result}: already trained")
            return
        why = "; ".join(differing[:3])
        raise UserError(f"{result}: another run's result ({why}); delete its folder, or choose another --results")
    folder.mkdir(parents=True, exist_ok=True)
    learner = backend.learner(method, spec, weights, adam)
    run = Run(folder, backend, learner, schedule, address.seed, streams)
    snapshots = {"snapshot_every": schedule.snapshot_every} if schedule.snapshot_every else {}
    key = digest({**manifest, **snapshots, "source": source_hash(*source_modules(address.backend, type(method)))})
    summary = {"params": spec.n_parameters, "config": digest(config), "origins": origins, "provenance": run_record()}
    run.train(manifest, key, summary, f"{address.backend} {address.name}")


def data_stream(data: ImageSet, conditions: Conditions, seed: int) -> BatchStream:
    """The training images and their conditions, in the order of this seed."""
    return BatchStream("data", {"images": data.images, "condition": conditions}, Noise(seed))


def pairs_stream(workspace: Workspace, address: RunAddress, conditions: Conditions) -> tuple[BatchStream, str]:
    """The pairs of a run's teacher, and the digest of their file. Raises UserError for those of other weights.

    `conditions` are those of the training images, which captioned pairs were made for.
    """
    teacher = workspace.teacher(address)
    path = workspace.pairs(teacher, address.guidance)
    if not path.is_file():
        raise UserError(f"{path}: not there; make the teacher's pairs first, with: fewstep pairs")
    pairs, manifest = load_checkpoint(path)
    require_config(path, manifest, workspace.pairs_config(teacher, address.guidance))
    if manifest["teacher"] != load_checkpoint(workspace.checkpoint(teacher))[1]["digest"]:
        raise UserError(f"{path}: the pairs are of other weights than the teacher's; make them again: fewstep pairs")
    given = rows_of(conditions, pairs["row"]) if "row" in pairs else pairs["labels"]
    arrays = {"noise": pairs["noise"], "images": pairs["images"], "condition": given}
    return BatchStream("pairs", arrays, Noise(address.seed)), manifest["digest"]


def starting_weights(
    workspace: Workspace, address: RunAddress, method: Method, spec: TransformerSpec, data: BatchStream
) -> tuple[dict[str, Weights], dict[str, str]]:
    """Each network's weights at the start of training, and the digest of every file that they come from, by source.

    `data`: training images, for what has to be estimated by further steps of the teacher's training.
    """
    origins: dict[str, str] = {}

    @cache
    def read(source: str) -> Weights:
        run = workspace.parent(address) if source == "parent" else workspace.teacher(address)
        path = workspace.checkpoint(run)
        arrays, manifest = load_checkpoint(path)
        require_config(path, manifest, workspace.run_config(run))
        if isinstance(data.arrays["condition"], Captions):
            data.arrays["condition"].require(manifest.get("text_encoder"), path)
        origins[source] = manifest["digest"]
        return arrays

    def preconditioner() -> Weights:
        run = workspace.teacher(address)
        path = workspace.run(run) / SECOND_MOMENTS
        if path.is_file():
            moments, manifest = load_checkpoint(path)
            require_config(path, manifest, workspace.run_config(run))
            origins["second_moments"], eps = manifest["digest"], manifest["eps"]
        else:
            print(f"{path}: not there; estimating the teacher's second moments by {FURTHER_UPDATES} further steps")
            moments, eps = estimated_second_moments(workspace, run, read("teacher"), spec, data)
            origins["second_moments"] = f"estimated by {FURTHER_UPDATES} further steps at the teacher's weights"
        return {name: 1 / (np.sqrt(v) + np.float32(eps)) for name, v in moments.items()}

    def start(name: str, kind: Start) -> Weights:
        if isinstance(kind, Average):
            return start(kind.of, starts[kind.of])
        if isinstance(kind, CopyOf):
            return read(kind.source)
        if isinstance(kind, Preconditioner):
            return preconditioner()
        if isinstance(kind, Head):
            return initial_head(name, kind.shapes, address.seed)
        if isinstance(kind, Pretrained):
            arrays = kind.read(kind.files())
            origins[name] = content_digest(arrays, {})
            return arrays
        return initial_weights(spec, address.seed)

    starts = method.networks()
    return {name: start(name, kind) for name, kind in starts.items()}, origins


FURTHER_UPDATES = 300
"""Enough for Adam's second moments at the usual decay of 0.99, whose memory is a hundred updates."""


def estimated_second_moments(
    workspace: Workspace, teacher: RunAddress, weights: Weights, spec: TransformerSpec, data: BatchStream
) -> tuple[Weights, float]:
    """Adam's second moments, the bias at zero corrected, of the teacher's own loss at fixed weights; and its eps.

    For a teacher whose optimiser was not kept, as with most published checkpoints.
    """
    method = workspace.make_method(teacher, spec)
    schedule, adam = workspace.training(teacher)
    frozen = replace(schedule, updates=FURTHER_UPDATES, learning_rate=0.0, warmup_updates=0)
    backend = get_backend(teacher.backend)
    learner = backend.learner(method, spec, {name: weights for name in method.networks()}, adam)
    run = Run(workspace.run(teacher), backend, learner, frozen, teacher.seed, {"data": data})
    for step in tqdm(range(FURTHER_UPDATES), desc="second moments", unit="update", mininterval=1):
        run.update(step)
    return learner.second_moments(str(method.second_moments_of)), adam.eps
