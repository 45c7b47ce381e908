"""Data sets as ArrayRecord: prepared once, anew where files have changed."""

from __future__ import annotations

import http.server
import threading

import pytest

from rapo_jax.datasets import DATA_SETS, builder, check_prepared, prepare
from rapo_jax.errors import InputError, MissingInputError
from tests.datasets import files


def write(folder, name):
  return files.write(folder, name, files.FILES[name][1])


def test_what_is_prepared_is_read_without_the_files(tmp_path):
  path = write(tmp_path / "in", "musique/musique_ans_v1.0_dev.jsonl")
  first = prepare("musique", path, tmp_path / "out").rows("test")
  path.unlink()
  again = prepare("musique", None, tmp_path / "out").rows("test")
  assert first == again
  assert again[0].answers == ("A", "B")
  assert again[0].extra == {}
  check_prepared("musique", tmp_path / "out")


def test_files_that_have_changed_are_prepared_anew(tmp_path, caplog):
  name = "bamboogle/bamboogle.json"
  write(tmp_path, name)
  assert len(prepare("bamboogle", tmp_path, tmp_path).rows("test")) == 1
  assert not caplog.records
  rows = files.FILES[name][1]
  files.write(tmp_path, name, [*rows, {**rows[0], "id": "bamboogle_2"}])
  assert len(prepare("bamboogle", tmp_path, tmp_path).rows("test")) == 2
  assert "prepared anew" in caplog.text
  assert len(prepare("bamboogle", tmp_path, tmp_path).rows("test", 1)) == 1


def test_what_an_older_version_has_prepared_is_prepared_anew(tmp_path):
  write(tmp_path / "in", "bamboogle/bamboogle.json")
  out = tmp_path / "out"
  prepare("bamboogle", tmp_path / "in", out)
  (folder,) = out.rglob(str(builder.Questions.VERSION))
  folder.rename(folder.with_name("1.0.0"))
  with pytest.raises(MissingInputError, match="must be prepared"):
    prepare("bamboogle", None, out)
  assert prepare("bamboogle", tmp_path / "in", out).rows("test")


def test_a_solution_is_kept(tmp_path):
  write(tmp_path, "gsm8k/train.jsonl")
  (row,) = prepare("gsm8k", tmp_path, tmp_path / "out").rows("train")
  assert row.solution == "2 * 2 = <<2*2=4>>4\n#### 1,004"


def test_a_broken_file_leaves_nothing_half_prepared(tmp_path):
  name = "bamboogle/bamboogle.json"
  files.write(tmp_path, name, [*files.FILES[name][1], {"Question": "Q?"}])
  with pytest.raises(InputError, match="needs an answer"):
    prepare("bamboogle", tmp_path, tmp_path / "out")
  with pytest.raises(MissingInputError, match="must be prepared"):
    prepare("bamboogle", None, tmp_path / "out")


def test_a_broken_file_leaves_what_was_prepared_before(tmp_path):
  name = "bamboogle/bamboogle.json"
  write(tmp_path, name)
  before = prepare("bamboogle", tmp_path, tmp_path / "out").rows("test")
  files.write(tmp_path, name, [*files.FILES[name][1], {"Question": "Q?"}])
  with pytest.raises(InputError, match="needs an answer"):
    prepare("bamboogle", tmp_path, tmp_path / "out")
  again = prepare("bamboogle", None, tmp_path / "out").rows("test")
  assert again == before


def test_what_is_prepared_and_broken_is_named_or_made_anew(tmp_path):
  write(tmp_path, "bamboogle/bamboogle.json")
  before = prepare("bamboogle", tmp_path, tmp_path / "out").rows("test")
  (path,) = (tmp_path / "out").rglob("*array_record*")
  path.write_bytes(path.read_bytes()[:1000])
  broken = prepare("bamboogle", None, tmp_path / "out")
  with pytest.raises(InputError, match=r"must be whole, and is not .*delete"):
    broken.rows("test")
  (tmp_path / "out" / "bamboogle" / "made_from.json").write_bytes(b"\xffx")
  again = prepare("bamboogle", tmp_path, tmp_path / "out").rows("test")
  assert again == before


def test_a_full_disk_is_named(tmp_path, monkeypatch):
  write(tmp_path, "bamboogle/bamboogle.json")

  def full(self):
    raise RuntimeError("write() failed: No space left on device; writing x")

  monkeypatch.setattr(builder.Questions, "download_and_prepare", full)
  with pytest.raises(InputError, match=r"the disk is full.*RAPO_DATA_DIR"):
    prepare("bamboogle", tmp_path, tmp_path / "out")


