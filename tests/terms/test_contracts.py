"""The contracts of every term: off is off, teachers stay, what it trains has a group, and a stop changes nothing."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD

from tests.helpers import (
    BACKBONES,
    RESUMABLE,
    TERMS,
    best_weights,
    compose,
    differing,
    each_once,
    fit,
    interrupted_and_not,
    state,
    untimed_result,
)
from tlexp.backbones.timm import TimmBackbone
from tlexp.data.batches import Batch
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.runs.build import build
from tlexp.runs.source_weights import source_folder
from tlexp.terms.base import DomainOutput, StepContext
from tlexp.terms.bss import BSS
from tlexp.terms.coral import Coral
from tlexp.terms.delta import chosen_layers
from tlexp.terms.l2_sp import L2SP
from tlexp.terms.mcc import MCC
from tlexp.terms.mmd import MMD

FEW = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "batch_size=6", "data.test_fraction=0.9")
DECAY = "optimizer.weight_decay=0.01"  # which two of the options set to 0


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A checkpoint for each backbone: some terms need the output layer that came with the weights."""
    folder, made = tmp_path_factory.mktemp("starts"), {}

    def start(backbone):
        if backbone not in made:
            components = build(compose(*FEW, *BACKBONES[backbone], "batch_size=6", "init=random", "seed=7"))
            made[backbone] = folder / f"{backbone}.ckpt"
            torch.save({"state_dict": components.task.state_dict()}, made[backbone])
        return f"init={made[backbone]}"

    return start


@pytest.fixture(scope="module")
def ends(starts):
    """Where training without terms ends, for each backbone."""
    made = {}

    def end(backbone):
        if backbone not in made:
            components, _ = fit(compose(*run_of("terms=[]", backbone, starts, "seed=3", "epochs=1")))
            made[backbone] = state(components.task.model)
        return made[backbone]

    return end


class Start(pl.Callback):
    """Takes what terms keep before the first step."""

    def on_train_start(self, trainer, task):
        self.terms = state(task.terms)


def run_of(term, backbone, starts, *options):
    return (
        *FEW,
        *BACKBONES[backbone],
        "batch_size=6",
        starts(backbone),
        "epochs=2",
        "alpha=0.5",
        DECAY,
        *options,
        term,
    )


def test_terms_there_are():
    named = "bi_tuning bss cdan co_tuning coral dann delta distill l2_sp mcc mmd"
    assert named.split() == TERMS


@pytest.mark.parametrize("term", TERMS)
def test_without_weight_a_term_is_not_there(starts, ends, term):
    """To the bit."""
    run = run_of(f"terms=[{term}]", "small_cnn_batchnorm", starts, "seed=3", "epochs=1")
    off, _ = fit(compose(*run, f"terms.{term}.weight=0"))
    assert not off.task.terms
    assert not differing(ends("small_cnn_batchnorm"), state(off.task.model))


def test_a_pull_without_strength_is_training_without_weight_decay(run_job, starts):
    run = run_of("terms=[]", "small_cnn_batchnorm", starts)[:-1]
    plain = run_job(*run, "optimizer.weight_decay=0")
    none = ("terms=[l2_sp]", "terms.l2_sp.strength=0", "terms.l2_sp.head_strength=0", "optimizer.weight_decay=0")
    assert not differing(
        best_weights(plain["folder"]),
        {n: t for n, t in best_weights(run_job(*run, *none)["folder"]).items() if "start_" not in n},
    )


