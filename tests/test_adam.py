"""Adam beside torch's own, step by step and to the last bit, and what importing that costs."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sklvebm.adam import Adam, one_cycle

N_STEPS = 30


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def descend(module, optimizer, n_steps, rate_of=None):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).to(module[0].weight)
    for step in range(n_steps):
        if rate_of is not None:
            rate_of(optimizer, step)
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


def same(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_those_of_torch(dtype, decay):
    own, theirs = model(dtype), model(dtype)
    descend(own, Adam(own.parameters(), learning_rate=0.01, weight_decay=decay), N_STEPS)
    options = {"weight_decay": decay, "fused": True}
    descend(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.01, **options), N_STEPS)
    assert same(own, theirs)
    assert not same(own, model(dtype))


def test_a_cycle_is_that_of_torch():
    own, theirs = model(), model()

    def set_rate(optimizer, step):
        share, momentum = one_cycle(step, N_STEPS)
        optimizer.learning_rate, optimizer.betas = 0.02 * share, (momentum, 0.999)

    descend(own, Adam(own.parameters(), learning_rate=1.0), N_STEPS, set_rate)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.02, foreach=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=N_STEPS)
    descend(theirs, optimizer, 1)
    descend(theirs, optimizer, N_STEPS - 1, lambda *_: cycle.step())
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_long_gradients_are_scaled_as_torch_scales_them(dtype, share):
    modules = [model(dtype), model(dtype)]
    own, theirs = (Adam(module.parameters(), learning_rate=0.01) for module in modules)
    for module in modules:
        module(torch.ones(4, 3, dtype=dtype)).square().sum().backward()
    norm = torch.cat([p.grad.reshape(-1) for p in modules[0].parameters()]).norm()
    own.step(share * float(norm))
    nn.utils.clip_grad_norm_(modules[1].parameters(), share * float(norm))
    theirs.step()
    for moment, expected in zip(own.first, theirs.first, strict=True):
        torch.testing.assert_close(moment, expected, rtol=1e-5, atol=0.0)


def test_a_parameter_without_a_gradient_stays():
    module = model()
    module[0].bias.requires_grad_(False)
    before = module[0].bias.clone()
    descend(module, Adam(module.parameters(), learning_rate=0.1, weight_decay=1.0), 3)
    assert torch.equal(module[0].bias, before)
    idle = Adam(model().parameters(), learning_rate=0.1)
    idle.step()
    assert idle.n_steps == 0


def test_a_copy_goes_on_with_its_own_module_and_moments():
    module = model()
    optimizer = Adam(module.parameters(), learning_rate=0.01)
    descend(module, optimizer, 5)
    twin, own = copy.deepcopy((module, optimizer))
    descend(twin, own, 5)
    assert not same(twin, module)
    descend(module, optimizer, 5)
    assert same(twin, module)


def test_a_state_that_was_put_back_repeats_the_steps():
    module = model()
    optimizer = Adam(module.parameters(), learning_rate=0.01)
    descend(module, optimizer, 5)
    weights, state = copy.deepcopy(module.state_dict()), optimizer.state()
    descend(module, optimizer, 5)
    once = copy.deepcopy(module)
    module.load_state_dict(weights)
    optimizer.load(state)
    descend(module, optimizer, 5)
    assert same(module, once)


def test_no_fit_imports_the_compiler_of_torch():
    """Which takes three seconds of the first fit of a process."""
    code = (
        "import sys, numpy as np\n"
        "from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM\n"
        "X = np.random.RandomState(0).standard_normal((60, 3))\n"
        "X[:, 2] = X[:, 0] ** 2\n"
        "for make in (ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM):\n"
        "    make(reference='gaussian', max_iter=2, random_state=0).fit(X).score(X)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
