"""Laws of devices: no tensor meets one of another device, and where a model lies changes no answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="a PyTorch before 2.10"
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_on_a_device_or_spread_over_two_answers_as_on_the_cpu(kind: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.engine.pretended", kind],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout == ""
