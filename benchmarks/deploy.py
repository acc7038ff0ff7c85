"""A version of any model, live within a second and without training: random weights cost a server what trained ones do."""

from __future__ import annotations

import time
import uuid
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import torch
from confluent_kafka import KafkaException
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from benchmarks.sample import sample
from features.encode import encode
from features.state import fit
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.kafka import producer
from runtime.settings import Settings
from schemas.arrow import encode_batch
from schemas.artifact import FEATURES, GOLDEN, GOLDEN_ROWS, REFERENCE, SPEC, WEIGHTS, Manifest
from schemas.errors import Outage
from schemas.events import Arm, RouteTable
from schemas.spec import SPEC_FILE, load_spec
from schemas.topics import ROUTES
from stats.reference import references
from triton_models import hosting

GOLDEN_COUNT: Final = 32
REFERENCE_ROWS: Final = 2000


def write_version(settings: Settings, model: str, version: str = "1.0", seed: int = 0) -> str:
    """Write an artifact of `model` with weights drawn by `seed`; return its name."""
    spec = load_spec(settings.models_dir / model)
    torch.manual_seed(seed)
    module = hosting.build_module(settings.models_dir, spec).eval()
    columns = sample(spec, REFERENCE_ROWS, np.random.default_rng(seed))
    golden = columns.take(np.arange(GOLDEN_COUNT))
    state = fit(spec, columns)
    answers = {
        name: hosting.scores(
            module,
            {key: torch.from_numpy(array) for key, array in encode(spec, state, rows).items()},
            spec,
            1.0,
        ).numpy()
        for name, rows in (("golden", golden), ("all", columns))
    }
    tensors = {f"in.{name}": array for name, array in encode(spec, state, golden).items()}
    manifest = Manifest(
        model=model, version=version, base="", module=spec.module,
        module_sha256=hosting.module_sha256(settings.models_dir, spec), temperature=1.0, tolerance=1e-4, seed=seed,
        rows=columns.rows, created_at_ms=now_ms(), label_from_ms=0, label_to_ms=0, files={},
    )  # fmt: skip
    files = {
        SPEC: (settings.models_dir / model / SPEC_FILE).read_bytes(),
        WEIGHTS: save_tensors(module.state_dict()),
        FEATURES: save_arrays(state),
        GOLDEN: save_arrays(tensors | {"out.scores": answers["golden"]}),
        GOLDEN_ROWS: encode_batch(pa.record_batch(list(golden.as_lists()), ["numbers", "texts"])),
        REFERENCE: msgspec.json.encode(references(spec, columns.numbers, columns.texts, answers["all"])),
    }
    return ArtifactStore(settings.artifacts_dir).write(manifest, files)


def route(settings: Settings, model: str, artifact: str) -> int:
    """Let `artifact` answer all requests of `model`, as control would; return the route table's revision.

    Raises:
        Outage: the broker does not take it.
    """
    version = artifact.partition("-")[0]
    arm = Arm(name="champion", role="live", version=version, artifact=artifact)
    table = RouteTable(
        event_id=str(uuid.uuid4()), model=model, at_ms=now_ms(), revision=time.time_ns(), stage="steady", arms=[arm],
        champion=artifact, major=version,
    )  # fmt: skip
    client = producer(settings)
    try:
        client.produce(ROUTES.name, msgspec.json.encode(table), model.encode())
        left = client.flush(10)
    except KafkaException as error:
        raise Outage(f"the route of {model}: {error.args[0].str()}") from error
    if left:
        raise Outage(f"the route of {model} was not delivered within 10 s")
    return table.revision


def deploy(settings: Settings, model: str, version: str = "1.0", seed: int = 0) -> str:
    """Make a version of `model` and let it answer; return its artifact."""
    artifact = write_version(settings, model, version, seed)
    route(settings, model, artifact)
    return artifact
