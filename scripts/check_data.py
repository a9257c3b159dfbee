"""Looks at data before anything trains: `python scripts/check_data.py data=folder data.target.root=FOLDER`.

It takes the options of `run.py`, reads every example once (a second time it remembers), and says what cannot be read,
how many examples each class has in each split, what is there twice and what leaks into the target's test split. The
picture goes to `data_report.png` in the folder it names. It ends with 1 or 2 where a run would refuse the data.
"""

import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tlexp import config as configuration
from tlexp.cli import CONF, explain, main


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    try:
        code = check(cfg)
    except Exception as error:
        raise SystemExit(explain(error)) from error
    if code:
        sys.exit(code)


def check(cfg: DictConfig) -> int:
    trained = OmegaConf.create({"init": "random", "alpha": 0})  # what would be trained is not asked here
    config = configuration.load(OmegaConf.merge(cfg, trained), root=Path(hydra.utils.get_original_cwd()))
    from tlexp import pictures, report
    from tlexp.assemble import cache_of, read_domain
    from tlexp.data.check import places, twins, warnings
    from tlexp.data.scan import facts

    data = config.data
    nodes = {"target": data.target} | ({"source": data.source} if data.source else {})
    strict = {role for role, node in nodes.items() if node.get("on_bad") == "error"}
    lenient = {role: node | ({"on_bad": "skip"} if role in strict else {}) for role, node in nodes.items()}
    config = replace(config, data=replace(data, **lenient))
    cache = cache_of(config)
    domains = {role: read_domain(config, role, cache) for role in nodes}
    found = {role: facts(domain.samples.inputs, cache) for role, domain in domains.items()}
    splits = places(domains, found)
    pairs = twins(splits)
    report.show_data(domains, found, warnings(domains, splits, pairs))
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    pictures.data_report(domains, found, pairs).savefig(folder / "data_report.png", dpi=110)
    report.console.print(f"picture: {folder / 'data_report.png'}", soft_wrap=True, markup=False)
    for role, domain in domains.items():
        domain.check(role)
    if refused := [role for role in strict if domains[role].samples.skipped]:
        options = " ".join(f"data.{role}.on_bad=skip" for role in refused)
        report.console.print(f"a run refuses these data: mend what cannot be read, or {options}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.argv.insert(1, "hydra.run.dir=outputs/checks/${now:%Y-%m-%d_%H-%M-%S-%f}")
    main(job)
