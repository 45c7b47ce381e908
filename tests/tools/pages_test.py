from rapo_jax import tools


def test_open():
  tool = tools.OpenTool({"p1": "Page one."})
  assert tool.call(" p1\n").text == "Page one."
  missing = tool.call("p2")
  assert missing.status is tools.ToolStatus.ERROR
  assert missing.text == "There is no page 'p2'."
  assert len(tool.call("p" * 10_000).text) < 200
