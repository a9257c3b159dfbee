"""The source's own run, whose weights `init=source` starts from: trained once and stored under a content key."""

from pathlib import Path

from tlexp.config.schema import NOT_HASHED, TRAINER_NOT_HASHED, Config
from tlexp.data.fingerprints import data_keys, path_key
from tlexp.fingerprint import content_key
from tlexp.version import __version__

# Where a source run takes place does not change what it learns; every other argument of the Trainer may.
PLACEMENT = ("accelerator", "devices", "strategy", "num_nodes", *TRAINER_NOT_HASHED)


def source_folder(config: Config) -> Path:
    """Returns the folder of the source's own run: a readable name and a key of everything it depends on."""
    task = config.source_task()
    trainer = {key: value for key, value in task.trainer.items() if key not in PLACEMENT}
    files = [*data_keys(task.data.target), path_key(task.init), path_key(task.backbone["name"])]
    values = {"version": __version__, **task.without(*NOT_HASHED), "trainer": trainer, "files": files}
    return Path(config.store) / f"{task.data.target['name']}-{Path(task.backbone['name']).name}-{content_key(values)}"
