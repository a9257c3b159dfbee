"""Text encoders of the BERT kind, and decoders: tokenizer, configuration and weights from one place."""

import copy
import inspect
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tlexp.backbones import hub
from tlexp.backbones.base import Stage, TextSpec, group_stages, measure_width
from tlexp.errors import UsageError

POOLINGS = ("mean", "cls", "last", "pooler")
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)
LAST = ("pooler", "norm", "final_norm", "final_layer_norm", "ln_f")  # what follows the layers
NO_CODE = {"trust_remote_code": False}  # else a repository may ask, at a prompt, to run its own code
TEXTS = ("an example", "the others", "0")  # which begin alike only where a special token comes first
LONGEST = 512  # where neither tokenizer nor encoder names a limit


class TextBackbone(nn.Module):
    """An encoder of the transformers library that maps each text to one vector.

    Args:
        name: a folder with configuration, tokenizer and weights, or a model's name on the hub.
        pooling: `mean` over the tokens of a text, `cls` for the first token, `last` for the last one, which is the one
            that has seen all of a text in a decoder such as GPT-2, or `pooler` for the encoder's own layer on top of
            the first, which is built for this choice only.
        max_length: tokens per text, special ones included; None for the encoder's maximum.
        dropout: None for the encoder's own.
        gradient_checkpointing: recomputes activations in the backward pass to save memory.
        files: the text files of configuration and tokenizer that a checkpoint carries; None reads them from `name`. A
            checkpoint can thus be used where the encoder's folder or the hub cannot be reached.

    Raises:
        UsageError: for a name that leads nowhere, a model that is no encoder, an option that it does not have, or a
            first token that says nothing about the text.
    """

    def __init__(
        self,
        name: str,
        pooling: str = "mean",
        max_length: int | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        files: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UsageError(f"backbone.pooling={pooling}: choose one of {', '.join(POOLINGS)}")
        _quiet()
        self.name, self.pooling = name, pooling
        self.config, tokenizer = _from_files(files) if files else _from_name(name)
        if getattr(self.config, "is_encoder_decoder", False):
            raise UsageError(
                f"backbone.name={name}: not an encoder of texts but one with a decoder; choose a BERT-type"
            )
        self.built = copy.deepcopy(self.config)
        if dropout is not None:
            _set_dropout(self.built, dropout)
        self.body = self._bare(AutoModel.from_config(self.built))
        self.prefixes = (f"{self.body.base_model_prefix}.",)
        self.input = TextSpec(tokenizer, self._length(tokenizer, max_length))
        if gradient_checkpointing:
            self.body.activation_checkpointing_enable({"use_reentrant": False})
        try:
            without_values = next(self.body.parameters()).is_meta  # only its size is wanted
            causal = not without_values and self._is_causal()
            # Other encoders count positions in ways of their own.
            self._takes_positions = causal and "position_ids" in inspect.signature(self.body.forward).parameters
            self.num_features = self.config.hidden_size if without_values else measure_width(self, self.input)
        except (AttributeError, TypeError, ValueError) as error:
            reason = hub.first_sentence(error)
            raise UsageError(f"backbone.name={name}: not an encoder of texts ({reason}); choose a BERT-type") from error
        starts = {tokenizer(text)["input_ids"][0] for text in TEXTS}
        if pooling in ("cls", "pooler") and (causal or len(starts) > 1):
            reason = "has seen nothing of the text" if causal else "is a word like any other"
            raise UsageError(f"backbone.pooling={pooling}: the first token of {name} {reason}; use last or mean")

    def _is_causal(self) -> bool:
        """Returns whether tokens see none of those after them: the first is then the same whatever follows."""
        size = self.body.get_input_embeddings().num_embeddings
        inputs = torch.tensor([[size // 2, size // 3, size // 3], [size // 2, size // 4, size // 4]])
        training = self.training
        with torch.no_grad():
            first = self.eval().body(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state[:, 0]
        self.train(training)
        return torch.allclose(first[0], first[1], atol=1e-6)

    def _bare(self, body: Any) -> Any:
        """Removes the pooler where it is not used: a parameter without gradient would make DDP fail."""
        if self.pooling == "pooler" and getattr(body, "pooler", None) is None:
            raise UsageError(f"backbone.pooling=pooler: {self.name} has no pooler; use mean or cls")
        if self.pooling != "pooler" and hasattr(body, "pooler"):
            body.pooler = None
        return body.float()

    def _length(self, tokenizer: Any, wanted: int | None) -> int:
        most = getattr(self.config, "max_position_embeddings", None) or LONGEST
        for name, module in self.body.named_modules():
            if isinstance(module, nn.Embedding) and "position" in name and "relative" not in name:
                # Where padding has a position of its own, as in RoBERTa, those up to it hold no token.
                most = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        most = min(tokenizer.model_max_length, most if most > 0 else LONGEST)
        if wanted is not None and not 3 <= wanted <= most:
            remedy = f"must lie between 3 and the {most} tokens that {self.name} takes"
            raise UsageError(f"backbone.max_length={wanted}: {remedy}")
        return wanted or most

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Maps `input_ids` and `attention_mask`, (batch, tokens) padded on either side, to (batch, num_features)."""
        mask = x["attention_mask"]
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self._takes_positions else {}
        output = self.body(**x, **positions)
        if self.pooling == "pooler":
            return output.pooler_output  # type: ignore[no-any-return]
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
            return hidden[torch.arange(len(hidden), device=mask.device), last]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    def stages(self) -> list[Stage]:
        """The embeddings and all that every layer shares, then each layer; what comes after belongs to the last."""
        names = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        lists = [(name, child) for name, child in self.named_modules() if isinstance(child, nn.ModuleList)]
        path = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))[0]
        stage_of: dict[str, str] = {}
        within = [name for name in names if name.startswith(f"{path}.")]
        order = list(dict.fromkeys(f"layer.{name[len(path) + 1 :].split('.')[0]}" for name in within))
        for name in names:
            if name in within:
                stage_of[name] = f"layer.{name[len(path) + 1 :].split('.')[0]}"
            else:
                stage_of[name] = order[-1] if set(name.split(".")) & set(LAST) else "embeddings"
        return group_stages(self, stage_of, ["embeddings", *order])

    def pretrained_state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Returns the published weights under this module's own names.

        Raises:
            UsageError: where they are neither in the folder, nor in the local cache, nor to be fetched.
        """
        try:
            with hub.offline(unless=not Path(self.name).is_dir()):
                offline = constants.HF_HUB_OFFLINE
                model = AutoModel.from_pretrained(self.name, config=self.built, local_files_only=offline, **NO_CODE)
        except Exception as error:  # the hub's client raises a dozen kinds, all of them meaning the same here
            raise UsageError(f"init=pretrained: the weights of {_nowhere(self.name, error)}") from error
        return {f"body.{name}": tensor for name, tensor in self._bare(model).state_dict().items()}, []

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside weights: the files of configuration and tokenizer, name to content."""
        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            self.input.tokenizer.save_pretrained(folder)
            texts = [path for path in sorted(Path(folder).iterdir()) if path.suffix in (".json", ".txt", ".jinja")]
            return {"carried": {path.name: path.read_text("utf-8") for path in texts}}


def _from_name(name: str) -> tuple[Any, Any]:
    offline = constants.HF_HUB_OFFLINE or Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=offline, **NO_CODE)
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, local_files_only=offline, **NO_CODE)
    except Exception as error:  # see above
        raise UsageError(f"backbone.name={name}: configuration and tokenizer of {_nowhere(name, error)}") from error
    return config, tokenizer


def _from_files(files: Mapping[str, str]) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_text(content, "utf-8")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE)
        return config, AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, **NO_CODE)


def _nowhere(name: str, error: BaseException) -> str:
    reason, remedy = hub.first_sentence(error), "give a local folder as backbone.name=FOLDER"
    if Path(name).is_dir():
        return f"the folder {name} cannot be read ({reason}); it needs those of save_pretrained"
    if constants.HF_HUB_OFFLINE:
        reason = "only init=pretrained asks the hub, and only while it answers"
    return f"{name} are neither in the local cache nor to be fetched ({reason}); {remedy}"


def _set_dropout(config: Any, dropout: float) -> None:
    known = [name for name in DROPOUTS if hasattr(config, name)]
    if not known or not 0 <= dropout < 1:
        raise UsageError(f"backbone.dropout={dropout}: must lie in [0, 1), and the encoder must have some")
    for name in known:
        setattr(config, name, dropout)


def _quiet() -> None:
    """Keeps transformers from printing what our own report shows."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
