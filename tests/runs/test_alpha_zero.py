"""With alpha = 0 a run knows the target alone, to the bit; the oracle is a plain PyTorch loop written out here."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import f1_score
from torch.nn.functional import cross_entropy

from tests.helpers import BACKBONES, FILES, STRATEGIES, compose, differing, each_once, fit, options_of, state
from tlexp.data.batches import ShuffledBatches
from tlexp.rng import derive_seed, permutation
from tlexp.runs import domains as run_domains
from tlexp.runs.build import build
from tlexp.training.schedules import cosine

STOCHASTIC = ("small_cnn_batchnorm", "timm_vit", "timm_resnet", "bert")  # BatchNorm, dropout, stochastic depth
FEW = ("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=5")
RUN = ("init=random", "strategy=finetune", "epochs=3", "lr=0.01", "seed=3", *FEW)


class RandomState(pl.Callback):
    """Notes the global random state after the last training batch of each epoch."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.states.append(torch.get_rng_state())


def plain_loop(backbone: str) -> tuple[Any, torch.optim.Optimizer, torch.Tensor, dict[str, float]]:
    """Trains on the target with nothing but PyTorch; only the model and the tensors are the product's."""
    components = build(compose(*RUN, *BACKBONES[backbone]))
    model = components.task.model
    sets = {part: components.data.raw("target", part) for part in ("train", "val")}
    rates = {"backbone": 0.001, "heads": 0.01}
    groups = []
    for stage in model.stages:
        own = {name: dict(model.named_parameters())[name] for name in stage.parameters}
        rate = rates[stage.parameters[0].split(".")[0]]
        decayed = {name: p for name, p in own.items() if p.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))}
        groups += [{"params": list(decayed.values()), "lr": rate}] if decayed else []
        plain = [p for name, p in own.items() if name not in decayed]
        groups += [{"params": plain, "lr": rate, "weight_decay": 0.0}] if plain else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.999))
    n, step = len(sets["train"].labels), 0
    sizes = [5, 5, 5] if n == 15 else [4, 4, 4]
    total = 3 * len(sizes)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, total, 0.1))
    assert sum(sizes) == n
    for epoch in range(3):
        model.train()
        torch.manual_seed(derive_seed(3, "dropout/target", epoch, 0))
        order = torch.from_numpy(permutation(n, 3, "batches/target", epoch))
        for chosen in order.split(sizes):
            loss = cross_entropy(model(sets["train"].inputs[chosen]), sets["train"].labels[chosen], reduction="none")
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()
            scheduler.step()
            step += 1
    chance = torch.get_rng_state()
    model.eval()
    with torch.no_grad():
        logits = model(sets["val"].inputs[range(len(sets["val"]))])
    labels = sets["val"].labels
    values = {
        "nll": cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        "macro_f1": f1_score(labels, logits.argmax(1), average="macro"),
    }
    return model, optimizer, chance, values


@pytest.mark.parametrize("backbone", STOCHASTIC)
def test_alpha_zero_is_a_plain_loop_over_the_target(backbone):
    watch = RandomState()
    components, trainer = fit(compose(*RUN, *BACKBONES[backbone], "alpha=0"), watch)
    model, optimizer, chance, values = plain_loop(backbone)
    assert not differing(state(components.task.model), state(model))
    ours, theirs = trainer.optimizers[0].state_dict()["state"], optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, entry in ours.items():
        assert all(torch.equal(entry[name], theirs[index][name]) for name in entry)
    assert torch.equal(watch.states[-1], chance)
    for name, value in values.items():
        assert float(trainer.callback_metrics[f"val/target/{name}"]) == pytest.approx(value, abs=1e-6)


