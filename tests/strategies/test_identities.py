"""Where two names must mean the same run, to the bit."""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from sklearn.linear_model import LogisticRegression

from tests.helpers import best_weights, compose, differing, fit, state
from tlexp.data.batches import CycledBatches
from tlexp.runs.build import build
from tlexp.runs.trainer import quiet

SHORT = ("epochs=3",)


def test_full_transfer_from_random_weights_is_scratch(run_job):
    """The start is all that tells them apart."""
    a = run_job("strategy=full_transfer", "init=random", *SHORT)
    b = run_job("strategy=scratch", *SHORT)
    assert not differing(best_weights(a["folder"]), best_weights(b["folder"]))
    assert a["test/target/nll"] == b["test/target/nll"]


@pytest.mark.parametrize("alpha", ["0", "0.5"])
def test_finetune_with_the_full_recipe_is_full_transfer(run_job, alpha):
    """The recipe is all that tells them apart."""
    full = run_job("strategy=full_transfer", f"alpha={alpha}", *SHORT)
    same = ("strategy.backbone_lr_mult=1", "strategy.freeze_until=null", "lr=0.003")
    tuned = run_job("strategy=finetune", f"alpha={alpha}", *same, *SHORT)
    assert not differing(best_weights(full["folder"]), best_weights(tuned["folder"]))
    slower = run_job("strategy=finetune", f"alpha={alpha}", "lr=0.003", *SHORT)
    assert differing(best_weights(full["folder"]), best_weights(slower["folder"]))


@pytest.mark.parametrize("clip", ["null", "0.05"])
def test_the_targets_head_does_not_depend_on_alpha_under_a_frozen_backbone(store, clip):
    """With two heads, and with clipping too, since each head is clipped by itself."""

    def trained(alpha: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        options = ("strategy=shared_representation", "head=two", "objective.allow_inert_alpha=true", *SHORT)
        config = compose(
            f"store={store}", "init=random", f"alpha={alpha}", f"trainer.gradient_clip_val={clip}", *options
        )
        components, _ = fit(config)
        return (
            components.task.model,
            state(components.task.model.heads["target"]),
            state(components.task.model.backbone),
        )

    _, head, backbone = trained("0")
    sources = []
    for alpha in ("0.1", "1", "10"):
        model, other_head, other_backbone = trained(alpha)
        assert not differing(head, other_head)
        assert not differing(backbone, other_backbone)
        sources.append(state(model.heads["source"]))
    assert differing(sources[0], sources[1])


def test_shared_representation_with_one_head_is_weighted_logistic_regression():
    """The minimiser of mean loss + alpha * mean loss + (decay / 2) |w|^2, as scikit-learn finds it."""
    alpha, decay = 0.5, 0.05
    recipe = ("optimizer=sgd", f"optimizer.weight_decay={decay}", "backbone.width=8", "lr=0.1", "epochs=3")
    data = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=12")
    method = ("strategy=shared_representation", "init=random", "backbone.dropout=0", f"alpha={alpha}")
    components = build(compose(*method, *recipe, *data))
    fit_full_batches(components, epochs=3, steps=500)

    model = components.task.model.eval()
    sets = {role: components.data.raw(role, "train") for role in components.data.domains}
    with torch.no_grad():
        features = {role: model.features(data.inputs[range(len(data))], role).numpy() for role, data in sets.items()}
        ours = model(sets["target"].inputs[range(len(sets["target"]))]).numpy()
    n, m = (len(features[role]) for role in ("target", "source"))
    oracle = LogisticRegression(C=1 / decay, tol=1e-10, max_iter=10000).fit(
        np.concatenate([features["target"], features["source"]]),
        np.concatenate([sets["target"].labels, sets["source"].labels]),
        sample_weight=np.concatenate([np.full(n, 1 / n), np.full(m, alpha / m)]),
    )
    theirs = oracle.decision_function(features["target"])
    # The softmax does not see a constant common to all classes.
    ours, theirs = (logits - logits.mean(1, keepdims=True) for logits in (ours, theirs))
    assert np.abs(theirs).max() > 0.1
    assert np.abs(ours - theirs).max() < 1e-3


def fit_full_batches(components: Any, epochs: int, steps: int) -> None:
    """Trains with all of both domains in every step, so that descent is deterministic."""
    sizes = {role: domain.sizes()["train"] for role, domain in components.data.domains.items()}
    batches = {role: CycledBatches(size, size, steps, seed=0) for role, size in sizes.items()}
    train = CombinedLoader(
        {r: components.data._loader(components.data.dataset(r, "train"), b) for r, b in batches.items()}, "min_size"
    )
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with quiet():
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, check_val_every_n_epoch=epochs, **off)
        trainer.fit(components.task, train, components.data.val_dataloader())
