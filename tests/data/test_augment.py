"""Augmentation: what each recipe does, and that its chance depends on the picture and the pass alone."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.helpers import compose, tree
from tlexp.backbones.base import InputSpec
from tlexp.data.augment import Augment, is_reproducible
from tlexp.errors import UsageError
from tlexp.objective.joint import BatchMixing, CrossEntropy, balanced_weights
from tlexp.runs.build import build

SPEC = InputSpec(3, 16, (0.5,) * 3, (0.25,) * 3, "bicubic", 18)


@pytest.fixture
def photos(tmp_path):
    folder = tree(tmp_path / "photos", cat=10, dog=10)
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(folder, *more):
    small = ("init=random", "batch_size=4")
    return compose("data=images", f"data.target.root={folder}", *small, *more)


def epochs(config, count=2):
    """The training inputs of some epochs, as the loader brings them."""
    loader = build(config).data.train_dataloader().iterables["target"]
    actual = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        actual.append([(batch.inputs.clone(), batch.labels.clone()) for batch in loader])
    return actual


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_training_pictures_differ_in_each_epoch_and_evaluation_never_does(photos, name):
    config = run(photos, f"augment={name}", "workers=0")
    first, second = epochs(config)
    assert not torch.equal(torch.cat([x for x, _ in first]).sort(0)[0], torch.cat([x for x, _ in second]).sort(0)[0])
    plain, varied = build(run(photos)).data, build(config).data
    for part in ("val", "test"):
        every = np.arange(len(plain.raw("target", part)))
        assert torch.equal(plain.raw("target", part).inputs[every], varied.raw("target", part).inputs[every])


def test_the_chance_is_the_same_with_any_number_of_workers(photos):
    reference = epochs(run(photos, "augment=strong", "workers=0"))
    for workers in (1, 2):
        actual = epochs(run(photos, "augment=strong", f"workers={workers}"))
        for ours, theirs in zip(chain(*reference), chain(*actual), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


def test_the_chance_of_a_picture_does_not_depend_on_its_batch_or_process(photos):
    """One process with batches of 4 sees the pictures that two processes see with 2 each."""
    data = build(run(photos, "augment=standard", "workers=0")).data
    dataset = data.raw("target", "train")
    sampler = data.train_dataloader().iterables["target"].sampler
    whole = {int(i): x for pick in sampler for i, x in zip(pick.indices, dataset[pick].inputs, strict=True)}
    for rank in range(2):
        ours = type(sampler)(sampler.n, 3, sampler.seed, rank, 2)
        for pick in ours:
            for index, picture in zip(pick.indices, dataset[pick].inputs, strict=True):
                assert torch.equal(picture, whole[int(index)])


def test_another_seed_is_another_chance_and_the_global_stream_is_left_alone(photos):
    before = torch.get_rng_state()
    first = epochs(run(photos, "augment=light", "workers=0"), 1)
    assert torch.equal(torch.get_rng_state(), before)
    second = epochs(run(photos, "augment=light", "workers=0", "seed=1"), 1)
    assert not torch.equal(first[0][0][0], second[0][0][0])


class Own(Augment):
    """A recipe of the user's own, with the chance of NumPy and of Python, or with a generator of its own."""

    def __init__(self, generator=False, **options):
        super().__init__(**{**options, "flip": 0.5})
        self.generator = np.random.default_rng() if generator else None

    def transform(self, spec):
        def shift(image):
            rows = self.generator.integers(8) if self.generator else np.random.randint(8)  # noqa: NPY002
            return image.roll((int(rows), random.randrange(8)), (1, 2))

        return shift


class Seeded(Augment):
    """A generator of its own whose seed is fixed: its numbers depend on the order of the images."""

    def transform(self, spec):
        generator = np.random.default_rng(0)
        return lambda image: image.roll(int(generator.integers(8)), 1)


class Larger(Augment):
    """A recipe for images that are larger than the network's input."""

    def transform(self, spec):
        return v2.RandomCrop(2 * spec.size)


OWN = ("augment=none", "augment.name=own", f"augment._target_={__name__}.Own")


