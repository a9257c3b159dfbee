"""Whole jobs in this process: what they leave behind and how the components of `init` find each other."""

import json
import math
import shutil

import pytest
import torch
import yaml
from mlflow import MlflowClient

from tests.helpers import (
    BACKBONES,
    FILES,
    QUICK,
    WHOLE,
    best_weights,
    compose,
    differing,
    fit_components,
    forked,
    state,
    tree,
)
from tlexp import run_folder
from tlexp.errors import TrainingDivergedError, UsageError
from tlexp.objective.joint import Objective
from tlexp.runs import run as run_module
from tlexp.runs.build import build
from tlexp.runs.run import run as run_config
from tlexp.runs.source_weights import source_folder
from tlexp.training.metrics import wilson_interval

SHORT = ("epochs=2",)


@pytest.mark.figures
def test_a_run_leaves_what_it_promises(run_job):
    result = run_job("alpha=0.5", *SHORT)
    folder = result["folder"]
    names = {path.name for path in folder.iterdir()}
    figures = {"confusion_matrix.png", "learning_curves.png"}
    kept = {f"predictions_{role}.parquet" for role in ("target", "source")}
    assert names == {"best.ckpt", "config.yaml", "history.jsonl", "metrics.json", *figures, *kept}
    for role in ("target", "source"):
        for name in ("accuracy", "macro_f1", "nll", "ece"):
            assert result[f"val/{role}/{name}"] >= 0
            assert result[f"test/{role}/{name}"] >= 0
    low, high = result["test/target/accuracy_ci95"]
    assert low <= result["test/target/accuracy"] <= high
    assert sum(map(sum, result["confusion_matrix"])) == result["test_examples"] == 719
    diagonal = sum(result["confusion_matrix"][i][i] for i in range(10))
    assert result["test/target/accuracy"] == pytest.approx(diagonal / 719)
    assert set(result["split_hashes"]) == {"target", "source"}
    assert result["config_hash"] == compose("alpha=0.5", *SHORT).hash
    assert result["mlflow_run_id"] is None
    assert result["weights"].startswith("source mnist: 11 of 11 tensors, unused model.heads.target")
    before = json.loads((source_folder_of(folder) / "metrics.json").read_text())["test/target/accuracy"]
    assert result["forgetting"] == pytest.approx(before - result["test/source/accuracy"])
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert result["score"] == min(row["val/target/nll"] for row in rows)


def source_folder_of(folder):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    return source_folder(compose(f"store={content['store']}"))


def test_the_score_is_that_of_the_checkpoint_kept(run_job):
    """The best validation value, not the last; the test is taken with the same weights."""
    result = run_job("epochs=12", "lr=0.05", "strategy.backbone_lr_mult=1", "monitor=val/target/accuracy")
    rows = [json.loads(line) for line in (result["folder"] / "history.jsonl").read_text().splitlines()]
    values = [row["val/target/accuracy"] for row in rows]
    assert result["score"] == max(values)
    assert result["best_epoch"] == values.index(max(values))
    assert result["best_epoch"] < len(rows) - 1, "or the test shows nothing"
    components = build(compose("init=random"))
    components.task.load_state_dict(best_weights(result["folder"]), strict=False)
    data = components.data.raw("target", "test")
    with torch.no_grad():
        guesses = components.task.model.eval()(data.inputs[range(len(data))]).argmax(1)
    assert (guesses == data.labels).double().mean().item() == pytest.approx(result["test/target/accuracy"])


def test_early_stopping_stops(run_job):
    options = ("lr=0.05", "strategy.backbone_lr_mult=1", "schedule=constant", "optimizer=sgd")
    result = run_job("epochs=60", "patience=2", "monitor=val/target/accuracy", *options)
    assert result["epochs_run"] == result["best_epoch"] + 1 + 2 < 60


def test_the_source_is_trained_once_and_found_again(run_job, tmp_path, monkeypatch):
    store = f"store={tmp_path}/own"
    trained = []
    original = run_module.train

    def spy(config, *others):
        trained.append(config.strategy["name"])
        original(config, *others)

    monkeypatch.setattr(run_module, "train", spy)
    run_job(store, *SHORT)
    run_job(store, "seed=1", "alpha=0.5", "optimizer=sgd", "lr=0.1", "data.shots=10", *SHORT)
    assert trained == ["source_training", "finetune", "finetune"]
    run_job(store, "data.source.rotation=90", *SHORT)
    assert trained[3:] == ["source_training", "finetune"]


