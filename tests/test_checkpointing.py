"""The file of a checkpoint: what it holds, how it is replaced, what is refused."""

import threading

import numpy as np
import pytest
import torch

from sklvebm import checkpointing, checkpoints
from sklvebm.checkpointing import RATIO, TRAINING, Checkpoint, is_active
from sklvebm.exceptions import DamagedStateError
from sklvebm.training_course import Progress

OURS = {"X": "these rows", "alpha": "0.1"}
DAMAGED = "The checkpoint is damaged: .* Delete .*checkpoint.npz"
NUMBERS = {
    "energy": [torch.arange(6.0).reshape(2, 3), torch.tensor(True)],
    "course": {"history": [Progress(1, float("nan"), 0.1, {"loss": 1.0}, "fell")]},
    "nothing": None,
}


def kept(folder, numbers=NUMBERS, identity=OURS):
    with checkpoints(folder, every=0):
        checkpoint = Checkpoint(identity)
        checkpoint.keep(TRAINING, lambda: numbers, at_once=True)
    return checkpoint.path


def read(folder, identity=OURS):
    with checkpoints(folder):
        return Checkpoint(identity)


def test_the_state_comes_back(tmp_path):
    kept(tmp_path)
    checkpoint = read(tmp_path)
    assert checkpoint.is_continued
    assert checkpoint.place == "after epoch 1 of training"
    assert checkpoint.kept(RATIO) is None
    numbers = checkpoint.kept(TRAINING)
    assert torch.equal(numbers["energy"][0], NUMBERS["energy"][0])
    assert numbers["energy"][1].dtype == torch.bool
    np.testing.assert_equal(numbers["course"], NUMBERS["course"])
    assert isinstance(numbers["course"]["history"][0], Progress)
    assert numbers["nothing"] is None
    assert checkpoint.kept(TRAINING) is None  # once


def test_results_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"values": np.arange(3)}

    with checkpoints(tmp_path):
        Checkpoint(OURS).result("name", compute)
        again = Checkpoint(OURS).result("name", compute)
    np.testing.assert_array_equal(again["values"], np.arange(3))
    assert len(calls) == 1


def test_a_later_result_keeps_the_state_of_training(tmp_path):
    kept(tmp_path)
    read(tmp_path).result("name", lambda: 1)
    assert read(tmp_path).kept(TRAINING) is not None


def test_states_are_written_every_so_many_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])
    written = []

    def numbers():
        written.append(now[0])
        return NUMBERS

    with checkpoints(tmp_path, every=10):
        checkpoint = Checkpoint(OURS)
        for _ in range(30):
            now[0] += 1.0
            checkpoint.keep(TRAINING, numbers, at_once=now[0] == 125.0)
    assert written == [110.0, 120.0, 125.0]


@pytest.mark.parametrize("every", [-1, float("nan"), float("inf"), "10", None, True])
def test_the_time_between_must_be_a_number_of_seconds(every, tmp_path):
    with pytest.raises(ValueError, match="every must be a number of seconds >= 0, got"):
        checkpoints(tmp_path, every=every).__enter__()


def test_a_context_ends(tmp_path):
    with checkpoints(tmp_path / "outer" / "inner"):
        assert is_active()
    assert not is_active()
    with pytest.raises(RuntimeError, match="within"):
        Checkpoint(OURS)


def test_a_context_is_that_of_its_thread(tmp_path):
    seen = []
    with checkpoints(tmp_path):
        thread = threading.Thread(target=lambda: seen.append(is_active()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_another_fit_is_refused_with_what_differs(tmp_path):
    path = kept(tmp_path)
    with pytest.raises(ValueError, match="alpha was 0.1 and is 0.2. Repeat .* Delete .*") as caught:
        read(tmp_path, {**OURS, "alpha": "0.2"})
    assert str(path) in str(caught.value)
    assert "X was" not in str(caught.value)


def test_any_damaged_byte_is_found_or_harmless(tmp_path):
    path = kept(tmp_path)
    data = path.read_bytes()
    n_found = 0
    for place in range(0, len(data), 31):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            numbers = read(tmp_path).kept(TRAINING)
        except DamagedStateError:
            n_found += 1
            continue
        assert torch.equal(numbers["energy"][0], NUMBERS["energy"][0])
        np.testing.assert_equal(numbers["course"], NUMBERS["course"])
    assert n_found > len(data) // 62


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_damaged(share, tmp_path):
    path = kept(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DamagedStateError, match=DAMAGED):
        read(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "checkpoint.npz", x=np.arange(3))
    with pytest.raises(DamagedStateError, match=DAMAGED):
        read(tmp_path)
    np.savez(tmp_path / "checkpoint.npz", description=np.array([{}], dtype=object))
    with pytest.raises(DamagedStateError, match=DAMAGED):
        read(tmp_path)


def test_a_failure_while_writing_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = kept(tmp_path)
    data = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpointing.np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        kept(tmp_path)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    path = kept(tmp_path)
    (tmp_path / f".{path.name}-abc").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    read(tmp_path).remove()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
