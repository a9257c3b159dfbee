"""The predictions of the kept checkpoint: the logits of validation and test, a file for each domain.

    predictions_target.parquet    split, id, label, and a column `logit/CLASS` for each class

`pandas.read_parquet` reads it. Logits have half precision, which is what is left of them after training in most cases.
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from tlexp import run_folder
from tlexp.data.domains import Domain
from tlexp.fingerprint import digest
from tlexp.training.setup import RunComponents


def gather(logits: list[torch.Tensor], trainer: pl.Trainer) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions (n,) and logits (n, classes) of all processes, each of which has every world-th example.

    Args:
        logits: of this process's batches, in order.
        trainer: of the run.
    """
    own = torch.cat(logits).numpy() if logits else np.zeros((0, 0), np.float16)
    parts: list[np.ndarray] = [own]
    if trainer.world_size > 1:
        parts = [own] * trainer.world_size
        torch.distributed.all_gather_object(parts, own)
    parts = [part for part in parts if len(part)]
    positions = np.concatenate([np.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
    order = np.argsort(positions)
    return positions[order], np.concatenate(parts)[order]


def save_predictions(
    components: RunComponents, trainer: pl.Trainer, folder: Path, held_out: tuple[np.ndarray, np.ndarray] | None = None
) -> list[Path]:
    """Writes the predictions of every evaluated domain, on the first process.

    Args:
        components: of the run, whose task has kept its logits.
        trainer: of the run.
        folder: of the run.
        held_out: indices and logits of the target's validation, where other trainings than the last have made them.

    Returns:
        The files.
    """
    data, task = components.data, components.task
    domains = {**data.domains, **({"shifted": data.shifted} if data.shifted else {})}
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for key, logits in task.logits.items():
        split, role = key.split("/")
        found.setdefault(role, {})[split] = gather(logits, trainer)
    if not trainer.is_global_zero:
        return []
    by_index = {
        role: {
            split: (domains[role].indices(split)[positions], logits) for split, (positions, logits) in splits.items()
        }
        for role, splits in found.items()
    }
    if held_out is not None:
        by_index["target"] = {"val": held_out, **by_index["target"]}
    return [_write(domains[role], splits, folder / run_folder.predictions(role)) for role, splits in by_index.items()]


def _write(domain: Domain, splits: dict[str, tuple[np.ndarray, np.ndarray]], file: Path) -> Path:
    import pyarrow as pa  # only here: it takes a while to import
    from pyarrow import parquet

    inputs, classes = domain.samples.inputs, domain.samples.classes
    ids = inputs.stable_ids()
    if inputs.kind == "texts":  # which are their own ids, and may be long, or nobody else's business
        ids = [digest(text) for text in ids]
    names, examples, labels = [], [], []
    for split, (indices, _) in splits.items():
        names += [split] * len(indices)
        examples += [ids[index] for index in indices.tolist()]
        labels += [classes[label] for label in domain.samples.labels[indices].tolist()]
    logits = np.concatenate([of_split for _, of_split in splits.values()])
    columns = {"split": pa.array(names).dictionary_encode(), "id": pa.array(examples)}
    columns |= {"label": pa.array(labels).dictionary_encode()}
    columns |= {f"logit/{name}": pa.array(logits[:, index]) for index, name in enumerate(classes)}
    temporary = file.with_suffix(".tmp")
    parquet.write_table(pa.table(columns), temporary, compression="zstd")
    return temporary.replace(file)
