"""The viewer in a browser: keys, links, phones, hostile text, accessibility."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil

import pytest

from experiments.buffers import page as buffer_page
from experiments.report import page as report
from experiments.viewer import export
from experiments.viewer.index import TrajectoryIndex
from experiments.viewer.server import view_app
from rapo_jax import retrieval
from tests.experiments import fake_workdir
from tests.retrieval import loopback, tiny_bert

sync_api = pytest.importorskip(
  "playwright.sync_api",
  reason="playwright is not installed: pip install -e '.[browser]'",
)
CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
  ),
]
WIDE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    yield browser
    browser.close()


@pytest.fixture
def workdir(tmp_path):
  return fake_workdir.write(
    tmp_path / "run",
    tasks=("multihop",),
    methods=("grpo", "rapo"),
    seeds=(0, 1),
  )


@pytest.fixture
def url(workdir):
  index = TrajectoryIndex(workdir)
  index.refresh()
  with loopback.serving(view_app(workdir, index)) as url:
    yield f"{url}/{index.secret}/"


@pytest.fixture
def open_page(browser, url):
  """Opens a page; fails on errors, dialogs and requests to elsewhere."""
  contexts, wrong = [], []

  def start(place="", size=None, **options):
    context = browser.new_context(viewport=size or WIDE, **options)
    contexts.append(context)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on(
      "request",
      lambda request: (
        None
        if request.url.startswith((url, "data:"))
        else wrong.append(request.url)
      ),
    )
    page.goto(url + place)
    return page

  yield start
  for context in contexts:
    context.close()
  assert wrong == []


def _expect(node):
  return sync_api.expect(node)


def test_runs_and_curves_are_shown_and_lead_to_their_trajectories(open_page):
  page = open_page()
  _expect(page.locator("#run-table tbody tr")).to_have_count(4)
  _expect(page.locator("#charts figure svg").first).to_be_visible()
  assert page.locator("#charts details").count() > 5
  # What is hidden is no longer drawn.
  lines = page.locator("#charts figure").first.locator("polyline")
  before = lines.count()
  page.locator("#legend button").first.click()
  _expect(lines).to_have_count(before // 2)
  page.get_by_label("Metrics named").fill("gradient")
  _expect(page.locator("#charts figure")).to_have_count(1)
  page.get_by_role("link", name="RAPO, seed 1").click()
  _expect(page.locator("#found")).to_have_text("48 trajectories")


def test_keys_move_open_compare_colour_and_close(open_page):
  page = open_page("#trajectories?method=rapo")
  _expect(page.locator(".item").first).to_be_visible()
  for _ in range(3):
    page.keyboard.press("j")
  page.keyboard.press("k")
  current = page.locator('.item[aria-current="true"]')
  _expect(current).to_have_count(1)
  items = page.locator(".item")
  key = items.nth(1).get_attribute("data-key")
  _expect(current).to_have_attribute("data-key", key)
  _expect(page.locator("article .step").first).to_be_visible()
  page.keyboard.press("Enter")
  _expect(page.locator("article")).to_be_focused()
  page.keyboard.press("b")
  page.keyboard.press("j")
  _expect(page.locator("article")).to_have_count(2)
  page.keyboard.press("c")
  _expect(page.locator(".heated").first).to_be_visible()
  page.keyboard.press("Escape")
  _expect(page.locator("article")).to_have_count(1)
  page.keyboard.press("Escape")
  _expect(page.locator("article .step")).to_have_count(0)
  page.keyboard.press("/")
  _expect(page.locator("#text")).to_be_focused()
  page.keyboard.type("Corvin")
  _expect(page.locator("#found")).not_to_have_text("96 trajectories")
  page.keyboard.press("Enter")
  _expect(page.locator("article mark").first).to_have_text("Corvin")
  page.keyboard.press("1")
  _expect(page.locator("#run-table")).to_be_visible()


def test_tokens_are_coloured_by_what_the_log_says_of_each(open_page):
  page = open_page("#trajectories?method=rapo&retrieved=1")
  page.locator(".item").first.click()
  step = page.locator(".step.k-policy").first
  for name, first in (
    ("entropy", r"heated"),
    ("sampler's log-prob", r"heated"),
    # It was not in the loss.
    ("trainer's log-prob", r"cold"),
    ("log-prob gap", r"cold"),
    ("advantage", r"heated"),
  ):
    text = step.locator("pre").text_content()
    page.get_by_label("Colour by").select_option(label=f"Colour by {name}")
    tokens = step.locator(".token")
    _expect(tokens.first).to_have_class(re.compile(first))
    _expect(tokens.nth(1)).to_have_class(re.compile("heated"))
    _expect(page.locator(".scale")).to_contain_text("of a token")
    assert step.locator("pre").text_content() == text
  title = tokens.nth(1).get_attribute("title")
  assert "trainer's log-prob −0.100 · log-prob gap −0.00002" in title
  page.get_by_label("Colour by").select_option("gap")
  _expect(tokens.nth(1)).to_have_class(re.compile("below"))


def test_a_log_without_figures_of_tokens_is_coloured_by_step(open_page):
  page = open_page("#trajectories?method=grpo")
  page.locator(".item").first.click()
  page.get_by_label("Colour by").select_option("entropy")
  _expect(page.locator(".step.heated").first).to_be_visible()
  _expect(page.locator(".scale")).to_contain_text("mean of a step")
  page.get_by_label("Colour by").select_option("trainer_log_prob")
  _expect(page.locator(".scale")).to_have_text("not in the log")
  _expect(page.locator(".token")).to_have_count(0)


def test_candidates_that_were_not_chosen_are_listed(open_page):
  page = open_page("#trajectories?method=rapo&retrieved=1")
  page.locator(".item").first.click()
  others = page.locator(".others").first
  others.locator("summary").click()
  _expect(others.locator("li").first).to_contain_text(
    "trace 18, similarity 0.900, its reward 0.50"
  )


def test_a_link_shows_the_same_again(open_page):
  page = open_page("#trajectories?text=Tamsin&reward_class=right")
  page.locator(".item").nth(4).click()
  page.get_by_label("Colour by").select_option("entropy")
  page.get_by_label("Beside").select_option(index=3)
  _expect(page.locator("article")).to_have_count(2)
  _expect(page.locator(".heated").first).to_be_visible()
  texts = page.locator("article").all_inner_texts()
  again = open_page(re.sub(r"^[^#]*", "", page.url))
  # Names of methods come after the trajectories.
  _expect(again.locator("article")).to_have_text(texts, use_inner_text=True)
  page.go_back()
  _expect(page.locator("article")).to_have_count(1)


def test_a_line_marks_where_two_differ(open_page, workdir):
  log = workdir / "train/multihop/rapo-seed0/trajectories.jsonl"
  with log.open(encoding="utf-8") as file:
    first = json.loads(file.readline())
  other = json.loads(json.dumps(first)) | {"index": 1}
  other["segments"][-1]["text"] = "something else"
  log.write_text(
    f"{json.dumps(first)}\n{json.dumps(other)}\n", encoding="utf-8"
  )
  page = open_page("#trajectories?run=train/multihop/rapo-seed0")
  _expect(page.locator("#found")).to_have_text("2 trajectories", timeout=20_000)
  page.locator(".item").first.click()
  page.keyboard.press("b")
  page.keyboard.press("j")
  _expect(page.locator(".parting")).to_have_count(2)
  for number in range(2):
    last = page.locator("article").nth(number).locator(".parting ~ .step")
    _expect(last).to_have_count(1)


def test_hostile_text_stays_text(open_page):
  page = open_page("#trajectories")
  page.locator(".item").first.click()
  text = page.locator("article").first
  _expect(text).to_contain_text("<img src=x onerror=alert(1)>")
  assert page.locator("img").count() == 0


def test_a_phone_shows_the_list_or_one_trajectory(open_page):
  page = open_page("#trajectories", size=PHONE)
  page.locator(".item").first.click()
  _expect(page.locator("article .step").first).to_be_visible()
  _expect(page.locator("#list")).to_be_hidden()
  page.get_by_role("button", name="← List").click()
  _expect(page.locator("#list")).to_be_visible()
  for place in ("#trajectories", "#runs"):
    page.goto(re.sub("#.*", place, page.url))
    page.wait_for_timeout(300)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0


def test_the_page_follows_a_run(open_page, workdir):
  folder = workdir / "train/multihop/rapo-seed0"
  page = open_page("#trajectories")
  _expect(page.locator("#found")).to_have_text("192 trajectories")
  log = (folder / "trajectories.jsonl").read_bytes()
  with (folder / "trajectories.jsonl").open("ab") as file:
    file.write(log)
  _expect(page.locator("#found")).to_have_text(
    "240 trajectories", timeout=20_000
  )
  page.keyboard.press("1")
  row = page.locator("#run-table tr", has_text="RAPO, seed 0")
  _expect(row).to_contain_text("20 of 20")
  with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
    file.write('{"update": 21, "loss": 0.5}\n')
  _expect(row).to_contain_text("21 of 20", timeout=20_000)


def test_an_exported_page_needs_no_server(browser, workdir, tmp_path):
  index = TrajectoryIndex(workdir)
  index.refresh()
  export.write_page(workdir, index, tmp_path / "page", most=96)
  context = browser.new_context(viewport=WIDE, offline=True)
  page = context.new_page()
  wrong = []
  page.on("pageerror", lambda error: wrong.append(str(error)))
  page.goto((tmp_path / "page/index.html").as_uri())
  _expect(page.locator("#charts figure svg").first).to_be_visible()
  _expect(page.locator("#state")).to_have_text("96 of 192 trajectories")
  page.get_by_role("link", name="Trajectories").click()
  page.get_by_label("Method").select_option("rapo")
  _expect(page.locator("#found")).to_have_text("48 trajectories")
  page.locator("#text").fill('"boxed{ Corvin" done')
  _expect(page.locator("#found")).not_to_have_text("48 trajectories")
  page.locator(".item").first.click()
  _expect(page.locator("article mark").first).to_be_visible()
  page.get_by_label("Beside").select_option(index=2)
  _expect(page.locator("article")).to_have_count(2)
  context.close()
  assert wrong == []


# Accessibility. The rules and what is serious are axe-core's.


def _findings(page):
  axe = pytest.importorskip(
    "axe_playwright_python",
    reason="axe-core is not installed: pip install -e '.[browser]'",
  )
  script = importlib.resources.files(axe).joinpath("axe.min.js")
  page.evaluate(script.read_text(encoding="utf-8"))
  result = page.evaluate("() => axe.run({resultTypes: ['violations']})")
  return [
    (found["id"], node["html"])
    for found in result["violations"]
    if found["impact"] in ("serious", "critical")
    for node in found["nodes"]
  ]


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_viewer_has_no_serious_finding(open_page, scheme, size):
  page = open_page(size=size, color_scheme=scheme, bypass_csp=True)
  _expect(page.locator("#charts figure").first).to_be_visible()
  assert _findings(page) == []
  page.goto(re.sub("#.*", "", page.url) + "#trajectories?text=Tamsin")
  page.locator(".item").first.click()
  _expect(page.locator("article mark").first).to_be_visible()
  assert _findings(page) == []
  page.keyboard.press("b")
  page.keyboard.press("j")
  page.keyboard.press("c")
  _expect(page.locator(".step.heated").first).to_be_visible()
  assert _findings(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_no_serious_finding(browser, workdir, scheme):
  context = browser.new_context(color_scheme=scheme, bypass_csp=True)
  page = context.new_page()
  page.goto(report.write_report(workdir).as_uri())
  assert _findings(page) == []
  context.close()


_SETS = {
  "alone": ("rapo",),
  "own": ("mine", "a_method_whose_name_is_as_long_as_a_name_may_be", "dapo"),
  "many": (
    *("grpo", "rapo", "hybrid", "dapo", "gspo", "gigpo", "luffy", "cispo"),
    *("luffy_published", "rapo_unsolved", "aepo_published", "reinforce_pp"),
  ),
}


@pytest.mark.parametrize("methods", _SETS.values(), ids=_SETS)
def test_the_report_of_any_methods_fits_a_desktop_and_a_phone(
  browser, tmp_path, methods
):
  workdir = fake_workdir.write(
    tmp_path / "run",
    tasks=("web", "multihop"),
    methods=methods,
    seeds=(0, 1),
    num_updates=100,
  )
  path = report.write_report(workdir)
  for size in ({"width": 1280, "height": 900}, PHONE):
    page = browser.new_page(viewport=size, bypass_csp=True)
    page.goto(path.as_uri())
    # Tables are scrolled, the page is not.
    wide = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0
    # No text of a chart leaves it.
    assert page.evaluate(_CUT_LABELS) == []
    assert _findings(page) == []
    page.close()


# Half a pixel is rounding.
_CUT_LABELS = """() => [...document.querySelectorAll("figure svg")].flatMap(
  svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(text => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 0.5 || own.right > box.right + 0.5;
    }).map(text => text.textContent);
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_buffer_has_no_serious_finding(browser, tmp_path, scheme):
  encoder = retrieval.SentenceEncoder.from_pretrained(
    tiny_bert.write_folder(tmp_path / "encoder")
  )
  traces = [
    trace
    for number in range(4)
    for trace in retrieval.step_traces(
      f"Whose tower is number {number}?",
      ["Look it up.", "Read on.", "It is hers."],
      reward=1.0,
      source="strong",
      query_id=f"q{number}",
      first_trace_id=3 * number,
    )
  ]
  buffer = tmp_path / "buffer"
  retrieval.StepTraceBuffer.build(traces, encoder).save(buffer)
  buffer_page.write_page(buffer, tmp_path / "buffer.html")
  context = browser.new_context(color_scheme=scheme, bypass_csp=True)
  page = context.new_page()
  page.goto((tmp_path / "buffer.html").as_uri())
  assert _findings(page) == []
  context.close()