@pytest.mark.parametrize(
    ("term", "backbone"),
    sorted(
        {
            *each_once(TERMS, ("small_cnn_batchnorm",)),
            *each_once(TERMS, ("small_cnn_batchnorm", "timm_resnet", "timm_vit", "bert")),
        }
    ),
)
def test_it_pulls_and_what_it_remembers_stays(starts, ends, term, backbone):
    """The model goes another way than without; frozen copies do not, and own parameters are in a group of theirs."""
    run = run_of(f"terms=[{term}]", backbone, starts, "seed=3", "epochs=1")
    watch = Start()
    components, trainer = fit(compose(*run), watch)
    ours = state(components.task.model)
    assert differing(ours, ends(backbone))
    assert all(tensor.isfinite().all() for tensor in ours.values())
    first, last = watch.terms, state(components.task.terms)
    moved = differing(first, last)
    followers = ("key_", "queue_", "filled", "relation", "temperature")  # which follow on purpose
    fixed = {name for name in first if "module." in name or "start_" in name or "of_" in name}
    fixed -= {name for name in fixed if name.split(".")[1].startswith(followers)}
    assert not moved & fixed
    own = {id(p) for p in components.task.terms.parameters() if p.requires_grad}
    groups = [group for group in trainer.optimizers[0].param_groups if group["name"].startswith(f"terms.{term}")]
    assert all(group["weight_decay"] == 0 for group in groups if group["name"].endswith("/no_decay"))
    assert {id(p) for group in groups for p in group["params"]} == own
    learned = {name for name, p in components.task.terms.named_parameters() if p.requires_grad}
    assert learned <= moved


GROUPS = ("l2_sp,bss,distill,coral", "delta,co_tuning,mmd,mcc", "bi_tuning,dann", "cdan")


@pytest.mark.slow
@pytest.mark.parametrize("terms", GROUPS)
def test_a_run_with_terms_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, starts, terms):
    unlabelled = "data.unlabelled=true" if "mcc" in terms or "dann" in terms else "data.unlabelled=false"
    run = (*RESUMABLE, starts("small_cnn_batchnorm"), *BACKBONES["small_cnn_batchnorm"], "head=one", unlabelled)
    straight, broken = interrupted_and_not(compose(*run, f"terms=[{terms}]", root=tmp_path), tmp_path, monkeypatch)
    assert not differing(best_weights(straight), best_weights(broken))
    assert untimed_result(straight) == untimed_result(broken)


def test_every_term_is_named_once():
    assert sorted(",".join(GROUPS).split(",")) == TERMS


# What the data hand over -----------------------------------------------------------------------------------------


def batch_of(components):
    return next(iter(components.data.train_dataloader()))[0]


def test_without_alpha_a_term_gets_the_source_and_nobody_its_labels(run_job):
    run = ("data.shots=5", "init=random", "epochs=1", "alpha=0", "terms=[coral]")
    components = build(compose(*run))
    assert set(batch_of(components)) == {"target", "source"}
    assert [name for name in components.task.metrics if name.startswith("val/")] == ["val/target"]
    assert set(components.task.model.heads) == {"target"}
    actual = run_job(*run)
    assert "test/source/accuracy" not in actual
    assert set(actual["split_hashes"]) == {"target", "source"}


def test_unlabelled_examples_are_all_that_neither_validates_nor_tests():
    run = ("data.shots=5", "init=random", "alpha=inf", "terms=[coral,mcc]", "data.unlabelled=true")
    components = build(compose(*run))
    batch = batch_of(components)
    assert set(batch) == {"source", "unlabelled"}, "alpha=inf needs no labels of the target"
    assert batch["unlabelled"].labels.unique().tolist() == [-1]
    target, pool = components.data.domains["target"].split, components.data.unlabelled.split.train
    assert set(target.train) < set(pool)
    assert not set(pool) & (set(target.val) | set(target.test))
    assert len(pool) + len(target.val) + len(target.test) == len(components.data.domains["target"].samples.labels)


def test_a_term_that_needs_labels_keeps_the_labelled_batch(monkeypatch):
    components = build(compose("init=random", "alpha=0.5", "terms=[bss,mcc]", "data.unlabelled=true"))
    seen = {}
    for name, term in components.task.terms.items():
        monkeypatch.setattr(term, "forward", lambda _, step, name=name: seen.update({name: step}) or torch.zeros(()))
    batch = batch_of(components)
    components.task.training_step(batch, 0)
    assert torch.equal(seen["bss"].target.labels, batch["target"].labels)
    assert seen["mcc"].target.labels.eq(-1).all()
    assert seen["mcc"].source is seen["bss"].source


