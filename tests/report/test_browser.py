"""Tests of the report in a browser.

It is Debian's chromium, headless (apt-get install chromium chromium-driver).
"""

import json
import shutil
import time

import pytest
import torch

from bmlr.report import write_report
from bmlr.runs import PredictionTable
from bmlr.runs.layout import PREDICTIONS
from fabric import make_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        make_run(folder / f"joint{seed}", "Joint", seed, fused=0.70 + 0.02 * seed, audio=0.40, image=0.60)
        make_run(folder / f"bmlr{seed}", "BMLR", seed, fused=0.80 + 0.02 * seed, audio=0.50, image=0.55)
    for seed in (0, 1):
        table = PredictionTable(["audio", "image"], 8)
        table.values[:] = torch.arange(8) % 2
        table.save(folder / f"joint{seed}" / PREDICTIONS)
    make_run(folder / "dgl", "DGL", 0, fused=0.75, audio=0.55, image=0.50)
    make_run(folder / "odd", class_path="mine.Odd", fused=0.1, image=0.0, method_args={"note": HOSTILE})
    broken = make_run(folder / "broken", "AGM")
    (broken / "result.json").write_text("{")
    return write_report([folder], folder / "report.html", title=HOSTILE).path


@pytest.fixture
def opened(browser, page):
    browser.get_log("performance")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(1280))
    browser.get(page.as_uri())
    return browser


def wait(condition, seconds=10):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("It did not happen.")


def size(width):
    return {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}


def names(driver, table="methods"):
    rows = driver.find_elements(By.CSS_SELECTOR, f"table.{table} > tbody:not([hidden]) > tr:first-child > th")
    return [row.text.split("\n")[0] for row in rows]


def head(driver, text, table="methods"):
    heads = [h for h in driver.find_elements(By.CSS_SELECTOR, f"table.{table} thead th") if h.text.startswith(text)]
    assert len(heads) == 1, text
    return heads[0]


def test_page_opens_from_a_file_without_errors_or_requests(opened, page):
    assert opened.title == HOSTILE
    assert opened.find_element(By.TAG_NAME, "h1").text == HOSTILE
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.pwned === undefined")
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # Not those of the page that the browser itself shows first.
    requests = [params["request"]["url"] for params in sent if params["documentURL"] == page.as_uri()]
    assert page.as_uri() in requests
    assert [url for url in requests if url != page.as_uri() and not url.startswith("data:")] == []
    assert "broken" in opened.find_element(By.CSS_SELECTOR, "table.excluded").text
    images = opened.find_elements(By.TAG_NAME, "img")
    assert images
    assert all(opened.execute_script("return arguments[0].naturalWidth > 100", image) for image in images)


def test_a_violated_policy_would_be_seen(opened):
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 2'; document.body.append(s)"
    )
    assert opened.execute_script("return window.pwned === undefined")
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


def test_sorting(opened):
    start = ["Joint", "BMLR", "DGL", "mine.Odd"]
    assert names(opened) == start
    column = head(opened, "Multimodal")
    assert column.get_attribute("aria-sort") == "none"
    column.find_element(By.TAG_NAME, "button").click()
    assert names(opened) == ["BMLR", "DGL", "Joint", "mine.Odd"]
    assert column.get_attribute("aria-sort") == "descending"
    column.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)  # by the keyboard
    assert names(opened) == ["mine.Odd", "Joint", "DGL", "BMLR"]
    assert column.get_attribute("aria-sort") == "ascending"
    head(opened, "Ratio").find_element(By.TAG_NAME, "button").click()
    assert names(opened) == ["DGL", "BMLR", "Joint", "mine.Odd"]  # what has no value is last, either way
    assert column.get_attribute("aria-sort") == "none"
    head(opened, "Ratio").find_element(By.TAG_NAME, "button").click()
    assert names(opened) == ["Joint", "BMLR", "DGL", "mine.Odd"]
    head(opened, "Method").find_element(By.TAG_NAME, "button").click()
    assert names(opened) == ["BMLR", "DGL", "Joint", "mine.Odd"]


