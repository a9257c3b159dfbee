"""Text encoders: one place for everything, honest lengths, no idle parameters, and checkpoints that stand alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)

from tests.helpers import BACKBONES, FILES, compose, differing, random_inputs, state
from tlexp import run_folder
from tlexp.backbones.text import TextBackbone
from tlexp.backbones.weights import load_backbone, read_checkpoint
from tlexp.errors import UsageError
from tlexp.reporting.run_report import data_table
from tlexp.runs.build import build
from tlexp.runs.run import run as run_config

TINY = str(FILES / "tiny_bert")


@pytest.fixture
def bert(tmp_path):
    """Returns a function that makes a folder as `save_pretrained` would: configuration, tokenizer, random weights."""

    def make(config=None, name="bert"):
        folder = tmp_path / name
        shutil.copytree(TINY, folder)
        config = config or BertConfig.from_pretrained(TINY)
        config.save_pretrained(folder)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache and no address that answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")


# Lengths and padding ------------------------------------------------------------------------------------------


def test_a_batch_is_as_wide_as_its_longest_text():
    spec = TextBackbone(TINY).input
    ids, cut = spec.tokens(["good", "a very good old engine", "bread"])
    assert ([len(row) for row in ids], cut) == ([3, 7, 3], 0)
    batch = spec.padded([ids[0], ids[2]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3)
    batch = spec.padded(ids)
    assert batch["input_ids"].shape == (3, 7)
    assert batch["attention_mask"].sum(1).tolist() == [3, 7, 3]
    assert (batch["input_ids"][0, 3:] == spec.tokenizer.pad_token_id).all()


def test_long_texts_are_cut_counted_and_reported():
    spec = TextBackbone(TINY, max_length=8).input
    ids, cut = spec.tokens(["good " * 6, "good " * 7, "good " * 100])
    assert ([len(row) for row in ids], cut) == ([8, 8, 8], 2)
    assert (ids[2][0], ids[2][-1]) == (spec.tokenizer.cls_token_id, spec.tokenizer.sep_token_id)
    components = build(compose(*BACKBONES["bert"], "init=random", "backbone.max_length=7", "batch_size=6", "alpha=0.5"))
    shown = data_table(components.data).caption
    for role, file in (("source", "letters"), ("target", "reports")):
        lines = (FILES / f"{file}.csv").read_text().splitlines()[1:]
        longer = sum(len(components.data.spec.tokenizer(line.rsplit(",", 1)[0])["input_ids"]) > 7 for line in lines)
        if role == "target":  # a budget leaves most texts out of training, and those are not read
            chosen = components.data.domains["target"].split
            used = [*chosen.train, *chosen.val, *chosen.test]
            longer = sum(len(components.data.spec.tokenizer(lines[i].rsplit(",", 1)[0])["input_ids"]) > 7 for i in used)
        assert components.data.truncated(role) == longer > 0
        assert f"{longer} texts of the {role} are truncated" in shown


def test_padding_and_batch_mates_do_not_change_a_texts_features():
    backbone = TextBackbone(TINY).eval()
    long, short = "a very good old engine with two small wheel", "good bread"
    with torch.no_grad():
        for pooling in ("mean", "cls"):
            backbone.pooling = pooling
            alone = backbone(backbone.input.padded(backbone.input.tokens([short])[0]))
            beside = backbone(backbone.input.padded(backbone.input.tokens([long, short])[0]))[1:]
            assert torch.allclose(alone, beside, atol=1e-5)


@pytest.mark.parametrize(("length", "limits"), [(33, "between 3 and the 32 tokens"), (2, "between 3 and the 32")])
def test_lengths_that_the_encoder_does_not_have_are_refused(length, limits):
    with pytest.raises(UsageError, match=f"backbone.max_length={length}: must lie {limits}"):
        TextBackbone(TINY, max_length=length)


# Pooling and stages -------------------------------------------------------------------------------------------


def test_poolings_are_what_they_say():
    torch.manual_seed(0)
    backbone = TextBackbone(TINY, pooling="pooler").eval()
    inputs = random_inputs(backbone.input, 4)
    with torch.no_grad():
        output = backbone.body(**inputs)
        features = {}
        for pooling in ("mean", "cls", "pooler"):
            backbone.pooling = pooling
            features[pooling] = backbone(inputs)
    hidden, lengths = output.last_hidden_state, inputs["attention_mask"].sum(1)
    by_hand = torch.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
    assert torch.allclose(features["mean"], by_hand, atol=1e-6)
    assert torch.equal(features["cls"], hidden[:, 0])
    assert torch.equal(features["pooler"], output.pooler_output)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_every_parameter_gets_a_gradient(pooling):
    """A pooler that is built and not used would stop several processes."""
    backbone = TextBackbone(TINY, pooling=pooling)
    backbone.train()(random_inputs(backbone.input, 4)).square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]
    assert any("pooler" in name for name, _ in backbone.named_parameters()) == (pooling == "pooler")


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "bert": BertConfig(vocab_size=43, max_position_embeddings=32, **SMALL),
    "roberta": RobertaConfig(vocab_size=43, max_position_embeddings=34, pad_token_id=1, **SMALL),
    "distilbert": DistilBertConfig(
        vocab_size=43, max_position_embeddings=32, dim=32, n_layers=3, n_heads=2, hidden_dim=48
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_the_embeddings_and_each_layer(bert, family):
    backbone = TextBackbone(bert(FAMILIES[family]))
    stages = backbone.stages()
    assert [stage.name for stage in stages] == ["embeddings", "layer.0", "layer.1", "layer.2"]
    for kind in ("parameters", "buffers"):
        owned = [name for stage in stages for name in getattr(stage, kind)]
        assert sorted(owned) == sorted(name for name, _ in getattr(backbone, f"named_{kind}")())
    backbone(random_inputs(backbone.input, 3)).sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_what_all_layers_share_is_frozen_with_the_first(bert):
    """DeBERTa's relative positions and their norm act in every layer."""
    config = DebertaV2Config(
        vocab_size=43, max_position_embeddings=32, relative_attention=True, norm_rel_ebd="layer_norm", **SMALL
    )
    backbone = TextBackbone(bert(config))
    first, *_, last = backbone.stages()
    assert {"body.encoder.rel_embeddings.weight", "body.encoder.LayerNorm.weight"} <= set(first.parameters)
    assert all(".encoder.layer.2." in name for name in last.parameters)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (RobertaConfig(vocab_size=43, max_position_embeddings=34, pad_token_id=1), 32),
        (BertConfig(vocab_size=43, max_position_embeddings=20), 20),
    ],
)
def test_the_longest_text_is_as_long_as_there_are_positions(bert, config, length):
    config.update(SMALL)
    backbone = TextBackbone(bert(config))
    assert backbone.input.max_length == length
    backbone(backbone.input.padded(backbone.input.tokens(["good " * 50])[0]))