def test_a_source_whose_files_change_is_another_source(tmp_path):
    for index in ("a", "b"):
        shutil.copy(FILES / "letters.csv", tmp_path / f"{index}.csv")
    run = (*BACKBONES["bert"][:3], f"data.source.root={tmp_path}/a.csv", f"data.target.root={tmp_path}/b.csv")
    before = source_folder(compose(*run))
    assert source_folder(compose(*run)) == before
    (tmp_path / "b.csv").write_text("text,label\na,1\nb,2\n")
    assert source_folder(compose(*run)) == before, "the target does not matter"
    with (tmp_path / "a.csv").open("a") as file:
        file.write("one more,1\n")
    assert source_folder(compose(*run)) != before


def test_a_frozen_backbone_sees_each_example_once(tmp_path):
    """And the result is that of passing every batch through it."""
    run = ("strategy=linear_probe", "init=random", "alpha=0.5", "head=one", "epochs=3", "backbone.norm=batch")
    run += (f"cache={tmp_path / 'cache'}",)
    seen, components = [], build(compose(*run))
    components.task.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    fit_components(compose(*run), components)
    sizes = [domain.sizes() for domain in components.data.domains.values()]
    assert sum(seen) == sum(size["train"] + size["val"] for size in sizes)

    again = build(compose(*run))
    again.data.frozen_features = None
    fit_components(compose(*run), again)
    ours, theirs = state(components.task.model), state(again.task.model)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    moving = build(compose("init=random", "alpha=0"))
    assert moving.data.frozen_features is None


def test_features_of_a_frozen_backbone_are_kept_for_other_jobs_until_something_changes(tmp_path, monkeypatch):
    run = ("strategy=linear_probe", "alpha=0", f"cache={tmp_path / 'cache'}")

    def features(*more):
        components = build(compose(*run, "init=random", *more))
        seen = []
        components.task.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        return components.data.dataset("target", "test").inputs.values, sum(seen)

    first, passed = features()
    assert passed == 719
    again, passed = features("alpha=0.5", "head=one", "lr=0.1")
    assert torch.equal(again, first)
    assert passed == 4, "the first few, to be sure"
    for change in ("seed=1", "split_seed=1", "backbone.width=16"):
        assert features(change)[1] == 719, change
    from tlexp.backbones.small_cnn import SmallCNN

    forward = SmallCNN.forward
    monkeypatch.setattr(SmallCNN, "forward", lambda self, x: 2 * forward(self, x))
    doubled, passed = features()
    assert passed == 4 + 719, "code that changed is noticed"
    assert torch.equal(doubled, 2 * first)


def test_the_sources_weights_depend_on_the_pictures_that_a_table_lists(tmp_path):
    pictures = tree(tmp_path / "anywhere", cat=3, dog=3)
    lines = [f"{path},{path.parent.name}" for path in sorted(pictures.rglob("*.png"))]
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    run = ("data=image_table", f"data.source.root={tmp_path / 't.csv'}", f"data.target.root={tmp_path / 't.csv'}")
    before = source_folder(compose(*run))
    assert source_folder(compose(*run)) == before
    (pictures / "cat/0.png").touch()
    assert source_folder(compose(*run)) != before


def test_an_interrupted_source_run_is_not_taken_for_a_finished_one(run_job, tmp_path):
    store = f"store={tmp_path}/own"
    folder = source_folder(compose(store))
    folder.mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(b"torn")
    assert run_job(store, *SHORT)["weights"].startswith("source mnist: 11 of 11")


def test_mistakes_are_said_before_the_source_is_trained(tmp_path):
    config = compose("trainer.max_steps=2", f"store={tmp_path}/own", root=tmp_path)
    with pytest.raises(UsageError, match=r"trainer\.max_steps=2"):
        run_config(config, tmp_path / "run")
    assert not list((tmp_path / "own").glob("*/*"))


@pytest.mark.parametrize("strategy", ["finetune", "full_transfer", "linear_probe", "shared_representation"])
def test_weights_of_another_label_set_arrive_whole(run_job, strategy):
    """Five classes to three; the backbone is complete, the head is new and it is said."""
    options = ("data.source.classes=[0,1,2,3,4]", "data.target.classes=[5,6,7]", "batch_size=8")
    result = run_job(f"strategy={strategy}", *options, *SHORT)
    assert result["weights"].startswith("source mnist: 11 of 11 tensors, unused model.heads.target.weight")
    assert best_weights(result["folder"])["model.heads.target.weight"].shape[0] == 3