def test_sorted_runs_keep_their_details(opened):
    head(opened, "Validation", "runs").find_element(By.TAG_NAME, "button").click()
    button = opened.find_elements(By.CSS_SELECTOR, "table.runs button.more")[0]
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    row = opened.find_element(By.ID, button.get_attribute("aria-controls"))
    assert row.is_displayed()
    assert "bmlr1/config.yaml" in row.text  # the run of the largest accuracy
    assert "seed: 1" in row.text
    button.click()
    assert not row.is_displayed()


def test_filtering(opened):
    field = opened.find_element(By.CSS_SELECTOR, "input[type=search]")
    output = opened.find_element(By.CSS_SELECTOR, ".tools output")
    field.send_keys("BML")
    assert names(opened) == ["BMLR"]
    assert len(names(opened, "runs")) == 2
    charts = opened.find_elements(By.CSS_SELECTOR, ".chart")
    assert [chart.is_displayed() for chart in charts] == [False, True, False, False]
    assert output.text == "1 of 4 methods"
    field.send_keys(", dgl")
    assert names(opened) == ["BMLR", "DGL"]
    field.clear()
    field.send_keys("nothing of the kind")
    assert names(opened) == []
    field.send_keys(Keys.ESCAPE)
    assert names(opened) == ["Joint", "BMLR", "DGL", "mine.Odd"]
    assert output.text == ""


def test_hover_shows_the_values_of_the_epoch_under_the_pointer(opened):
    chart = opened.find_elements(By.CSS_SELECTOR, ".chart")[1]
    svg = chart.find_element(By.CSS_SELECTOR, ":scope > svg")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)

    def readout():
        return [item.text.replace("\n", " ") for item in chart.find_elements(By.CSS_SELECTOR, ".readout li")]

    assert readout()[0] == "epoch 3"
    ActionChains(opened).move_to_element_with_offset(svg, -svg.size["width"] // 2 + 45, 0).perform()
    assert readout() == ["epoch 1", "multimodal 81.0 ± 1.4 %", "audio 50.0 ± 0.0 %", "image 55.0 ± 0.0 %"]
    ActionChains(opened).move_to_element(svg).perform()
    assert readout()[:2] == ["epoch 2", "multimodal 82.0 ± 1.4 %"]
    ActionChains(opened).move_to_element(opened.find_element(By.TAG_NAME, "h1")).perform()
    assert readout()[0] == "epoch 3"
    opened.execute_script("arguments[0].focus()", svg)
    ActionChains(opened).send_keys(Keys.HOME).perform()
    assert readout()[0] == "epoch 1"
    assert "multimodal 81.0 ± 1.4 %" in chart.find_element(By.CSS_SELECTOR, "[aria-live]").get_attribute("textContent")
    ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
    assert readout()[0] == "epoch 2"


def test_other_measures(opened):
    ratio, share = opened.find_elements(By.CSS_SELECTOR, ".choice input")[1:]
    ratio.click()
    charts = opened.find_elements(By.CSS_SELECTOR, ".chart")
    assert "audio/image" in charts[0].text
    assert "0.67" in charts[0].text
    share.click()
    charts = opened.find_elements(By.CSS_SELECTOR, ".chart")
    assert "This method reshapes no labels." in charts[0].text
    assert "25.0 ± 0.0 %" in charts[1].text
    assert opened.get_log("browser") == []


def test_tables_are_copied_and_saved_without_a_server(opened, tmp_path):
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    buttons = opened.find_elements(By.CSS_SELECTOR, "[data-export=methods-0] button")
    assert [button.text for button in buttons] == ["Copy CSV", "Save CSV", "Copy LaTeX", "Save LaTeX"]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[0])
    said = opened.find_element(By.CSS_SELECTOR, "[data-export=methods-0] output")
    buttons[0].click()
    wait(lambda: said.text == "CSV copied")
    field = opened.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys(Keys.CONTROL, "v")
    assert field.get_attribute("value").startswith("Method,Runs,Multimodal (%),Multimodal (%) std")
    field.send_keys(Keys.ESCAPE)
    for button, name, start in ((buttons[1], "csv", "Method,Runs"), (buttons[3], "tex", "\\begin{tabular}")):
        button.click()
        path = tmp_path / f"digits-clean-protocol-methods.{name}"
        wait(path.exists)
        wait(lambda path=path: path.read_text(encoding="utf-8").startswith(start))  # noqa: B023
        assert said.text == f"{path.name} saved"
    assert opened.get_log("browser") == []