def test_two_views_of_a_picture_differ_and_the_first_is_that_of_other_runs():
    run = ("init=random", "augment=standard", "augment.flip=0", "seed=2")
    plain, two = (build(compose(*run, terms)) for terms in ("terms=[]", "terms=[bi_tuning]"))
    one, both = batch_of(plain)["target"], batch_of(two)["target"]
    assert torch.equal(one.inputs, both.inputs)
    assert one.second_view is None
    assert both.second_view.shape == both.inputs.shape
    assert not torch.equal(both.second_view, both.inputs)


def test_a_first_run_trains_its_source_before_a_term_takes_its_output_layer(run_job, tmp_path):
    run = ("alpha=inf", "epochs=1", "terms=[distill,coral]", "data.unlabelled=true", f"store={tmp_path}/new")
    actual = run_job(*run)
    assert actual["weights"].startswith("source mnist")
    assert {"train/terms/distill", "train/terms/coral"} <= set(actual)


# What single terms promise ----------------------------------------------------------------------------------------


def step_of(components, backbone_in_eval=False):
    model = components.task.model.train(not backbone_in_eval)
    batch: Batch = batch_of(components)["target"]
    inputs = model.as_input(batch.inputs)
    features = model.features(inputs)
    return StepContext(DomainOutput(inputs, batch.labels, features, model.classify(features)), None)


@pytest.mark.parametrize("backbone", ["small_cnn_batchnorm", "timm_vit", "bert"])
@pytest.mark.parametrize("term", ["distill", "distill terms.distill.kind=features", "delta", "l2_sp"])
def test_at_the_start_there_is_nothing_to_pull_at(starts, term, backbone):
    name, *options = term.split()
    heads = [f"terms.{name}.head_strength=0"] if name in ("delta", "l2_sp") else []
    components = build(compose(*run_of(f"terms=[{name}]", backbone, starts, *options, *heads)))
    pull = components.task.terms[name]
    assert pull(components.task.model, step_of(components, backbone_in_eval=True)).item() == pytest.approx(0, abs=1e-10)
    if name != "l2_sp":
        assert pull(components.task.model, step_of(components)).item() > 1e-6, "dropout tells student and teacher apart"
    with torch.no_grad():
        for parameter in components.task.model.backbone.parameters():
            parameter.add_(0.01)
    assert pull(components.task.model, step_of(components, backbone_in_eval=True)).item() > 1e-6


def test_l2_sp_is_half_the_squared_distance(starts):
    components = build(compose(*run_of("terms=[l2_sp]", "small_cnn_batchnorm", starts)))
    model, term = components.task.model, components.task.terms["l2_sp"]
    assert all(p.ndim > 1 for name, p in model.named_parameters() if name in (*term.pulled, *term.heads))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.5)
    count = sum(p.numel() for p in model.backbone.parameters() if p.ndim > 1)
    heads = model.heads["target"].weight.pow(2).sum().item()
    assert term(model, None).item() == pytest.approx(0.05 * 0.25 * count + 0.005 * heads, rel=1e-5)


def test_the_stronger_the_pull_the_nearer_the_end(starts):
    def distance(strength):
        run = run_of("terms=[l2_sp]", "small_cnn", starts, "optimizer=sgd", "lr=0.05", "strategy=full_transfer")
        config = compose(*run, f"terms.l2_sp.strength={strength}", "epochs=6")
        start = state(build(config).task.model.backbone)
        end = state(fit(config)[0].task.model.backbone)
        return sum((end[name] - start[name]).pow(2).sum() for name in end if end[name].ndim > 1).sqrt().item()

    far = [distance(strength) for strength in (0, 0.1, 1, 10)]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 0.5 * far[0]


def test_the_key_network_is_the_trained_one_without_momentum(starts):
    run = run_of("terms=[bi_tuning]", "small_cnn_batchnorm", starts, "terms.bi_tuning.momentum=0")
    components, _ = fit(compose(*run))
    term = components.task.terms["bi_tuning"]
    assert not differing(state(term.key_backbone.module), state(components.task.model.backbone))
    assert not differing(state(term.key_projector.module), state(term.projector))
    assert term.filled.tolist() == [8, 8, 8]


