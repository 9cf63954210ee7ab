"""The benchmark of images runs from end to end with few rows, and resumes."""

import numpy as np
import pytest


@pytest.fixture
def images(script):
    return script("images")


def test_images_prints_a_table_and_resumes(images, tmp_path, capsys):
    methods = ("kernel density", "isolation forest")
    images.run(methods, 1, images.QUICK, tmp_path)
    first = capsys.readouterr().out
    assert "AUROC digits 8 and 9" in first
    assert " ...\n" in first
    images.run(methods, 1, images.QUICK, tmp_path)
    again = capsys.readouterr().out
    assert " ...\n" not in again
    assert again.split("Digits 0 to 7")[1] == first.split("Digits 0 to 7")[1]


def test_images_keeps_strangers_out_of_training(images):
    rows = images.load_rows(0, 50)
    assert set(rows.labels) == set(rows.held_out_labels) == set(range(8))
    assert all(len(X) == 50 for X in (rows.held_out, *rows.strangers.values()))
    # no row is both seen and scored: uniform noise makes equal rows differ, so compare grey levels
    assert np.allclose(rows.train.mean(0), 0.0)
    shuffled = rows.strangers["shuffled"]
    assert not np.isclose(shuffled, rows.held_out).all(1).any()


def test_images_says_where_ours_lose(images):
    middle = dict.fromkeys((*images.STRANGERS, "recognised", "evenness"), 0.9)
    better = {**middle, "evenness": 0.99}
    found = images.failures_of({"flow": middle, "mixture by BIC": better})
    assert found == ["flow: evenness 0.090 below the mixture"]


def test_evenness_is_an_entropy(images):
    assert images.entropy(np.array([0, 1, 2, 3])) == pytest.approx(np.log(4.0))
    assert images.entropy(np.zeros(5, dtype=int)) == 0.0
