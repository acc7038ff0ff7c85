"""The model repository that Triton is started with: one model per spec, all of them hosted by `backend.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from schemas.spec import ModelSpec, load_specs
from schemas.tensors import SCORES, input_tensors

BACKEND: Final = Path(__file__).with_name("backend.py")


def write_repository(models_dir: Path, artifacts_dir: Path, repository_dir: Path) -> list[str]:
    """Write `<repository_dir>/<model>/config.pbtxt` and `1/model.py` for every spec; return the models' names.

    Each file is replaced whole, and left alone if it is already right.

    Raises:
        SpecError: a spec cannot be used.
    """
    specs = load_specs(models_dir)
    for name, spec in specs.items():
        folder = repository_dir / name
        _write(folder / "config.pbtxt", config(spec, models_dir.resolve(), artifacts_dir.resolve()).encode())
        _write(folder / "1" / "model.py", BACKEND.read_bytes())
    return list(specs)


def config(spec: ModelSpec, models_dir: Path, artifacts_dir: Path) -> str:
    """Triton's model configuration of `spec` in protobuf's text form.

    `max_batch_size` is 0 because the gateway has made the batch already, and because a row's n-grams are no dimension that Triton
    could join. Without batching this Triton has no queue policy, so no time-out of its own (its dynamic batcher can have one at batch size
    0, but then answers four concurrent callers at a third of the speed): `backend.py` drops what its client has given up.
    """
    inputs = [_tensor(name, datatype, shape) for name, datatype, shape in input_tensors(spec)]
    parameters = {"models_dir": str(models_dir), "artifacts_dir": str(artifacts_dir)}
    return "\n".join(
        [
            f"name: {_text(spec.name)}",
            'backend: "python"',
            "max_batch_size: 0",
            f"input [{', '.join(inputs)}]",
            f"output [{_tensor(SCORES, 'FP32', (-1, spec.outputs))}]",
            "instance_group [{ count: 1, kind: KIND_CPU }]",
            *(
                f"parameters {{ key: {_text(key)}, value: {{ string_value: {_text(value)} }} }}"
                for key, value in parameters.items()
            ),
            "",
        ]
    )


def _tensor(name: str, datatype: str, shape: tuple[int, ...]) -> str:
    return f"{{ name: {_text(name)}, data_type: TYPE_{datatype}, dims: {list(shape)} }}"


def _text(value: str) -> str:
    """A string in protobuf's text form, whose escapes include JSON's."""
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