def test_what_does_not_fit_is_said_and_shaded(opened, page):
    script = """
      return [...document.querySelectorAll('.frame')].filter((frame) => frame.checkVisibility()).map((frame) => {
        const area = frame.firstElementChild;
        return [area.scrollWidth > area.clientWidth + 1, frame.classList.contains('cut'),
                frame.querySelector('.sideways').offsetHeight > 0];
      });
    """
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(390))
    opened.get(page.as_uri())
    wait(lambda: opened.execute_script(script)[0] == [True, True, True])
    assert all(wide == cut == said for wide, cut, said in opened.execute_script(script)), opened.execute_script(script)
    area = "document.querySelector('.frame > .scroll')"
    opened.execute_script(f"{area}.scrollLeft = 10000")
    wait(lambda: opened.execute_script(script)[0] == [True, False, True])
    # The example in the field fits, and no text is wider than its box.
    field = opened.find_element(By.CSS_SELECTOR, "input[type=search]")
    assert opened.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", field)
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(1280))
    opened.get(page.as_uri())
    widths = "return ['.conclusion', '.frame'].map((name) => document.querySelector(name).offsetWidth)"
    assert len(set(opened.execute_script(widths))) == 1


def test_classes_open_by_the_keyboard(opened):
    summary = opened.find_element(By.CSS_SELECTOR, "details.confusions summary")
    matrix = opened.find_element(By.CSS_SELECTOR, "table.confusion")
    assert not matrix.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert matrix.is_displayed()
    assert opened.find_elements(By.CSS_SELECTOR, "table.confusion td[class*=heat-10]")


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_phones_and_desktops_in_both_themes(browser, page, width, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size(width))
    browser.get(page.as_uri())
    # The page itself never scrolls sideways; wide tables do, in their frames.
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    script = """
      const style = getComputedStyle(document.body);
      return [style.color, style.backgroundColor].map((colour) => colour.match(/\\d+/g).slice(0, 3));
    """
    colours = browser.execute_script(script)
    text, ground = (sum(map(int, colour)) for colour in colours)
    assert (text < ground) == (scheme == "light")
    assert browser.get_log("browser") == []


def test_text_has_contrast(opened):
    """Text has a contrast of at least 4.5 to 1 (WCAG AA), in both themes."""
    script = """
      const style = getComputedStyle(document.documentElement);
      const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = (name) => {
        const hex = style.getPropertyValue(name).trim().slice(1).replace(/^(.)(.)(.)$/, "$1$1$2$2$3$3");
        const [r, g, b] = [0, 2, 4].map((i) => channel(parseInt(hex.slice(i, i + 2), 16)));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const pairs = ["--text", "--soft", "--accent"].flatMap((t) => ["--page", "--card", "--hover"].map((g) => [t, g]));
      pairs.push(["--text", "--note"]);
      return pairs.map(([t, g]) => {
        const [a, b] = [light(t), light(g)];
        return [`${t} on ${g}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
      });
    """
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for pair, ratio in opened.execute_script(script):
            assert ratio >= 4.5, (scheme, pair, ratio)
