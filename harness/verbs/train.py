"""What `fewstep teacher` and `fewstep distill` share: one training run at its address."""

from harness.backends import get_backend
from harness.backends.base import Weights
from harness.checkpoint import differences, load_checkpoint, require_config
from harness.config import digest
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.method import CopyOf, Method
from harness.networks.transformer import TransformerSpec, initial_weights
from harness.noise import Noise
from harness.provenance import run_record, source_hash
from harness.training import BatchStream, Run
from harness.workspace import TEACHER, RunAddress, Workspace


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
    method = workspace.make_method(address, shape, data.num_classes)
    schedule, adam = workspace.training(address)
    backend = get_backend(address.backend)
    weights, parent = _starting_weights(workspace, address, method, spec)
    config = workspace.run_config(address)
    manifest = {"config": config, "data": data.digest, "method": method.id, "network": vars(spec), **parent}
    folder = workspace.run(address)
    result = folder / f"{method.result}.safetensors"
    if result.exists():
        _, existing = load_checkpoint(result)
        if not differences({k: existing.get(k) for k in manifest}, manifest) and (folder / "train.json").exists():
            print(f"{result}: already trained")
            return
        raise UserError(f"{result}: made with another configuration; delete its folder, or choose another --results")
    folder.mkdir(parents=True, exist_ok=True)
    learner = backend.learner(method, spec, weights, adam)
    run = Run(
        folder, backend, learner, schedule, address.seed, BatchStream(data.images, data.labels, Noise(address.seed))
    )
    key = digest({**manifest, "source": source_hash(*source_modules(address.backend, type(method)))})
    summary = {"params": spec.n_parameters, "config": digest(config), "provenance": run_record()}
    run.train(manifest, key, summary, f"{address.backend} {method.id} {address.student}")


def _starting_weights(
    workspace: Workspace, address: RunAddress, method: Method, spec: TransformerSpec
) -> tuple[dict[str, Weights], dict[str, str]]:
    """Each network's weights at the start of training, and the digest of the teacher's where one is copied."""
    starts = method.networks()
    parent: dict[str, str] = {}
    teacher: Weights = {}
    if any(isinstance(start, CopyOf) for start in starts.values()):
        path = workspace.teacher_checkpoint(address.backend, address.seed)
        teacher, manifest = load_checkpoint(path)
        teacher_address = RunAddress(address.backend, TEACHER, "default", TEACHER, address.seed)
        require_config(path, manifest, workspace.run_config(teacher_address))
        parent = {"teacher": manifest["digest"]}
    fresh = initial_weights(spec, address.seed)
    weights = {name: teacher if isinstance(start, CopyOf) else fresh for name, start in starts.items()}
    return weights, parent