def test_contrast_is_the_mean_over_positives_of_the_log_softmax():
    """Against a loop over examples and keys, with places that are still empty."""
    components = build(compose("init=random", "terms=[bi_tuning]", "terms.bi_tuning.queue=3", *FEW))
    term = components.task.terms["bi_tuning"]
    torch.manual_seed(0)
    term.filled.copy_(torch.tensor([2, 0, 3]))
    own, queued, labels = torch.rand(4), torch.rand(4, 9), torch.tensor([0, 1, 2, 0])
    there = [(label, index) for label, filled in enumerate((2, 0, 3)) for index in range(filled)]
    expected = []
    for i in range(4):
        keys = [(labels[i].item(), own[i])] + [(label, queued[i, 3 * label + index]) for label, index in there]
        total = sum((similarity / 0.07).exp() for _, similarity in keys)
        positives = [-(similarity / 0.07 - total.log()) for label, similarity in keys if label == labels[i]]
        expected.append((sum(positives) / len(positives)).item())
    assert term._contrast(own, queued, labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_delta_weighs_channels_by_what_a_probe_loses_without_them(starts):
    """Weights of a layer sum to one, and a channel that is always zero weighs less than one that is not."""
    run = run_of("terms=[delta]", "small_cnn", starts, "terms.delta.attention=measured")
    config = compose(*run)
    components = build(config)
    term = components.task.terms["delta"]
    assert term.names == ["stage1.1.0", "stage2.1.0", "hidden"]
    with torch.no_grad():
        for network in (components.task.model.backbone, term.teacher.module):
            network.hidden[2].weight[:5] = 0
            network.hidden[2].bias[:5] = 0
    term.on_fit_start(components.task.model, components.data)
    weights = term.weights_of_hidden
    assert weights.sum().item() == pytest.approx(1)
    assert weights.std() > 0
    assert weights[:5].max() - weights[:5].min() < 1e-7, "what is zero already can be missed"


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("timm_resnet", ["body.layer1.0.conv2", "body.layer2.0.conv2", "body.layer3.0.conv2", "body.layer4.0.conv2"]),
        ("torchvision_alexnet", ["body.features.3", "body.features.10", "body.classifier"]),
        ("bert", ["body.encoder.layer.0", "body.encoder.layer.1"]),
        ("bert backbone.pooling=pooler init=random", ["body.encoder.layer.0", "body.encoder.layer.1"]),
    ],
)
def test_delta_finds_its_layers(starts, backbone, layers):
    backbone, *options = backbone.split()
    components = build(compose(*run_of("terms=[delta]", backbone, starts), *options))
    assert components.task.terms["delta"].names == layers


def test_what_a_term_brings_trains_at_the_rate_of_its_kind(starts):
    """As in the authors' code: the old output layer like the backbone, a discriminator like the new head."""
    run = run_of("terms=[co_tuning,distill,dann]", "small_cnn", starts, "strategy=finetune", "lr=0.01")
    components = build(compose(*run, "data.source.classes=[0,1,2]"))
    rates = {group["name"]: group["lr"] for group in components.task.build_optimizer().param_groups}
    assert rates["head"] == rates["terms.dann"] == 0.01
    assert rates["stem"] == rates["terms.co_tuning/pretrained"] == rates["terms.distill/pretrained"] == 0.001


