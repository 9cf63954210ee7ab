"""The device that is pretended refuses what CUDA refuses, and has processes of its own."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sklvebm import baselines
from sklvebm.baselines import VAE

HERE = Path(__file__).parent
FILES = (
    "test_devices.py",
    "test_launches.py",
    "test_replays.py",
    "test_pretended_device.py",
)
# of about the same length, the longest first
PARTS = ["PotentialFlowEBM", "ParticleLVEBM", " or ".join(baselines.__all__), "WassersteinFlowEBM"]
OTHERS = " and ".join(f"not ({part})" for part in PARTS)


@pytest.mark.slow
@pytest.mark.skipif("SKLVEBM_PRETENDED" in os.environ, reason="this is such a process")
@pytest.mark.parametrize(
    "part", [*PARTS, OTHERS], ids=[*PARTS[:2], "baselines", PARTS[3], "others"]
)
def test_everything_on_the_pretended_device_in_a_process_of_its_own(part):
    files = [HERE / name for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-k", part]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *options],
        cwd=HERE.parent,
        env={**os.environ, "SKLVEBM_PRETENDED": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "hpu", "cuda:99", "pretended"])
def test_a_device_that_is_not_there_is_named(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("a device that is there")
    with pytest.raises(ValueError, match=f"device.*{device}"):
        VAE(device=device).fit(np.eye(4))


def test_a_deep_copy_of_a_part_of_a_tensor_is_independent(pretended):
    with pretended():
        whole = torch.arange(4.0, device="pretended")
        part = whole[2:]
        first, second = copy.deepcopy([part, part])
        whole.zero_()
        assert first is second
        assert first.tolist() == [2.0, 3.0]


def test_the_pretended_device_refuses_what_cuda_refuses(pretended):
    host, number = torch.ones(2), torch.ones(())
    with pretended() as trace:
        here = torch.ones(2, device="pretended")
        assert float((here + number).sum()) == 4.0
        for attempt in (
            lambda: here + host,
            lambda: torch.cat([here, host]),
            lambda: torch.stack([here.sum(), number]),
            lambda: here.numpy(),
            lambda: torch.randn(2, device="pretended", generator=torch.Generator()),
            lambda: torch.randn(2, generator=torch.Generator("pretended")),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                attempt()
        assert here[torch.tensor([True, False])].tolist() == [1.0]
        assert (here @ here.reshape(2, 1)).shape == (1,)
        counts = trace.copies_in, trace.copies_out, trace.synchronisations
    assert counts == (1, 1, 2)
    with pytest.raises(NotImplementedError):
        torch.ones(2, device="pretended")
