"""Takes screenshots of a sweep as people see it: its own page, and MLflow's page of its jobs, table and charts.

    python scripts/screenshots.py SWEEP --out docs/screenshots      (in the folder that holds mlflow.db)

Needs Chromium and its driver (`apt-get install chromium chromium-driver`) and the package selenium.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tlexp.tracking import queries
from tlexp.tracking.sweeps import job_runs, jobs_address

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
)
PATIENCE = 60.0


@contextmanager
def browser(width: int = 1500, height: int = 1000) -> Iterator[webdriver.Chrome]:
    """Opens a headless Chromium that records its console."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS.split(), f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[str]:
    """Serves the database of a folder as a user would; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    line += ["--artifacts-destination", str(folder / "mlartifacts"), "--port", str(port), "--workers", "1"]
    # Without MLflow's own job queue: eight more processes, each of which imports all of MLflow.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(line, cwd=folder, env=env, **quiet)  # type: ignore[call-overload]
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not _responds(f"{address}/health"):
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError(f"mlflow server at {address} does not respond")
            time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for_text(driver: webdriver.Chrome, text: str) -> None:
    """Waits until a page shows a text.

    Raises:
        TimeoutError: with what it shows instead.
    """
    deadline = time.monotonic() + PATIENCE
    while text not in (shown := driver.find_element(By.TAG_NAME, "body").text):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{text!r} is not on the page, which shows: {shown[:2000]}")
        time.sleep(0.3)


def wait_for_charts(driver: webdriver.Chrome, count: int) -> None:
    """Waits until as many of MLflow's charts are drawn.

    Raises:
        TimeoutError: where they are not.
    """
    deadline = time.monotonic() + PATIENCE
    while len(driver.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg, .parcoords")) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} charts")
        time.sleep(0.3)


def close_assistant(driver: webdriver.Chrome) -> None:
    """Closes the panel that MLflow opens beside its pages."""
    for button in driver.find_elements(By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']"):
        button.click()
        time.sleep(1)


def page(driver: webdriver.Chrome, file: Path) -> None:
    """Opens a sweep's own page at its full height."""
    driver.get(file.absolute().as_uri())
    driver.set_window_size(1250, driver.execute_script("return document.documentElement.scrollHeight") + 140)


def jobs_page(driver: webdriver.Chrome, address: str, run_id: str, jobs: int, charts: bool = False) -> None:
    """Opens MLflow's page of a sweep's jobs by the view that the sweep has saved, and waits until it is there."""
    driver.set_window_size(1500, 1100)
    driver.get(address + jobs_address("1", run_id, charts))
    wait_for_text(driver, f"{jobs} matching runs")
    close_assistant(driver)
    if charts:
        wait_for_charts(driver, 6)
        time.sleep(2)  # the last ones move into their places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    client, experiment = queries.open_experiment(f"sqlite:///{Path.cwd()}/mlflow.db", "tlexp")
    run = client.get_run(queries.sweep_id(client, experiment, arguments.sweep))
    jobs = len(job_runs(client, experiment, run.info.run_id))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        page(driver, Path(run.data.tags["folder"]) / "comparison.html")
        driver.save_screenshot(str(arguments.out / "comparison.png"))
        with mlflow_ui(Path.cwd()) as address:
            for name, charts in (("mlflow_jobs", False), ("mlflow_charts", True)):
                jobs_page(driver, address, run.info.run_id, jobs, charts)
                driver.save_screenshot(str(arguments.out / f"{name}.png"))


if __name__ == "__main__":
    main()