@pytest.mark.parametrize(
    ("name", "last", "blocks"),
    [
        ("vit_tiny_patch16_224", "body.blocks.11", 12),
        ("mixer_s32_224", "body.blocks.7", 8),
        ("xcit_nano_12_p16_224", "body.cls_attn_blocks.1", 14),
        ("cait_xxs24_224", "body.blocks_token_only.1", 26),
    ],
)
def test_delta_watches_the_last_block_that_has_a_normalisation_beside_it(name, last, blocks):
    layers = chosen_layers(TransferModel(TimmBackbone(name), {"target": 2}, 0))
    assert layers[-1] == last
    assert len(layers) == blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("terms=[coral]", "strategy=linear_probe"),
            "acts on the backbone, which strategy=linear_probe leaves frozen",
        ),
        (("terms=[distill]",), "needs the output layer that the weights were trained with"),
        (("terms=[l2_sp]", "strategy=bitfit"), "only biases and 1-d parameters of the backbone train"),
        (("terms=[l2_sp]",), "pulls to where weights came from, but init= brings none"),
        (("terms=[bss]", "terms.bss.k=1.5"), "terms.bss.k=1.5: must be a whole number, at least 1"),
        (("terms=[dann]", "terms.dann.hidden=1.5"), "terms.dann.hidden=1.5: must be a whole number"),
        (("terms=[dann]", "terms.dann.steepness=-1"), "terms.dann.steepness=-1: must be >= 0"),
        (("terms=[mmd]", "terms.mmd.kernels=[a]"), "terms.mmd.kernels=.*: needs one exponent at least, numbers"),
        (("terms=[delta]", "terms.delta.layers=[stage1.1.0]", "strategy.freeze_until=stage1"), "nothing up to any of"),
        (("terms=[coral]", "terms.coral.kind=foo"), "terms.coral.kind=foo: choose one of covariance, mean"),
        (
            ("terms=[bss]", "terms.bss.k=20"),
            "the smallest batch of the target has 13 examples for 1 processes that need",
        ),
        (("terms=[cdan]", "head=two", "alpha=0.5"), "source and target have a head each"),
        (("terms=[bi_tuning]", "objective.mixup=1"), "needs images of one class"),
        (("terms=[bi_tuning]", "head_hidden=8"), "needs a linear head"),
        (("terms=[delta]", "terms.delta.layers=[conv9]"), "terms.delta.layers=conv9: the backbone has no such module"),
        (
            ("terms=[mmd]", "data=named", "dataset@data.target=digits", "data.shots=5"),
            "compares source and target, but data=named has no source",
        ),
        (("data.unlabelled=true",), "no term would use it"),
        (("terms=[mcc]", "terms.mcc.temperature=0"), "terms.mcc.temperature=0: must be above 0"),
    ],
)
def test_what_cannot_work_is_said_before_training(options, message):
    with pytest.raises(UsageError, match=message):
        build(compose("init=random", *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("lr=1", "terms.l2_sp.strength=50"),
            "terms.l2_sp.strength=50: times the rate 0.1 of stem must stay below 1.35714",
        ),
        (("lr=0.1", "terms.l2_sp.head_strength=1000"), "head_strength=1000: times the rate 0.1 of head must stay"),
    ],
)
def test_a_pull_that_overshoots_is_refused_where_it_pulls(starts, options, message):
    run = run_of("terms=[l2_sp]", "small_cnn_batchnorm", starts, "optimizer=sgd")
    with pytest.raises(UsageError, match=message):
        build(compose(*run, *options))
    build(compose(*run, "lr=0.4", "terms.l2_sp.strength=10"))  # the head is not pulled that way


@pytest.mark.parametrize(
    ("momentum", "nesterov", "limit"),
    [(0.9, False, 3.8), (0.9, True, 3.8 / 2.8), (0.5, False, 3.0), (0.5, True, 1.5), (0.0, False, 2.0)],
)
def test_the_limit_of_a_pull_is_where_sgd_stops_converging(momentum, nesterov, limit):
    """On the penalty alone, w <- 0 with curvature 1: below the limit it shrinks, above it grows."""
    term = L2SP("l2_sp", 1.0, strength=1.0, head_strength=0.0)
    for rate, stable in ((0.98 * limit, True), (1.02 * limit, False)):
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = SGD([{"params": [w], "name": "stem"}], lr=rate, momentum=momentum, nesterov=nesterov)
        for _ in range(2000):
            optimizer.zero_grad()
            (w.square().sum() / 2).backward()
            optimizer.step()
        assert (abs(w.item()) < 1) == stable
        if stable:
            term.check(optimizer)
        else:
            with pytest.raises(UsageError, match=f"must stay below {limit:g}"):
                term.check(optimizer)


