"""Checks data before anything trains: `tlexp-check-data data=images data.target.root=FOLDER`.

Takes the options of `tlexp`, reads every example once (the cache remembers), and reports what cannot be read, how many
examples each class has in each split, duplicates, and leakage into the target's test split. The figure is
`data_report.png` in the folder it names. Exits with 1 or 2 where a run would refuse the data.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tlexp import cli
from tlexp.config.load import CONF, load


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    """Checks the data of a configuration under Hydra."""
    try:
        code = check(cfg)
    except Exception as error:
        raise SystemExit(cli.report_error(error)) from error
    if code:
        sys.exit(code)


def check(cfg: DictConfig) -> int:
    """Prints the report, draws the figure, and returns the exit code.

    Raises:
        UsageError: for data that cannot be read or split.
    """
    no_training = OmegaConf.create({"init": "random", "alpha": 0})
    merged = OmegaConf.merge(cfg, no_training)
    assert isinstance(merged, DictConfig)
    config = load(merged, root=Path(hydra.utils.get_original_cwd()))
    from tlexp.data.quality.leakage import find_duplicates, find_warnings, split_examples
    from tlexp.data.quality.scan import facts
    from tlexp.reporting import figures
    from tlexp.reporting.console import terminal
    from tlexp.reporting.data_report import print_data_report
    from tlexp.reporting.fonts import make_readable
    from tlexp.runs.domains import open_cache, read_domain

    console = terminal()
    data = config.data
    nodes = {"target": data.target} | ({"source": data.source} if data.source else {})
    strict = {role for role, node in nodes.items() if node.get("on_bad") == "error"}
    lenient: dict[str, Any] = {
        role: node | ({"on_bad": "skip"} if role in strict else {}) for role, node in nodes.items()
    }
    config = replace(config, data=replace(data, **lenient))
    cache = open_cache(config)
    domains = {role: read_domain(config, role, cache) for role in nodes}
    measured = {role: facts(domain.samples.inputs, cache) for role, domain in domains.items()}
    splits = split_examples(domains, measured)
    duplicates = find_duplicates(splits)
    print_data_report(domains, measured, find_warnings(domains, splits, duplicates), console)
    folder = Path(HydraConfig.get().runtime.output_dir).absolute()
    figure = figures.data_report(domains, measured, duplicates)
    make_readable(figure)
    figure.savefig(folder / "data_report.png", dpi=110)
    console.print(f"figure: {folder / 'data_report.png'}", soft_wrap=True, markup=False)
    for role, domain in domains.items():
        domain.check(role)
    if refused := [role for role in strict if domains[role].samples.skipped]:
        options = " ".join(f"data.{role}.on_bad=skip" for role in refused)
        console.print(f"a run refuses these data: fix or remove what cannot be read, or set {options}", markup=False)
        return 1
    return 0


def main() -> None:
    """Entry point."""
    sys.argv.insert(1, "hydra.run.dir=outputs/checks/${now:%Y-%m-%d_%H-%M-%S-%f}")
    cli.main(job, __doc__)


if __name__ == "__main__":
    main()