def test_nothing_of_the_source_is_built(monkeypatch):
    """The source's reader is not even called, and neither head, criterion, loader nor metric exists."""
    read: list[str] = []
    original = run_domains.build

    def spy(group: str, node: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        read.append(str(node["name"]))
        return original(group, node, *args, **kwargs)

    monkeypatch.setattr(run_domains, "build", spy)
    components = build(compose(*RUN, "alpha=0", "head=two"))
    assert "digits" in read
    assert "mnist" not in read
    assert (
        list(components.data.domains)
        == list(components.task.model.heads)
        == list(components.task.objective.criteria)
        == ["target"]
    )
    assert not [name for name in components.task.state_dict() if "source" in name]
    assert {name.split("/")[1] for name in components.task.metrics if "terms" not in name} == {"target"}
    assert list(components.data.train_dataloader().iterables) == ["target"]


@pytest.mark.parametrize("backbone", STOCHASTIC)
def test_the_source_pass_leaves_the_targets_chance(backbone):
    """With alpha > 0 the target sees the same batches, the same dropout and the same head as with alpha = 0."""
    alone, joint = RandomState(), RandomState()
    a, _ = fit(compose(*RUN, *BACKBONES[backbone], "alpha=0"), alone)
    b, _ = fit(compose(*RUN, *BACKBONES[backbone], "alpha=0.5"), joint)
    assert all(torch.equal(x, y) for x, y in zip(alone.states, joint.states, strict=True))
    assert differing(state(a.task.model.heads), state(b.task.model.heads))


def test_heads_start_equal_for_every_strategy_and_alpha(store):
    runs = (
        ("strategy=finetune", "alpha=0"),
        ("strategy=scratch", "alpha=1"),
        ("strategy=linear_probe", "head=one", "alpha=2"),
        ("strategy=finetune", "head=two", "alpha=1"),
    )
    heads = [state(build(compose(*run, "init=random")).task.model.heads["target"]) for run in runs]
    assert all(not differing(heads[0], head) for head in heads[1:])
    other = state(build(compose("seed=1", "init=random")).task.model.heads["target"])
    assert differing(heads[0], other)


def test_alpha_infinity_is_the_source_alone():
    """Its gradient is that of the source's loss: a plain loop over the source's stream finds the same weights."""
    run = (*RUN, "alpha=inf", "backbone.dropout=0", "optimizer=sgd", "schedule=constant", "strategy=full_transfer")
    components, _ = fit(compose(*run))
    twin = build(compose(*run))
    model = twin.task.model
    data = twin.data.raw("source", "train")
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.ndim > 1].append(parameter)
    optimizer = torch.optim.SGD(
        [{"params": groups[True], "weight_decay": 0.0005}, {"params": groups[False], "weight_decay": 0.0}],
        lr=0.01,
        momentum=0.9,
        nesterov=True,
    )
    model.train()
    batches = ShuffledBatches(len(data.labels), 5, 3, role="source")
    for step in range(3 * twin.data.steps):
        batches.set_epoch(step // twin.data.steps)
        chosen = list(batches)[step % twin.data.steps].indices
        optimizer.zero_grad()
        cross_entropy(model(data.inputs[chosen]), data.labels[chosen], reduction="none").mean().backward()
        optimizer.step()
    ours, theirs = state(components.task.model), state(model)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_the_source_has_its_own_batchnorm_statistics():
    """With the two domains apart, the target's running statistics are those of the target alone."""
    run = (*RUN, "strategy=shared_representation", "backbone.norm=batch", "strategy.heads=all")
    components = build(compose(*run, "alpha=0.5"))
    model = components.task.model
    model.set_trainable({stage.name for stage in model.stages})
    model.train()
    before = state(model.backbone)
    images = torch.randn(4, *model.backbone.input.example(1).shape[1:]) + 3
    model(images, "source")
    assert not differing(before, state(model.backbone))
    assert torch.equal(model.source_statistics.num_batches_tracked_0, torch.tensor(1))
    shifted = model.source_statistics.running_mean_0.clone()
    model(images - 3, "target")
    assert differing(before, state(model.backbone))
    assert torch.equal(model.source_statistics.running_mean_0, shifted)
    shared = build(compose(*run, "alpha=0.5", "norm=batch")).task.model
    assert shared.source_statistics is None


@pytest.mark.parametrize(("strategy", "backbone"), each_once(STRATEGIES, STOCHASTIC))
def test_alpha_zero_does_not_know_the_source(strategy, backbone):
    """Every strategy: another source, another head policy or no source at all give the same weights to the bit."""
    run = (*RUN, *BACKBONES[backbone], f"strategy={strategy}", "init=random", "epochs=2", "alpha=0")
    run += options_of(strategy, backbone)
    plain, _ = fit(compose(*run))
    another = f"data.source.root={FILES / 'reports.csv'}" if backbone == "bert" else "data.source.rotation=90"
    policy = "norm=batch" if compose(*run).norm == "per_domain" else "norm=frozen"  # alike without a source
    others = [(another, "head=two", policy)] + [("data.source=null",)] * (strategy in ("finetune", "linear_probe"))
    for other in others:
        components, _ = fit(compose(*run, *other))
        assert not differing(state(plain.task.model), state(components.task.model))
