"""What is installed is what works, from any folder and with a user's own options."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import QUICK, ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment that holds the built wheel; dependencies are lent by the one that tests run in."""
    base = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(base / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)  # an sdist, and the wheel from it
    venv.create(base / "venv", with_pip=True)
    python = base / "venv/bin/python"
    (wheel,) = (base / "dist").glob("*.whl")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    path = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    lent = Path(path.stdout.decode().strip()) / "zz_lent.pth"
    lent.write_text(sysconfig.get_path("purelib") + "\n")
    return base


def tlexp(installed: Path, *arguments: str, cwd: Path, command: str = "tlexp") -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(installed / "venv/bin" / command), *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


def test_the_wheel_holds_every_option(installed):
    (wheel,) = (installed / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for option in (ROOT / "conf").rglob("*.yaml"):
        assert f"tlexp/{option.relative_to(ROOT)}" in names


@pytest.mark.slow
def test_the_command_works_from_any_folder_with_a_users_own_options(installed, tmp_path):
    help_text = tlexp(installed, "--help", cwd=tmp_path).stdout
    assert "strategy: bitfit, closed_probe" in help_text
    assert "\n  tlexp strategy=finetune alpha=0.5\n" in help_text, "the name it was called by"
    (tmp_path / "mine/strategy").mkdir(parents=True)
    (tmp_path / "mine/strategy/gentle.yaml").write_text(
        "# @package _global_\ndefaults: [finetune]\nstrategy: {name: gentle, backbone_lr_mult: 0.01}\n"
    )
    options = ("--config-dir", "mine", "-m", "strategy=gentle", "alpha=0,0.5", *QUICK, "init=random", "epochs=1")
    done = tlexp(installed, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("target test accuracy") == 2
    assert len(list((tmp_path / "outputs/jobs").glob("gentle-*/metrics.json"))) == 2
    assert list((tmp_path / "outputs/sweeps").glob("*/comparison.html"))
    for name, said in (("compare", "2 jobs"), ("check-data", "digits"), ("import-weights --help", "lite0.safetensors")):
        done = tlexp(installed, *name.split()[1:], cwd=tmp_path, command=f"tlexp-{name.split()[0]}")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    code = "import tlexp; print(tlexp.__file__)"
    path = subprocess.run([installed / "venv/bin/python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert str(installed) in path.stdout, "the checkout was tested instead"