def test_links_are_followed_and_those_that_lead_nowhere_are_named(tmp_path):
  name = "bamboogle/bamboogle.json"
  write(tmp_path / "disk", name)
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "bamboogle").symlink_to(tmp_path / "disk" / "bamboogle")
  # A way back up, and the same folder a second time.
  (tmp_path / "disk" / "bamboogle" / "up").symlink_to(folder)
  (folder / "copy").symlink_to(tmp_path / "disk" / "bamboogle")
  prepared = prepare("bamboogle", folder, tmp_path / "out")
  assert len(prepared.rows("test")) == 1
  path = tmp_path / "disk" / name
  path.unlink()
  path.symlink_to(path)
  with pytest.raises(InputError, match="must be usable"):
    prepare("bamboogle", folder, tmp_path / "out")


def test_browsecomp_stays_encrypted_on_the_disk(tmp_path):
  path = write(tmp_path / "in", "browsecomp/browse_comp_test_set.csv")
  out = tmp_path / "out"
  (row,) = prepare("browsecomp", path, out).rows("test")
  assert (row.question, row.answers) == ("A secret question?", ("Gold",))
  written = [p for p in out.rglob("*") if p.is_file()]
  assert written
  for text in (b"secret question", b"Gold"):
    assert not [p for p in written if text in p.read_bytes()]


def test_ids_that_repeat_are_told_apart(tmp_path):
  name = "math500/test.jsonl"
  files.write(tmp_path, name, files.FILES[name][1] * 2)
  rows = prepare("math500", tmp_path, tmp_path).rows("test")
  assert [row.row_id[-3:] for row in rows] == ["son", "n.1"]


def test_a_question_of_two_files_counts_once(tmp_path, caplog):
  """As where the whole file and a sample of it lie in one folder."""
  row = files.FILES["gsm8k/train.jsonl"][1][0]
  other = {**row, "question": "Another?"}
  files.write(tmp_path, "gsm8k/train.jsonl", [row])
  files.write(tmp_path, "gsm8k_full/train.jsonl", [other, row, other])
  rows = prepare("gsm8k", tmp_path, tmp_path / "out").rows("train")
  # What a file itself holds twice stays.
  assert [r.question for r in rows] == [row["question"], "Another?", "Another?"]
  assert "1 of 3 questions stand in an earlier file" in caplog.text


def test_a_question_that_two_rows_have_stays_where_each_row_is_a_file(tmp_path):
  row = {"problem": "1+1?", "solution": r"\boxed{2}"}
  for name in ("1.json", "2.json"):
    files.write(tmp_path, f"MATH/test/algebra/{name}", [row])
  assert len(prepare("math", tmp_path, tmp_path / "out").rows("test")) == 2


def test_a_plain_public_file_is_downloaded(tmp_path, monkeypatch):
  web = tmp_path / "web"
  for split in ("train", "test"):
    rows = files.FILES["gsm8k/train.jsonl"][1]
    files.write(web, f"{split}.jsonl", rows)

  class Files(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
      super().__init__(*arguments, directory=str(web))

    def log_message(self, *_):
      """Says nothing."""

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
    threading.Thread(target=server.serve_forever).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(
      DATA_SETS["gsm8k"].urls, "gsm8k/train.jsonl", f"{url}/train.jsonl"
    )
    monkeypatch.setitem(
      DATA_SETS["gsm8k"].urls, "gsm8k/test.jsonl", f"{url}/missing.jsonl"
    )
    with pytest.raises(MissingInputError, match=r"missing\.jsonl cannot be"):
      prepare("gsm8k", None, tmp_path / "out")
    monkeypatch.setitem(
      DATA_SETS["gsm8k"].urls, "gsm8k/test.jsonl", f"{url}/test.jsonl"
    )
    prepared = prepare("gsm8k", None, tmp_path / "out")
    server.shutdown()
  assert [len(source) for source in prepared.sources.values()] == [1, 1]


def test_names_that_are_none(tmp_path):
  with pytest.raises(InputError, match="a data set must be one of gsm8k"):
    prepare("gsm9k", tmp_path)
  write(tmp_path, "bamboogle/bamboogle.json")
  prepared = prepare("bamboogle", tmp_path, tmp_path)
  with pytest.raises(InputError, match="bamboogle must have a split 'train'"):
    prepared.rows("train")


def test_the_builder_reads_tfds_manual_folder(tmp_path):
  import tensorflow_datasets as tfds

  write(tmp_path / "manual", "bamboogle/bamboogle.json")
  made = builder.Questions(
    config="bamboogle",
    data_dir=str(tmp_path / "out"),
    file_format="array_record",
  )
  made.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=str(tmp_path / "manual")
    )
  )
  assert made.as_data_source("test")[0]["id"] == b"bamboogle_1"