def test_a_wrong_option_is_said_before_a_source_is_trained(run_job, tmp_path):
    with pytest.raises(UsageError, match="choose one of covariance, mean"):
        run_job("terms=[coral]", "terms.coral.kind=foo", f"store={tmp_path}/new")
    assert not list((tmp_path / "new").glob("*/metrics.json"))


def test_tensors_that_a_checkpoint_did_not_bring_are_new(starts, tmp_path):
    run = run_of("terms=[l2_sp]", "small_cnn_batchnorm", starts)
    content = torch.load(starts("small_cnn_batchnorm").removeprefix("init="), weights_only=True)["state_dict"]
    missing = "model.backbone.hidden.2.weight"
    torch.save({name: tensor for name, tensor in content.items() if name != missing}, tmp_path / "part.ckpt")
    term = build(compose(*run, f"init={tmp_path}/part.ckpt", "allow_partial=true")).task.terms["l2_sp"]
    assert "backbone.hidden.2.weight" in term.heads
    assert "backbone.hidden.2.weight" not in term.pulled


def test_accumulated_gradients_are_one_step_to_what_follows(starts, monkeypatch):
    components = build(compose(*run_of("terms=[bi_tuning]", "small_cnn_batchnorm", starts)))
    followed = []
    monkeypatch.setattr(type(components.task.terms["bi_tuning"]), "after_step", lambda self, model: followed.append(1))
    run = run_of("terms=[bi_tuning]", "small_cnn_batchnorm", starts, "trainer.accumulate_grad_batches=2")
    _, trainer = fit(compose(*run, "batch_size=3"))
    assert len(followed) == trainer.global_step == 2 * -(-trainer.num_training_batches // 2)
    assert trainer.num_training_batches > 2


def test_half_precision_around_it_changes_no_distance():
    torch.manual_seed(0)
    source, target = torch.randn(32, 16), 1.1 * torch.randn(32, 16)
    step = StepContext(*(DomainOutput(x, torch.zeros(32), x, x) for x in (target, source)))
    for term in (Coral("coral"), MMD("mmd"), MCC("mcc"), BSS("bss")):
        plain = term(None, step)
        with torch.autocast("cpu", torch.bfloat16):
            half = term(None, step)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(plain.item(), rel=1e-5), term.name


def test_delta_takes_the_stages_convolution_and_not_a_gate_beside_it(starts):
    options = ("backbone=timm", "backbone.name=seresnet50", "backbone.size=32", "terms.delta.head_strength=0")
    model = build(compose(*FEW, *options, "init=random", "terms=[delta]")).task
    assert [name.split(".")[-1] for name in model.terms["delta"].names] == ["conv3"] * 4


@pytest.mark.parametrize("alpha", ["0.5", "inf"])
def test_texts_that_pass_together_are_compared_word_by_word(starts, alpha):
    run = run_of("terms=[delta]", "bert", starts, "norm=concat", "epochs=1")
    components, _ = fit(compose(*run, f"alpha={alpha}"))
    assert all(tensor.isfinite().all() for tensor in state(components.task.model).values())


def test_old_predictions_are_calibrated_where_the_source_is_known(run_job, store):
    """Also where the source's weights are given as a file; other classes are not it."""
    run = ("epochs=1", "terms=[co_tuning]")
    first = run_job(*run)
    warm = best_weights(first["folder"])["terms.co_tuning.temperature"].item()
    assert warm != 1
    source = source_folder(compose(*run, f"store={store}", root=first["folder"].parent)) / "best.ckpt"
    by_file = run_job(*run, f"init={source}")
    assert best_weights(by_file["folder"])["terms.co_tuning.temperature"].item() == pytest.approx(warm)
    other = run_job(*run, f"init={source}", "data.source.classes=[0,1,2]")
    assert best_weights(other["folder"])["terms.co_tuning.temperature"].item() == 1
