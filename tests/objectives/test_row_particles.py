"""Particles of all rows, in memory or in a file."""

import copy
import gc
import os
import tempfile

import pytest
import torch

from sklvebm.objectives.row_particles import RowParticles

LIKE = torch.zeros(())
SHAPE = (7, 2, 3)  # 168 bytes in float32


@pytest.mark.parametrize("most_bytes", [167, 168])
def test_particles_are_mapped_above_the_limit_only(most_bytes):
    particles = RowParticles(SHAPE, LIKE, most_bytes)
    assert particles.is_mapped == (most_bytes < 168)
    assert particles.values.shape == SHAPE
    assert particles.values.dtype == LIKE.dtype
    assert particles.values.is_contiguous()
    assert len(particles) == 7


@pytest.mark.parametrize("most_bytes", [0, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_is_of_the_same_kind_and_independent(most_bytes, dtype):
    particles = RowParticles(SHAPE, LIKE.to(dtype), most_bytes)
    particles.values.normal_(generator=torch.Generator().manual_seed(0))
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    twin = copy.deepcopy(particles)
    assert twin.is_mapped == particles.is_mapped
    particles.values.zero_()
    assert torch.equal(twin.values, expected)


def test_the_file_has_no_name_and_goes_with_the_particles(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    particles = RowParticles((1000, 4, 8), LIKE, 0)
    if os.name == "posix":
        assert list(tmp_path.glob("sklvebm-*")) == []
    particles.values.fill_(1.0)
    values = particles.values
    del particles
    gc.collect()
    assert float(values.sum()) == 32_000.0  # the map outlives the file object
    del values
    gc.collect()
    assert list(tmp_path.glob("sklvebm-*")) == []
    if os.path.isdir("/proc/self/fd"):
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        assert not any(str(tmp_path) in os.readlink(link) for link in filter(os.path.islink, links))


def test_a_full_disk_is_an_error_and_not_a_crash(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)  # some systems have none
    with pytest.raises(OSError, match="No space left"):
        RowParticles(SHAPE, LIKE, 0)