def test_the_chance_of_numpy_and_python_is_seeded_like_that_of_torch(photos):
    reference = list(chain(*epochs(run(photos, *OWN, "workers=0"))))
    other = list(chain(*epochs(run(photos, *OWN, "workers=0", "seed=1"))))
    for workers in (0, 1, 2):
        actual = chain(*epochs(run(photos, *OWN, f"workers={workers}")))
        assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(reference, actual, strict=True))
    assert not all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(reference, other, strict=True))
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epochs(run(photos, *OWN, "workers=0"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (python, numpy)  # noqa: NPY002


def test_a_recipe_with_a_generator_of_its_own_is_named(photos):
    assert not any("augment=" in notice for notice in build(run(photos, *OWN)).notices)
    notices = build(run(photos, *OWN, "+augment.generator=true")).notices
    assert any(notice.startswith("augment=own: has random numbers of its own") for notice in notices)
    spec = InputSpec(3, 32, (0.5,) * 3, (0.25,) * 3)
    assert not is_reproducible(Seeded("seeded"), spec)
    assert is_reproducible(Larger("larger"), spec), "real images may be larger than those it is tried on"


def test_none_is_the_evaluation_to_the_bit(photos):
    assert not Augment("none")
    flat = Augment("almost", flip=1e-12).transform(SPEC)
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert torch.equal(flat(pixels), pixels)


def test_a_crop_keeps_its_share_of_the_area():
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 100, 100)
    widths = []
    for _ in range(200):
        row = Augment("crop", scale=0.35).transform(SPEC)(ramp)[0, 8]
        widths.append((int(row[-1]) - int(row[0])) * 16 / 15)
    assert 0.35**0.5 * 100 - 5 < min(widths) < 70
    assert 90 < max(widths) < 105


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("augment.scale=0", "augment.scale=0: must be above 0"),
        ("augment.flip=half", "augment.flip=half: must be a number"),
        ("augment.flip=2", r"augment.flip=2: must lie in \[0, 1\]"),
        ("augment.stretch=0.5", "augment.stretch=0.5: must be at least 1"),
        ("augment.magnitude=31", r"augment.magnitude=31: must be a whole number in \[0, 30\]"),
        ("augment.random_ops=1.5", "augment.random_ops=1.5: must be a whole number of operations, or 0"),
    ],
)
def test_values_out_of_range_are_named(option, message):
    with pytest.raises(UsageError, match=message):
        build(compose("init=random", option))


def test_pictures_only_and_colours_only(photos):
    from tests.helpers import BACKBONES

    for option, message in (
        ("augment=light", "augment=light: changes images, but the target reports holds texts; use augment=none"),
        ("objective.mixup=0.2", "objective.mixup=0.2 objective.cutmix=0: mix images, but the data are texts; use 0"),
    ):
        with pytest.raises(UsageError, match=message):
            build(compose(*BACKBONES["bert"], "init=random", "strategy=finetune", "batch_size=4", option))
    with pytest.raises(UsageError, match="augment=standard: changes colours, which 4 channels are not"):
        Augment("standard", colour=0.2).transform(InputSpec(4, 16, (0.5,) * 4, (0.25,) * 4))


def test_a_frozen_backbone_sees_augmented_pictures_again_and_again(photos):
    frozen = ("strategy=linear_probe", "init=random")
    assert build(run(photos, *frozen)).data.frozen_features is not None
    assert build(run(photos, *frozen, "augment=light")).data.frozen_features is None
    assert build(run(photos, *frozen, "objective.mixup=0.2")).data.frozen_features is None


@pytest.mark.parametrize("options", [("augment=strong",), ("objective.mixup=0.2", "objective.cutmix=1.0")])
def test_a_joint_run_with_augmentation_trains_and_repeats_to_the_bit(options, run_job):
    joint = (
        "alpha=0.5",
        "init=random",
        "epochs=2",
        "batch_size=8",
        "data.target.classes=[0,1,2]",
        "data.source.classes=[0,1,2]",
    )
    first, second = (run_job(*joint, *options) for _ in range(2))
    assert first["val/target/nll"] == second["val/target/nll"]
    assert first["val/target/nll"] != run_job(*joint)["val/target/nll"]


# Mixed pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [BatchMixing(mixup=1.0), BatchMixing(cutmix=1.0), BatchMixing(0.5, 0.5)])
def test_inputs_and_labels_are_mixed_in_the_same_shares(mix):
    torch.manual_seed(0)
    inputs = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 32, 32).clone()
    labels = torch.arange(4)
    for _ in range(10):
        mixed, shares = mix(inputs, labels, 4)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), shares @ torch.arange(4.0), atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_shares_is_the_mixed_loss_of_the_labels(smoothing, weighted):
    labels = torch.tensor([0, 0, 0, 1, 2])
    criterion = CrossEntropy(smoothing, balanced_weights(labels, 3) if weighted else None)
    logits, other, share = torch.randn(5, 3), labels.flip(0), torch.rand(5)
    one_hot = torch.nn.functional.one_hot
    shares = share[:, None] * one_hot(labels, 3) + (1 - share[:, None]) * one_hot(other, 3)
    expected = share * criterion(logits, labels) + (1 - share) * criterion(logits, other)
    assert torch.allclose(criterion(logits, shares), expected, atol=1e-6)


@pytest.mark.parametrize("option", ["objective.mixup=-1", "objective.cutmix=inf"])
def test_strengths_of_mixing_are_checked(option):
    with pytest.raises(UsageError, match=rf"{option}.*: must be finite and >= 0"):
        compose(option)
