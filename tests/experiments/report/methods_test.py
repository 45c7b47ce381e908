"""What the report shows of methods, the user's own among them."""

from experiments.report import methods
from rapo_jax.algorithms import CLIPPED_LOSS, Algorithm, outcome_advantages

OWN = Algorithm(
  name="my_own",
  label="Mine & ours",
  description="",
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  colour="#123456",
)


def test_a_run_says_what_its_algorithm_is_called(tmp_path):
  folder = tmp_path / "my_own-seed0"
  methods.write_shown(folder, OWN)
  shown = methods.read_shown([("my_own", folder), ("lost", tmp_path)])
  assert shown["my_own"] == methods.Shown("Mine & ours", "#123456", None)
  # Without the file of the run its name is all there is.
  assert shown["lost"].label == "lost"
  assert shown["rapo"].label == "RAPO"
  assert shown["rapo"].retrieves
  assert not shown["grpo"].retrieves
  assert not shown["rapo_unsolved"].retrieves


def test_agents_come_before_methods():
  names = ["rapo", "grpo", "off_policy", "zeta", "base"]
  assert sorted(names, key=methods.method_order) == [
    "base",
    "off_policy",
    "grpo",
    "rapo",
    "zeta",
  ]


def test_a_dark_page_has_colours_of_its_own():
  results = {"colours": {"a": ["#111111", "#eeeeee"], "b": [None, None]}}
  light = methods.colour_rules(results, dark=False)
  assert light == ".m-a { --c: #111111; }\n.m-b { --c: var(--other); }"
  assert "#eeeeee" in methods.colour_rules(results, dark=True)


def test_a_method_without_a_colour_gets_one_that_no_other_has():
  shown = {
    "base": methods.AGENTS["base"],
    "rapo": methods.Shown("RAPO", "#0067ad", "#5fb4f2"),
    **{f"own{n}": methods.Shown(f"own {n}") for n in range(7)},
  }
  colours = [one.colour for one in methods.coloured(shown, shown).values()]
  assert None not in colours
  assert len(set(colours)) == len(shown)


def test_marks_differ_while_there_are_enough():
  found = methods.shapes(["base", "warm_start", "grpo", "mine", "x", "rapo"])
  assert found["rapo"] == "circle"
  assert found["grpo"] == "square"
  trained = [found[m] for m in ("grpo", "mine", "x", "rapo")]
  assert len(set(trained)) == 4
  assert set(methods.shapes(map(str, range(20))).values()) == {*methods.SHAPES}
