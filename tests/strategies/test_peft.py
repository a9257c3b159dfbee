"""Adapters: the network is what it was at first, its weights stay, and a checkpoint starts other runs."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig

from tests.helpers import BACKBONES, FILES, compose, differing, fit, options_of, random_inputs, state
from tlexp.errors import UsageError
from tlexp.runs.build import build
from tlexp.strategies.peft import Peft

FEW = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "batch_size=6", "data.test_fraction=0.9")
FAMILIES = ["bert", "timm_vit", "timm_resnet", "small_cnn_batchnorm"]
RUN = (*FEW, "init=random", "epochs=2", "alpha=0.5", "lr=0.02")


def run_of(backbone, *options):
    return (*RUN, *BACKBONES[backbone], "batch_size=6", *options)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_at_first_it_is_the_network_that_it_was_and_merging_changes_nothing(run_job, backbone):
    """The merged checkpoint is all that another run starts from: adapters are in the weights, the head is along."""
    lora = ("strategy=lora", *options_of("lora", backbone))
    plain = build(compose(*run_of(backbone))).task.model.eval()
    first = build(compose(*run_of(backbone, *lora))).task.model.eval()
    x = random_inputs(plain.backbone.input, 6)
    assert torch.equal(plain.backbone(x), first.backbone(x))
    assert torch.equal(plain(x), first(x)), "the head is that of every other strategy"

    trained = run_job(*run_of(backbone, *lora))
    with_adapters = build(compose(*run_of(backbone, *lora))).task
    with_adapters.load_state_dict(torch.load(trained["checkpoint"], weights_only=True)["state_dict"])
    again = build(compose(*run_of(backbone, f"init={trained['checkpoint']}")))
    ours, theirs = again.task.model.eval().backbone(x), with_adapters.model.eval().backbone(x)
    assert not torch.allclose(ours, plain.backbone(x), atol=1e-4)
    assert (ours - theirs).abs().max() < 1e-5
    assert again.start.weights.loaded == again.start.weights.total
    assert again.start.weights.notes == ("LORA merged",)
    assert again.start.weights.unexpected == ("model.heads.target.weight", "model.heads.target.bias")


@pytest.mark.parametrize("tuner", ["LoraConfig", "LoHaConfig", "LoKrConfig", "IA3Config", "OFTConfig"])
def test_any_tuner_that_is_injected_goes_the_same_way(run_job, tuner):
    options = {
        "IA3Config": ("+strategy.adapter.feedforward_modules=[]",),
        "OFTConfig": ("+strategy.adapter.oft_block_size=8",),
    }
    run = ("strategy=peft", f"strategy.adapter._target_=peft.{tuner}", *options.get(tuner, ()))
    before = state(build(compose(*run_of("bert", *run))).task.model)
    trained = run_job(*run_of("bert", *run))
    after = torch.load(trained["checkpoint"], weights_only=True)["state_dict"]
    frozen = {name for name in before if "base_layer" in name}
    assert len(frozen) == 8
    assert not {name for name in frozen if not torch.equal(before[name], after[f"model.{name}"])}
    again = build(compose(*run_of("bert", f"init={trained['checkpoint']}")))
    assert again.start.weights.loaded == again.start.weights.total


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of peft on transformers
def test_lora_trains_as_many_parameters_as_the_library_does(tmp_path):
    """BERT-base, queries and values, r = 8: 294,912 and a head of 1,538."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FILES / "tiny_bert" / file, tmp_path)
    BertConfig().save_pretrained(tmp_path)
    bert = ("backbone=text", f"backbone.name={tmp_path}", "backbone.pooling=cls", "init=random", "batch_size=4")
    texts = ("data=text_table", f"data.target.root={FILES / 'reports.csv'}", "data.target.classes=[0,1]")
    components = build(compose(*bert, *texts, "data.shots=5", "strategy=lora"))
    assert sum(p.numel() for p in components.task.model.parameters() if p.requires_grad) == 294_912 + 1_538
    plain = build(compose(*bert, *texts)).task.model.backbone.body
    theirs = get_peft_model(plain, LoraConfig(r=8, target_modules=["query", "value"]))
    assert theirs.get_nb_trainable_parameters()[0] == 294_912


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_adapter_moves_and_every_weight_stays(backbone):
    run = run_of(backbone, "strategy=lora", *options_of("lora", backbone))
    before = state(build(compose(*run)).task.model)
    components, trainer = fit(compose(*run))
    changed = differing(before, state(components.task.model))
    adapters = {name for name in before if "lora_" in name}
    assert adapters
    assert changed == adapters | {name for name in before if name.startswith("heads.")}
    assert not set(trainer.optimizers[0].state) - set(components.task.model.parameters())


@pytest.mark.parametrize("backbone", ["bert", "timm_vit"])
def test_all_linear_layers_get_adapters_that_move(backbone):
    run = run_of(backbone, "strategy=lora", "strategy.targets=all-linear")
    before = state(build(compose(*run)).task.model)
    linear = [m for m in build(compose(*run_of(backbone))).task.model.backbone.modules() if isinstance(m, nn.Linear)]
    components, _ = fit(compose(*run))
    changed = differing(before, state(components.task.model))
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 2 * len(linear)
    assert adapters <= changed


def test_torchs_own_attention_reads_its_weights_and_gets_no_adapter():
    attention = nn.TransformerEncoderLayer(16, 2, 32)
    names = Peft("lora", LoraConfig(), "all-linear")._targets(attention)
    assert names == ["linear1", "linear2"]
    with pytest.raises(UsageError, match=r"strategy.targets=all-linear: this backbone has no linear layer"):
        Peft("lora", LoraConfig(), "all-linear")._targets(nn.Conv2d(3, 3, 1))


def test_biases_move_where_the_adapters_configuration_says_so():
    run = run_of("bert", "strategy=lora", "+strategy.adapter.bias=all")
    before = state(build(compose(*run)).task.model)
    components, _ = fit(compose(*run))
    changed = differing(before, state(components.task.model))
    assert {name for name in before if name.endswith("bias")} <= changed
    assert not {name for name in changed if name.endswith("base_layer.weight")}


def test_gradient_checkpointing_changes_no_gradient():
    """Also where the embeddings below are frozen, so that no input of the first layer has a gradient."""

    def gradients(*options):
        run = run_of("bert", "strategy=lora", "strategy.adapter.lora_dropout=0", "backbone.dropout=0", *options)
        components = build(compose(*run))
        components.task.train()
        components.task.training_step(next(iter(components.data.train_dataloader()))[0], 0).backward()
        return {name: p.grad for name, p in components.task.model.named_parameters() if p.requires_grad}

    plain, saving = gradients(), gradients("backbone.gradient_checkpointing=true")
    assert plain.keys() == saving.keys()
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert torch.allclose(gradient, saving[name], atol=1e-6), name
        assert gradient.any() or "lora_A" in name, "B = 0 at first lets nothing through to A"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("strategy=lora",), "looked for linear layers called query.value or q_lin.v_lin .* or qkv; this backbone's"),
        (("strategy=lora", "strategy.targets=[conv9]"), "peft refuses LoraConfig: Target modules .*conv9"),
        (
            ("strategy=peft", *BACKBONES["bert"], "batch_size=6", "strategy.adapter._target_=peft.PrefixTuningConfig"),
            "peft refuses PrefixTuningConfig: .*prompt learning",
        ),
        (("strategy=peft", "+strategy.adapter.rank=4"), "strategy: cannot build"),
    ],
)
def test_what_cannot_work_names_what_was_looked_for(options, message):
    with pytest.raises(UsageError, match=message):
        build(compose("init=random", *options))