def test_different_label_sets_get_two_heads(run_job):
    options = ("data.source.classes=[0,1,2,3,4]", "data.target.classes=[5,6,7,8,9]", "alpha=0.5")
    heads = {name for name in best_weights(run_job(*options, *SHORT)["folder"]) if "heads" in name and "weight" in name}
    assert heads == {"model.heads.target.weight", "model.heads.source.weight"}


def test_init_takes_the_checkpoint_of_another_run(run_job):
    """The printed path can be given back as it is."""
    first = run_job("init=random", "strategy=scratch", *SHORT)
    assert "=" not in first["checkpoint"]
    second = run_job(f"init={first['checkpoint']}", "strategy=linear_probe", *SHORT)
    assert "11 of 11 tensors" in second["weights"]
    before, after = best_weights(first["folder"]), best_weights(second["folder"])
    backbone = [name for name in before if name.startswith("model.backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)


def test_init_takes_an_mlflow_run(tmp_path, store):
    base = ("tracking=mlflow", f"store={store}", *SHORT)
    folder = tmp_path / "first"
    run_config(compose(*base, "init=random", "tracking.log_checkpoint=true", root=tmp_path), folder)
    run_id = run_folder.read_metrics(folder)["mlflow_run_id"]
    for gone in (False, True):
        if gone:
            (folder / "best.ckpt").rename(tmp_path / "elsewhere.ckpt")
        run_config(compose(*base, f"init={run_id}", root=tmp_path), tmp_path / f"second{gone}")
        assert "11 of 11 tensors" in run_folder.read_metrics(tmp_path / f"second{gone}")["weights"]
    with pytest.raises(UsageError, match="neither source, random"):
        run_config(compose(*base, f"init={'0' * 32}", root=tmp_path), tmp_path / "third")


@pytest.mark.figures
def test_init_takes_what_an_mlflow_uri_names(tmp_path, store):
    """An artifact of a run, and a registered model; the run's own folder may be gone."""
    base = ("tracking=mlflow", f"store={store}", *SHORT)
    config = compose(*base, "init=random", "tracking.log_checkpoint=true", root=tmp_path)
    run_config(config, tmp_path / "first")
    run_id = run_folder.read_metrics(tmp_path / "first")["mlflow_run_id"]
    client = MlflowClient(config.tracking.uri)
    client.create_registered_model("digits")
    where = client.get_run(run_id).info.artifact_uri
    client.create_model_version("digits", source=f"{where}/best.ckpt", run_id=run_id)
    client.set_registered_model_alias("digits", "champion", "1")
    shutil.rmtree(tmp_path / "first")
    for index, uri in enumerate((f"runs:/{run_id}/best.ckpt", "models:/digits/1", "models:/digits@champion")):
        run_config(compose(*base, f"init='{uri}'", root=tmp_path), tmp_path / str(index))
        assert run_folder.read_metrics(tmp_path / str(index))["weights"].startswith(f"{uri}: 11 of 11 tensors")
    for uri, reason in (("models:/letters/1", "MLflow cannot fetch it"), (f"runs:/{run_id}/pictures", "holds no file")):
        with pytest.raises(UsageError, match=reason) as caught:
            run_config(compose(*base, f"init='{uri}'", root=tmp_path), tmp_path / "none")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="only tracking=mlflow knows where that is"):
        run_config(compose(*SHORT, "init='models:/digits/1'", root=tmp_path), tmp_path / "none")


def test_a_checkpoint_can_be_understood_alone(run_job, monkeypatch):
    """Plain values and tensors only, no network, classes and input beside them."""
    result = run_job("alpha=0.5", "data.target.classes=[7,3]", "data.source.classes=[3,7]", "batch_size=4", *SHORT)
    content = torch.load(result["folder"] / "best.ckpt", weights_only=True)
    metadata = content["tlexp"]
    assert metadata["classes"] == {"target": ["7", "3"], "source": ["3", "7"]}
    assert metadata["backbone"] == "small_cnn"
    spec = {"channels": 1, "size": 16, "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}
    assert metadata["input"] == {"kind": "images", **spec, "resize": None, "crop": "center"}
    assert metadata["config"]["alpha"] == 0.5
    assert metadata["metrics"]["val/target/nll"] == result["val/target/nll"]

    def no_network(*args, **kwargs):
        raise AssertionError("a checkpoint of ours was loaded over the network")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    run_job(f"init={result['checkpoint']}", *SHORT)


def test_class_weights_and_label_smoothing_change_the_loss(run_job):
    plain = run_job("init=random", *SHORT)
    for option in ("objective.label_smoothing=0.2", "objective.class_weights=balanced"):
        data = ("data.shots=null", "data.fraction=0.3") if "class" in option else ()
        base = plain if not data else run_job("init=random", *data, *SHORT)
        assert run_job("init=random", option, *data, *SHORT)["train/target/loss"] != base["train/target/loss"]


def test_jobs_of_one_process_do_not_leak_into_each_other(run_job):
    """The same seed gives the same weights, whatever ran before it."""
    first = run_job("seed=2", "alpha=0.5", *SHORT)
    torch.manual_seed(99)
    run_job("seed=1", "strategy=scratch", *SHORT)
    again = run_job("seed=2", "alpha=0.5", *SHORT)
    assert not differing(best_weights(first["folder"]), best_weights(again["folder"]))


def test_source_weights_do_not_depend_on_the_runs_seed(run_job):
    a, b = (build(compose(f"seed={seed}", "init=random")).task.model.backbone for seed in (0, 1))
    assert differing(state(a), state(b))
    assert source_folder(compose("seed=0")) == source_folder(compose("seed=1"))


def test_options_that_change_the_source_change_its_key():
    """A source trained on one batch an epoch must not be taken for a whole one."""
    plain = source_folder(compose())
    for option in (
        "trainer.limit_train_batches=1",
        "trainer.gradient_clip_val=0.1",
        "backbone.width=16",
        "pretrain.lr=1",
    ):
        assert source_folder(compose(option)) != plain, option
    for option in ("trainer=ddp", "trainer.enable_progress_bar=true", "alpha=3", "data.shots=10", "norm=batch"):
        assert source_folder(compose(option)) == plain, option


def test_a_run_that_diverges_fails(run_job):
    with pytest.raises(TrainingDivergedError, match="lower lr"):
        run_job("init=random", "lr=1e30", "optimizer=sgd", "strategy=full_transfer", *SHORT)


def test_a_run_that_diverges_later_ends_with_its_first_nan(run_job, monkeypatch):
    """What it would keep is a checkpoint from before, whose test says nothing about the configuration."""

    def loss(self, role, logits, labels):
        value = of_batch(self, role, logits, labels)
        steps.append(role)
        return value * (math.nan if len(steps) == 11 else 1)

    steps, of_batch = [], Objective.loss
    monkeypatch.setattr(Objective, "loss", loss)
    with pytest.raises(TrainingDivergedError, match=r"val/target/nll is nan in epoch 3; lower lr=0.003"):
        run_job("init=random", "epochs=20", "data.shots=5", "batch_size=16")
    assert len(steps) == 12, "four epochs of three steps"


def test_mlflow_has_the_validation_of_the_checkpoint_kept(tmp_path, store):
    folder, config = (
        tmp_path / "run",
        compose("tracking=mlflow", f"store={store}", "init=random", "epochs=3", root=tmp_path),
    )
    run_config(config, folder)
    result = run_folder.read_metrics(folder)
    logged = MlflowClient(config.tracking.uri).get_run(result["mlflow_run_id"]).data.metrics
    kept = {name: value for name, value in result.items() if name.startswith("val/")}
    assert kept
    assert {name: logged[f"best/{name}"] for name in kept} == kept


def test_epochs_without_validation_repeat_no_old_values(run_job):
    result = run_job("init=random", "epochs=4", "trainer.check_val_every_n_epoch=2")
    rows = [json.loads(line) for line in (result["folder"] / "history.jsonl").read_text().splitlines()]
    assert ["val/target/nll" in row for row in rows] == [False, True, False, True]


def test_the_stores_password_is_in_no_file_and_not_in_the_help(tmp_path, monkeypatch):
    """Where the store does not answer, which is found after the run's folder is made."""
    address = "postgresql://me:secret@127.0.0.1:1/db"
    done = forked(*QUICK, "init=random", "epochs=1", f"tracking.uri='{address}'", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "config.yaml" for file in files)
    assert not [file for file in files if b"secret" in file.read_bytes()]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    told = forked("--help", cwd=tmp_path).stdout
    assert "postgresql://me:***@127.0.0.1:1/db" in told


def test_the_stores_password_is_not_in_the_configuration_that_is_kept(tmp_path):
    config = compose("tracking=mlflow", "tracking.uri='postgresql://me:secret@host/db'", root=tmp_path)
    assert config.tracking.uri == "postgresql://me:secret@host/db"
    assert "secret" not in json.dumps(config.redacted())
    assert config.redacted()["tracking"]["uri"] == "postgresql://me:***@host/db"


def test_a_relative_database_is_beside_the_launch_folder(tmp_path):
    config = compose("tracking=mlflow", "tracking.uri='sqlite:///mine/runs.db'", root=tmp_path)
    assert config.tracking.uri == f"sqlite:///{tmp_path}/mine/runs.db"


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if WHOLE or name != "torchvision_alexnet"])
def test_every_backbones_checkpoint_loads_as_plain_values(run_job, backbone):
    few = ("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "batch_size=6", "data.test_fraction=0.9")
    result = run_job(*BACKBONES[backbone], "init=random", "alpha=0.5", "epochs=1", *few)
    content = torch.load(result["folder"] / "best.ckpt", weights_only=True)
    names = {
        "version",
        "backbone",
        "input",
        "classes",
        "config",
        "config_hash",
        "weights",
        "lr",
        "metrics",
        "stopped",
        "work",
    }
    names |= {"carried"} & set(content["tlexp"])
    assert set(content["tlexp"]) == names
    assert ("carried" in names) == (backbone == "bert")
    again = run_job(*BACKBONES[backbone], f"init={result['checkpoint']}", "strategy=linear_probe", "epochs=1", *few)
    before, after = content["state_dict"], best_weights(again["folder"])
    names = [name for name in before if name.startswith("model.backbone.")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)


def test_the_interval_is_that_of_the_images_that_were_tested(run_job):
    result = run_job("init=random", "epochs=1", "trainer.limit_test_batches=1")
    assert result["test_examples"] == 128
    assert result["test/target/accuracy_ci95"] == list(wilson_interval(result["test/target/accuracy"], 128))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("trainer.max_steps=2",), "trainer.max_steps=2: ends before the first validation, after 3 steps"),
        (("trainer.max_steps=5", "trainer.check_val_every_n_epoch=2"), "before the first validation, after 6 steps"),
        (("trainer.max_steps=1", "trainer.val_check_interval=2"), "before the first validation, after 2 steps"),
        (("trainer.val_check_interval=7",), "trainer.val_check_interval=7: an epoch has 3 batches; use fewer"),
        (("trainer.max_time='00:00:00:00'",), "trainer.max_time=00:00:00:00: ended before a validation; give it more"),
    ],
)
def test_training_that_ends_before_a_validation_says_so(run_job, options, said):
    with pytest.raises(UsageError, match=said):
        run_job("init=random", "epochs=4", *options)


