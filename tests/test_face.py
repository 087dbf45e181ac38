"""`make ui` in a real browser: the pages of Dagster and MLflow, from the graph to the model and back. HTML, links and
escape sequences in text and recipe are displayed as plain text.

To take the pictures of README and docs, from the recipe `demo`:

    BERT_PIPELINE_PICTURES=docs/images python -m pytest -m slow tests/test_face.py
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from servers import ROOT, Servers, answers, changed, free_port

pytest.importorskip("selenium")
from browser import Browser, says

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("BERT_PIPELINE_PICTURES")
RECIPE = "demo" if PICTURES else "face"
SECONDS_TO_RUN = 1500.0

HOSTILE = (
    "Aspirin <img src=x onerror=window.forged=1> <script>window.forged=1</script> [relieved](javascript:forged=1) "
    "```` \x1b[31m=HYPERLINK(1)"
)
SENTENCES = "Aspirin relieved pain in group {}. It was well tolerated by {} patients. Atenolol lowered the rate."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("face")


@pytest.fixture(scope="module")
def recipes(folder):
    """The tiny recipe, named `face`, with hostile text and description."""
    texts = [SENTENCES.format(n, n % 9) + (f" {HOSTILE}" if n < 20 else "") for n in range(300)]
    documents = [{"id": f"{n} {HOSTILE}", "text": text} for n, text in enumerate(texts)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(f"{json.dumps(each)}\n" for each in documents))
    tiny = (ROOT / "tests" / "orchestration" / "recipes" / "tiny.toml").read_text()
    hostile = {
        "description = ": f"description = {json.dumps(HOSTILE)} #",
        'source = "sample"\nsample_documents = 200': f'path = {json.dumps(str(corpus))}\nid_field = "id"',
        "vocab_size = 600": "vocab_size = 150",
    }
    (folder / "recipes").mkdir()
    (folder / "recipes" / "face.toml").write_text(changed(tiny, **hostile))
    return folder / "recipes"


@pytest.fixture(scope="module")
def pages(folder, recipes):
    """`make ui` on free ports; returns the addresses of Dagster and MLflow."""
    dagster, mlflow = free_port(), free_port()
    ports = f"bert-pipeline ui --dagster-port {dagster} --mlflow-port {mlflow}\n"
    (folder / "Makefile").write_text(changed((ROOT / "Makefile").read_text(), **{"bert-pipeline ui\n": ports}))
    command = ["make", "-C", str(ROOT), "-f", str(folder / "Makefile"), "-o", ".venv/installed", "ui"]
    settings = [f"BERT_PIPELINE_HOME={folder / 'home'}", f"VIRTUAL_ENV={Path(sys.executable).parents[1]}"]
    urls = {"dagster": f"http://127.0.0.1:{dagster}", "mlflow": f"http://127.0.0.1:{mlflow}"}
    environment = {f"BERT_PIPELINE_{name.upper()}_URL": url for name, url in urls.items()}
    servers = Servers(folder)
    try:
        servers.start(
            *("ui", command + settings), PYTHONPATH=str(ROOT), BERT_PIPELINE_RECIPES=str(recipes), **environment
        )
        servers.wait("ui", answers(dagster, "/server_info"))
        servers.wait("ui", answers(mlflow, "/health"))
        yield urls
    finally:
        servers.stop()


@pytest.fixture(scope="module")
def browser(folder, pages):
    programs = [shutil.which(name) or pytest.skip(f"{name} is not installed") for name in ("chromium", "chromedriver")]
    browser = Browser(*programs, folder / "profile", PICTURES)
    try:
        browser.resize(1400, 900)
        browser.open(pages["mlflow"])
        browser.click("//*[@data-component-id='mlflow.assistant.chat_panel.close']")  # it covers a quarter of the page
        yield browser
    finally:
        browser.stop()


@pytest.fixture(scope="module")
def run(browser, pages):
    """The address of the run that materialized all assets, started by clicks in the graph."""
    browser.open(f"{pages['dagster']}/asset-groups")
    for group in ("data", "training", "evaluation", "evaluation_tasks", "registry"):
        browser.look(says(group))
    browser.click("//button[contains(., 'Materialize all')]")
    browser.click(says("Select a partition or create one"))
    browser.write("//input[@placeholder='Filter partitions']", RECIPE)  # the list draws only the rows in sight
    browser.click(says(RECIPE, "span"))
    browser.click("//*[contains(text(), 'Launch runs to materialize')]")  # this closes the list
    browser.click("//button[contains(., 'Launch 1 run')]")
    browser.follow("//a[contains(@href, '/runs/')]")
    browser.arrives("/runs/")
    browser.look(says("Success"), SECONDS_TO_RUN)
    return browser.driver.current_url.partition("?")[0]


def no_script_ran(browser) -> bool:
    return browser.driver.execute_script("return window.forged") is None and not browser.shown("//img[@src='x']")


def test_the_graph_shows_all_assets(browser, pages, run):
    groups = ",".join(f"global@global:{group}" for group in ("data", "training", "evaluation", "registry"))
    browser.resize(1700, 760)
    browser.open(f"{pages['dagster']}/asset-groups?expanded={groups.replace('@', '%40').replace(':', '%3A')}")
    for asset in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset", "evaluations", "registered_model"):
        browser.look(says(asset))
    browser.click("//button[contains(., 'Hide navigation')]")
    browser.click("//button[.//*[@aria-label='panel_show_right']]")
    browser.keep("graph", 1500, 740)


def test_the_page_of_a_run_shows_its_steps(browser, run):
    browser.resize(1400, 900)
    browser.open(run)
    browser.read("raw_corpus")
    browser.read("Finished execution of run")
    browser.keep("run", 1500, 1000)


def test_from_an_asset_to_its_run_in_mlflow_and_back(browser, pages, run):
    browser.open(f"{pages['dagster']}/assets/pretrained_checkpoint")
    for text in ("The BERT trained on masked tokens and next sentences", "PyTorch", "nlp", "mlflow_run", "loss_curve"):
        browser.read(text)
    browser.keep("asset", 1500, 1000)
    browser.click("//tr[contains(., 'loss_curve')]//*[contains(text(), 'Show Markdown')]")
    browser.look("//img[starts-with(@src, 'data:image/png;base64,')]")
    browser.keep("asset-picture", 1500, 1000)
    browser.click("//button[contains(., 'Close') or contains(., 'Done')]")
    browser.follow("//a[contains(@href, '/runs/') and contains(@href, '#/experiments/')]")
    browser.read(f"{RECIPE} pretrained_checkpoint")
    browser.read("Made by asset pretrained_checkpoint")
    assert no_script_ran(browser)
    browser.keep("mlflow-run", 1400, 1000)
    browser.click(says("Model metrics"))
    browser.look(says("curves"))
    browser.keep("mlflow-charts", 1500, 1100)
    browser.click(says("Overview"))
    browser.follow(f"//a[contains(@href, '{pages['dagster']}/runs/')]")
    browser.arrives(run.rpartition("/")[2])
    browser.look(says("Success"))


def test_evaluations_are_nested_under_their_training(browser, pages, run):
    browser.open(f"{pages['mlflow']}/#/experiments/1/runs?workflowType=machine_learning")
    training, below = f"{RECIPE} pretrained_checkpoint", f"sample-chem of {RECIPE}"
    browser.look(says(training))
    assert not browser.shown(says(below))
    browser.click(f"//*[@role='gridcell'][.{says(training)}]//button")
    browser.look(says(below))
    browser.keep("mlflow-runs", 1500, 600)
    browser.follow(says(below))
    browser.read("Parent run")
    browser.follow(says(training, "a"))
    browser.read("Child runs")


def test_from_the_registered_model_to_its_version_its_training_and_back(browser, pages, run):
    browser.open(f"{pages['dagster']}/assets/registered_model?view=partitions&partition={RECIPE}")
    browser.follow("//a[contains(@href, '#/models/')]")
    browser.read("Version 1")
    browser.look(says("Limits", "h2"))
    browser.read("fine-tuning")
    assert "library_name" not in browser.text and no_script_ran(browser)
    browser.keep("mlflow-version", 1400, 1100)
    browser.follow(f"//a[contains(@href, '{pages['dagster']}/assets/registered_model')]")
    browser.read("mlflow_model")
    browser.close_tab()
    browser.follow(f"//a[normalize-space(text())='{RECIPE} pretrained_checkpoint']")
    browser.follow(f"//a[contains(@href, '{pages['dagster']}/assets/pretrained_checkpoint')]")
    browser.read("loss_curve")


@pytest.mark.skipif(RECIPE == "demo", reason="the text of `demo` is generated")
def test_hostile_text_is_displayed_as_text(browser, pages, run):
    browser.open(f"{pages['dagster']}/assets/raw_corpus?view=partitions&partition={RECIPE}")
    browser.read("<script>window.forged=1</script> [relieved](javascript:forged=1)")
    browser.click("//tr[contains(., 'data_card')]//*[contains(text(), 'Show Markdown')]")
    browser.look("//img[starts-with(@src, 'data:image/png;base64,')]")
    assert no_script_ran(browser)
    browser.open(f"{pages['mlflow']}/#/models/bert-{RECIPE}?workflowType=machine_learning")
    browser.read("HYPERLINK")
    assert no_script_ran(browser) and not browser.shown("//a[starts-with(@href, 'javascript:')]")
