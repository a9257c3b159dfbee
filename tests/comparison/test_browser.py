"""What people look at, opened in a browser: the page of a sweep, and MLflow's page of its jobs."""

import os
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from selenium.webdriver.common.by import By

from scripts.screenshots import browser, jobs_page, mlflow_ui, page, wait_for_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
# A folder to keep screenshots in, for people to look at.
KEPT = os.environ.get("TLEXP_SCREENSHOTS")


def test_the_pages_of_a_sweep_of_18_jobs(finished_sweep):
    client = MlflowClient(f"sqlite:///{finished_sweep}/mlflow.db")
    experiment = client.get_experiment_by_name("tlexp").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`tlexp.role` = 'sweep'")
    folder = Path(parent.data.tags["folder"])
    with browser() as driver:
        page(driver, folder / "comparison.html")
        assert "Validation recommends nothing: " in driver.find_element(By.CLASS_NAME, "summary").text
        assert len(driver.find_elements(By.CSS_SELECTOR, "#methods tbody tr")) == 3
        assert len(driver.find_elements(By.CSS_SELECTOR, "#effects tbody tr")) == 6
        assert len(driver.find_elements(By.CSS_SELECTOR, "#examples tbody tr")) == 3
        images = driver.find_elements(By.TAG_NAME, "img")
        assert {image.get_attribute("id") for image in images} == {
            "methods",
            "alpha_curve",
            "negative_transfer",
            "cost",
        }
        widths = {
            image.get_attribute("id"): image.get_property("naturalWidth") for image in images if image.is_displayed()
        }
        assert len(widths) == 4
        assert min(widths.values()) > 200
        assert not driver.get_log("browser")
        keep(driver, "page")
        with mlflow_ui(finished_sweep) as address:
            jobs_page(driver, address, parent.info.run_id, 18)
            keep(driver, "jobs")
            body = driver.find_element(By.TAG_NAME, "body").text
            assert re.search(r"(scratch|finetune|linear_probe)-a0(\.5)?-s\d", body), body
            assert {"score", "Parameters", "alpha", "seed"} <= set(body.split())
            jobs_page(driver, address, parent.info.run_id, 18, charts=True)
            assert "Sweep\n(6)" in driver.find_element(By.TAG_NAME, "body").text
            keep(driver, "charts")
            driver.get(f"{address}/#/experiments/{experiment}/runs/{parent.info.run_id}")
            wait_for_text(driver, "selected by validation")  # the table is the description of the sweep's own run
            keep(driver, "parent")
            wrong = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
            assert not [message for message in wrong if "users/current" not in message]  # MLflow asks who is there


def keep(driver, name):
    if KEPT:
        Path(KEPT).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(KEPT) / f"{name}.png"))