def test_what_is_no_encoder_is_refused(bert):
    config = T5Config(vocab_size=43, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(UsageError, match="not an encoder of texts"):
        TextBackbone(bert(config))
    with pytest.raises(UsageError, match="has no pooler"):
        TextBackbone(bert(FAMILIES["distilbert"], "distil"), pooling="pooler")
    with pytest.raises(UsageError, match=r"backbone\.pooling=max: choose one of mean, cls, last, pooler"):
        TextBackbone(TINY, pooling="max")


DECODERS = {
    "gpt2": GPT2Config(vocab_size=43, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5),
    "llama": LlamaConfig(
        vocab_size=43, max_position_embeddings=32, num_key_value_heads=1, initializer_range=0.5, **SMALL
    ),
    "bert": BertConfig(vocab_size=43, max_position_embeddings=32, is_decoder=True, initializer_range=0.5, **SMALL),
}


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_read_at_its_last_token(bert, family):
    """Its first token sees nothing of the text: all features would be equal."""
    folder = bert(DECODERS[family])
    for pooling in ("cls", "pooler") if family == "bert" else ("cls",):
        message = f"backbone.pooling={pooling}: the first token of .* has seen nothing of the text; use last or mean"
        with pytest.raises(UsageError, match=message):
            TextBackbone(folder, pooling=pooling)
    torch.manual_seed(0)
    backbone = TextBackbone(folder, pooling="last").eval()
    texts = ["a very good old engine with two small wheel", "good bread", "bad bread"]
    rows = backbone.input.tokens(texts)[0]
    with torch.no_grad():
        alone = torch.cat([backbone(backbone.input.padded([row])) for row in rows])
        right = backbone(backbone.input.padded(rows))
        width = max(map(len, rows))
        left = backbone(
            {
                "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
                "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            }
        )
    assert torch.allclose(right, alone, atol=1e-4)
    assert torch.allclose(left, alone, atol=1e-4)
    assert not torch.allclose(alone[1], alone[2], atol=1e-2)


def test_a_first_token_that_is_a_word_stands_for_no_text(bert):
    """XLNet has its class token last."""
    folder = Path(bert(FAMILIES["distilbert"]))
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["post_processor"] = None
    file.write_text(json.dumps(rules))
    with pytest.raises(UsageError, match=r"the first token of .* is a word like any other; use last or mean"):
        TextBackbone(str(folder), pooling="cls")
    assert TextBackbone(str(folder)).num_features == 32


def test_dropout_is_the_encoders_own_or_as_given():
    assert {m.p for m in TextBackbone(TINY).modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert {m.p for m in TextBackbone(TINY, dropout=0.3).modules() if isinstance(m, nn.Dropout)} == {0.3}
    with pytest.raises(UsageError, match=r"backbone.dropout=1: must lie in"):
        TextBackbone(TINY, dropout=1)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(frozen):
    """Frozen embeddings ask for no gradient; the layers above must still get theirs."""
    torch.manual_seed(0)
    plain, saving = TextBackbone(TINY, dropout=0.0), TextBackbone(TINY, dropout=0.0, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    inputs = random_inputs(plain.input, 4)
    still = set(plain.stages()[0].parameters) if frozen else set()
    for backbone in (plain, saving):
        for name in still:
            backbone.get_parameter(name).requires_grad_(False)
        backbone.train()(inputs).square().sum().backward()
    ours, theirs = dict(saving.named_parameters()), dict(plain.named_parameters())
    assert all((ours[name].grad is None) == (name in still) for name in ours)
    assert all(torch.allclose(ours[name].grad, theirs[name].grad, atol=1e-5) for name in ours if name not in still)


# Weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_its_own_weights_whole(bert, family):
    folder = bert(FAMILIES[family])
    overrides = (*BACKBONES["bert"], f"backbone.name={folder}", "init=pretrained", "batch_size=6")
    components = build(compose(*overrides))
    assert components.start.weights.loaded == components.start.weights.total
    published = AutoModel.from_pretrained(folder).state_dict()
    ours = components.task.model.backbone.body.state_dict()
    assert all(torch.equal(ours[name], published[name]) for name in ours)
    assert {name for name in published if name not in ours} <= {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert.", "module.bert."])
def test_weights_of_a_task_model_arrive_whatever_is_in_front(tmp_path, prefix):
    a, b = TextBackbone(TINY), TextBackbone(TINY)
    bare = {name.removeprefix("body."): tensor for name, tensor in a.state_dict().items()}
    torch.save({f"{prefix}{name}": tensor for name, tensor in bare.items()}, tmp_path / "task.pth")
    tensors, _ = read_checkpoint(tmp_path / "task.pth")
    assert load_backbone(b, tensors, "a task", allow_partial=False).loaded == len(bare)
    assert not differing(state(a), state(b))


def test_what_cannot_be_reached_is_said_in_one_line(no_hub, tmp_path):
    run = (*BACKBONES["bert"], "batch_size=6", "backbone.name=nobody/no-bert")
    for init in ("pretrained", "random"):
        with pytest.raises(UsageError, match=r"nor to be fetched .only init=pretrained asks the hub, and") as caught:
            build(compose(*run, f"init={init}"))
        assert "give a local folder as backbone.name=FOLDER" in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        build(compose(*run[:-1], f"backbone.name={tmp_path / 'empty'}", "init=random"))


def test_a_checkpoint_carries_what_its_encoder_needs(run_job, bert, no_hub):
    """The folder it came from may be gone: configuration and tokenizer are in the checkpoint."""
    folder = bert()
    run = (*BACKBONES["bert"], f"backbone.name={folder}", "batch_size=6", "epochs=1")
    first = run_job(*run, "backbone.dropout=0.3", "init=pretrained", "strategy=finetune", "lr=0.01")
    card = torch.load(first["checkpoint"], weights_only=True)["tlexp"]
    assert card["input"] == {"kind": "texts", "tokenizer": "TokenizersBackend", "max_length": 32}
    assert json.loads(card["carried"]["config.json"])["hidden_size"] == 32
    assert "tokenizer.json" in card["carried"]
    assert json.loads(card["carried"]["config.json"])["hidden_dropout_prob"] == 0.1, "the encoder's own, not the run's"
    shutil.rmtree(folder)
    run = tuple(option.replace(folder, "elsewhere/bert") for option in run)
    again = run_job(*run, f"init={first['checkpoint']}", "strategy=linear_probe")
    assert again["weights"].startswith(f"{first['checkpoint']}: {len(state(TextBackbone(TINY).body)) - 2} of")
    with pytest.raises(UsageError, match="only init=pretrained asks the hub"):
        run_job(*run, "init=random")


def test_the_sources_own_run_may_start_from_published_weights(bert, tmp_path):
    """init=source then means: pretrained, trained on the source, and from there to the target."""
    run = (*BACKBONES["bert"], f"backbone.name={bert()}", "init=source", "pretrain.init=pretrained", "epochs=1")
    config = compose(*run, "batch_size=6", "pretrain.lr=1e-9", f"store={tmp_path}/own", root=tmp_path)
    run_config(config, tmp_path / "run")
    (source,) = (tmp_path / "own").glob("*/metrics.json")
    assert json.loads(source.read_text())["weights"].startswith("pretrained: ")
    assert run_folder.read_metrics(tmp_path / "run")["weights"].startswith("source letters: ")


# Known counts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """BERT-base without its weights: transformers' default configuration is that of bert-base-uncased."""
    folder = tmp_path_factory.mktemp("base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FILES / "tiny_bert" / file, folder)
    BertConfig().save_pretrained(folder)
    return str(folder)


def test_known_counts_of_bert_base_with_two_classes(base):
    """With the pooler that the published classifier uses; without it 590,592 fewer."""
    backbone = TextBackbone(base, pooling="pooler")
    count = sum(p.numel() for p in backbone.parameters())
    biases = sum(p.numel() for name, p in backbone.named_parameters() if name.endswith("bias"))
    head = nn.Linear(backbone.num_features, 2)
    assert count + sum(p.numel() for p in head.parameters()) == 109_483_778
    assert biases == 102_912
    assert round(100 * biases / 109_483_778, 4) == 0.0940
    assert sum(p.numel() for p in TextBackbone(base).parameters()) == count - 590_592


def test_known_counts_of_lora_on_bert_base(base):
    """Rank 8 on queries and values: r * (768 + 768) for each of 2 * 12 matrices, and the head."""
    from peft import LoraConfig, inject_adapter_in_model

    backbone = TextBackbone(base)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]), backbone.body)
    trainable = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert trainable == 8 * (768 + 768) * 2 * 12 == 294_912
    assert trainable + sum(p.numel() for p in nn.Linear(768, 2).parameters()) == 296_450
