"""Whose statistics BatchNorm layers use, layer by layer and in whole runs."""

import pytest
import torch
from torch import nn

from tests.helpers import BACKBONES, best_weights, compose, differing, fit, state
from tlexp.backbones.batchnorm import StochasticNorm, make_stochastic
from tlexp.errors import UsageError
from tlexp.runs.build import build

FEW = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "batch_size=6", "data.test_fraction=0.9")
RUN = (*FEW, *BACKBONES["small_cnn_batchnorm"], "init=random", "epochs=2")


def pair(p):
    """A BatchNorm layer with a past, and its stochastic twin."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5)
    nn.init.normal_(plain.weight)
    plain(3 * torch.randn(8, 5, 4, 4) + 1)
    twin = nn.Sequential(nn.BatchNorm2d(5))
    twin[0].load_state_dict(plain.state_dict())
    make_stochastic(twin, p)
    assert isinstance(twin[0], StochasticNorm)
    return plain, twin[0], torch.randn(8, 5, 4, 4)


def test_always_the_batchs_statistics_is_batchnorm_to_the_bit():
    plain, twin, x = pair(1.0)
    assert torch.equal(plain(x), twin(x))
    assert not differing(state(plain), state(twin))


def test_never_the_batchs_is_evaluation_before_the_update_while_statistics_move():
    plain, twin, x = pair(0.0)
    expected = plain.eval()(x)
    assert torch.equal(expected, twin(x))
    plain.train()(x)
    assert not differing(state(plain), state(twin))
    assert torch.equal(plain.eval()(x), twin.eval()(x))


def test_a_channel_is_normalised_by_one_of_the_two_and_another_one_each_time():
    plain, twin, x = pair(0.5)
    before, shares = state(twin), torch.zeros(5)
    by_running = plain.eval()(x)
    by_batch = plain.train()(x)
    for _ in range(400):
        twin.load_state_dict(before)
        y = twin(x)
        is_batch, is_running = (
            torch.tensor([torch.equal(y[:, c], other[:, c]) for c in range(5)]) for other in (by_batch, by_running)
        )
        assert (is_batch ^ is_running).all()
        shares += is_batch
    assert ((shares / 400 - 0.5).abs() < 0.1).all()


def test_timms_layers_keep_what_else_they_do():
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    plain, twin = (nn.Sequential(BatchNormAct2d(4, act_layer=nn.ReLU)) for _ in range(2))
    make_stochastic(twin, 1.0)
    x = torch.randn(6, 4, 3, 3)
    ours = twin(x)
    assert torch.equal(plain(x), ours)
    assert ours.min() == 0, "the activation is part of the layer"
    assert torch.equal(plain.eval()(x), twin.eval()(x))


def test_at_the_start_both_domains_have_the_pretrained_layers():
    components = build(compose(*RUN, "alpha=0.5", "norm=per_domain_affine"))
    model = components.task.model.eval()
    x = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    assert torch.equal(model.features(x, "target"), model.features(x, "source"))
    own = [name for stage in model.stages for name in stage.parameters if name.startswith("source_statistics.")]
    assert len(own) == 6
    assert {name.rpartition(".")[2] for name in own} == {"weight", "bias"}


@pytest.mark.parametrize("strategy", ["finetune", "bitfit", "linear_probe"])
def test_weights_and_biases_of_their_own_move_with_the_stage_they_are_in(strategy):
    options = (f"strategy={strategy}", "head=one", "norm=per_domain_affine")
    before = state(build(compose(*RUN, "alpha=0.5", *options)).task.model)
    components, _ = fit(compose(*RUN, "alpha=0.5", *options))
    after = state(components.task.model)
    changed = {
        name for name in differing(before, after) if name.startswith("source_statistics.") and "running" not in name
    }
    kinds = {name.rpartition(".")[2] for name in changed if "num_batches" not in name}
    assert kinds == {"finetune": {"weight", "bias"}, "bitfit": {"bias"}, "linear_probe": set()}[strategy]
    ours, theirs = after["backbone.stem.1.bias"], after["source_statistics.0.bias"]
    assert torch.equal(ours, theirs) == (strategy == "linear_probe")


@pytest.mark.parametrize("norm", ["per_domain_affine", "concat", "batch"])
def test_without_a_source_every_policy_is_one(run_job, norm):
    plain, other = run_job(*RUN, "alpha=0"), run_job(*RUN, "alpha=0", f"norm={norm}")
    assert not differing(best_weights(plain["folder"]), best_weights(other["folder"]))


@pytest.mark.parametrize("backbone", ["small_cnn_batchnorm", "bert"])
def test_concat_normalises_the_mixture_in_one_pass(backbone):
    options = (*FEW, *BACKBONES[backbone], "init=random", "alpha=0.5", "backbone.dropout=0", "batch_size=6")
    components = build(compose(*options, "norm=concat"))
    model = components.task.model.train()
    batch = next(iter(components.data.train_dataloader()))[0]
    inputs = [batch[role].inputs for role in ("target", "source")]
    one, two = model.features_together(inputs)
    alone = model.features(inputs[0])
    assert one.shape == two.shape
    if backbone == "bert":  # texts of other lengths: padding is no word
        assert torch.allclose(one, alone, atol=1e-5)
        assert torch.allclose(two, model.features(inputs[1]), atol=1e-5)
    else:
        assert torch.equal(torch.cat([one, two]), model.features(torch.cat(inputs)))
        assert not torch.allclose(one, alone)


def test_the_source_alone_has_no_other_domain_to_be_apart_from():
    """The target is then evaluated by the statistics that were trained."""
    assert build(compose(*RUN, "alpha=inf")).task.model.source_statistics is None
    both = ("terms=[coral]", "data.unlabelled=true")
    assert build(compose(*RUN, "alpha=inf", *both)).task.model.source_statistics is not None


def test_stochastic_runs_and_a_network_without_batchnorm_is_refused():
    components, _ = fit(compose(*RUN, "alpha=0.5", "norm=stochastic", "norm_p=0.3"))
    layers = [module for module in components.task.model.modules() if isinstance(module, StochasticNorm)]
    assert len(layers) == 3
    assert {layer.p for layer in layers} == {0.3}
    with pytest.raises(UsageError, match="norm=stochastic: the backbone has no BatchNorm layer"):
        build(compose(*FEW, "init=random", "norm=stochastic"))
    with pytest.raises(UsageError, match=r"norm_p=1.5: must lie in \[0, 1\]"):
        compose("norm_p=1.5")