@pytest.mark.parametrize(
    "options", [("trainer.max_steps=3",), ("trainer.max_steps=2", "trainer.val_check_interval=0.5")]
)
def test_training_that_ends_after_a_validation_has_a_result(run_job, options):
    assert run_job("init=random", "epochs=4", *options)["epochs_run"] == 1


def test_the_best_checkpoint_holds_weights_and_no_state_of_the_optimizer(run_job):
    result = run_job("init=random", "epochs=2")
    content = torch.load(result["folder"] / "best.ckpt", weights_only=True)
    assert "optimizer_states" not in content
    weights = sum(tensor.numel() * tensor.element_size() for tensor in content["state_dict"].values())
    assert (result["folder"] / "best.ckpt").stat().st_size < 1.1 * weights + 50_000


BATCHNORM = ("backbone.norm=batch", "init=random", "epochs=1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("batch_size=1",), "the smallest batch of the target has 1 examples for 1 processes, and BatchNorm needs two"),
        (("data.target.classes=[0,1,2]", "data.shots=10", "batch_size=2"), None),
        (("data.target.classes=[0,1,2]", "data.shots=9", "batch_size=2"), "of the target has 1 examples"),
        (("batch_size=3", "trainer=ddp"), "the smallest batch of the target has 2 examples for 2 processes"),
        (("batch_size=1", "norm=frozen"), None),
        (("batch_size=1", "strategy=linear_probe"), None),
        (("batch_size=1", "backbone.norm=group"), None),
    ],
)
def test_batchnorm_gets_two_examples_on_every_process(options, said):
    config = compose(*BATCHNORM, *options)
    if said is None:
        build(config)
        return
    with pytest.raises(UsageError, match=said):
        build(config)
