"""The command that fills and shows caches of the web."""

from __future__ import annotations

import json

from experiments import search_cache


def test_it_imports_and_shows(tmp_path, capsys):
  file, cache = tmp_path / "search_cache.json", str(tmp_path / "web.sqlite")
  content = {"search query: Who built it?": "Page 1: Ann ü.", "else": "x"}
  file.write_text(json.dumps(content), encoding="utf-8")
  assert search_cache.main(["import", "--cache", cache, str(file)]) == 0
  assert capsys.readouterr().out == f"{file}: 2 queries in {cache}\n"
  assert search_cache.main(["show", "--cache", cache, "--find", "built"]) == 0
  counts, answer = capsys.readouterr().out.splitlines()
  assert counts == "imported: 2 answers"
  assert json.loads(answer) == {
    "kind": "imported",
    "query": "Who built it?",
    "answer": "Page 1: Ann ü.",
  }


def test_bad_input_is_one_line(tmp_path, capsys):
  missing = str(tmp_path / "none.sqlite")
  assert search_cache.main(["show", "--cache", missing]) == 2
  wrong = tmp_path / "wrong.json"
  wrong.write_text("[]", encoding="utf-8")
  assert search_cache.main(["import", "--cache", missing, str(wrong)]) == 2
  assert search_cache.main(["show", "--cache", str(wrong), "extra"]) == 2
  errors = capsys.readouterr().err.splitlines()
  assert len(errors) == 3
  assert "none.sqlite does not: record it first" in errors[0]
  assert "wrong.json must hold an object" in errors[1]
  assert "unknown arguments extra" in errors[2]
