"""The device that is pretended refuses what CUDA refuses; devices that are not there are named."""

import numpy as np
import pytest
import torch

from sklvebm.baselines import VAE


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "hpu", "cuda:99", "pretended"])
def test_a_device_that_is_not_there_is_named(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("a device that is there")
    with pytest.raises(ValueError, match=f"device.*{device}"):
        VAE(device=device).fit(np.eye(4))


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
