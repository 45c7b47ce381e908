"""What a request may say, and what its answer looks like."""

import dataclasses
import json

import numpy as np
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.serving import protocol
from tests.retrieval import loopback

LIMITS = protocol.Limits(
  max_body_bytes=10_000, max_queries=4, max_query_chars=50, max_topk=10
)


def parse(body, parameters=None, defaults=None, limits=LIMITS):
  if not isinstance(body, bytes):
    body = json.dumps(body).encode()
  return protocol.parse_request(
    body,
    parameters or {},
    limits=limits,
    defaults=defaults or protocol.Defaults(),
  )


def test_what_search_r1_sends():
  request = parse(
    {"queries": ["Who?", "Was\nist\n\ndas?"], "topk": 5, "return_scores": True}
  )
  assert request.questions == ("Who?", "Was")
  assert request.histories == ((), ("ist\n\ndas?",))
  assert (request.topk, request.return_scores) == (5, True)
  assert (request.document, request.mode) == ("object", "list")
  assert len(request) == 2


@pytest.mark.parametrize("topk", [None, 0])
def test_what_is_not_said_has_a_default(topk):
  request = parse({"queries": [], "topk": topk})
  assert (len(request), request.topk, request.return_scores) == (0, 3, False)
  defaults = protocol.Defaults(topk=7, document="text", mode="choice")
  request = parse({"queries": [""]}, defaults=defaults)
  assert request.topk == 7
  assert (request.document, request.mode) == ("text", "choice")


def test_the_url_says_what_a_document_is():
  request = parse({"queries": ["q"]}, {"document": "text", "mode": "choice"})
  assert (request.document, request.mode) == ("text", "choice")


def test_histories_are_steps():
  request = parse({"queries": ["a\nb", "c"], "histories": [["s", "t"], []]})
  assert request.questions == ("a\nb", "c")
  assert request.histories == (("s", "t"), ())


@pytest.mark.parametrize(
  ("query", "question", "history"),
  [
    (
      "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nQ\nq<|im_end|>\n"
      "<|im_start|>assistant\na\nuser\n",
      "Q\nq",
      ("a\nuser\n",),
    ),
    ("system\ns\nuser\nQ\nassistant\n", "Q", ()),
    ("<|im_start|>user\nQ<|im_end|>\n", "Q\n", ()),
    # None of these is a transcript.
    ("system\nno", "system", ("no",)),
    ("Q\nuser\nx\nassistant\ny", "Q", ("user\nx\nassistant\ny",)),
  ],
)
def test_a_transcript_has_a_question(query, question, history):
  request = parse({"queries": [query]}, limits=protocol.Limits())
  assert request.questions == (question,)
  assert request.histories == (history,)


def test_vectors_there_and_back():
  vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  request = parse({"vectors": protocol.vectors_to_json(vectors), "topk": 2})
  np.testing.assert_array_equal(request.vectors, vectors)
  assert request.vectors.dtype == np.float32
  assert len(request) == 3
  empty = np.zeros((0, 5), np.float32)
  assert len(parse({"vectors": protocol.vectors_to_json(empty)})) == 0


@pytest.mark.parametrize(
  ("body", "message", "status"),
  [
    (b"", "must be JSON", 400),
    (b"{", "must be JSON", 400),
    (b"\xff", "must be JSON", 400),
    (b"[" * 9_999, "must be JSON", 400),
    ([1], r"JSON object, got \[1\]: send", 422),
    ({}, "queries must be a list of texts, got None: send", 422),
    ({"queries": "q"}, "list of texts, got 'q'", 422),
    ({"queries": [1]}, r"list of texts, got \[1\]", 422),
    ({"queries": ["q"] * 5}, "may have 4 queries, got 5: send several", 413),
    ({"queries": ["q", "x" * 51]}, "50 characters .* query 1 has 51", 422),
    (
      {"queries": ["x" * 30], "histories": [["y" * 10, "z" * 11]]},
      "query 0 has 51",
      422,
    ),
    (b'{"queries": ["\\ud800"]}', "half a character", 400),
    (b'{"\\ud800": 1}', "half a character", 400),
    (b'{"queries": ["q"], "topk": ' + b"1" * 5_000 + b"}", "too large", 400),
    (b'{"queries": ["q"], "topk": 1e999}', "too large", 400),
    (b'{"queries": ["q"], "topk": NaN}', "NaN is not", 400),
    (b'{"queries": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too", 400),
    (
      b'{"queries": ["q"], "topk": 1' + b"0" * 300 + b"}",
      "between 1 and 10, got 1000",
      422,
    ),
    (
      b'{"vectors": {"float32": "", "shape": [1%s, 1%s]}}'
      % (b"0" * 300, b"0" * 300),
      "two whole numbers",
      422,
    ),
    ({"x" * 999: 1}, "is no field", 422),
    ({"x" * 2_000_000: 1}, "is no field", 422),
    (b'{"queries": ["q"], "topk": 1, "topk": 2}', "'topk' twice", 400),
    ({"queries": [1] * 500_000}, r"got \[1, 1, .*\.\.\.: send", 422),
    ({"queries": {"a": [{}] * 500_000}}, "list of texts, got {'a'", 422),
    ({"queries": ["q"], "topk": -1}, "between 1 and 10, got -1", 422),
    ({"queries": ["q"], "topk": 11}, "between 1 and 10, got 11: ask", 422),
    ({"queries": ["q"], "topk": "3"}, "whole number, got '3'", 422),
    ({"queries": ["q"], "topk": True}, "whole number, got True", 422),
    ({"queries": ["q"], "topk": 2.5}, "whole number, got 2.5", 422),
    ({"queries": ["q"], "return_scores": 1}, "true or false, got 1", 422),
    ({"queries": ["q"], "top_k": 1}, "'top_k' is no field.*mean 'topk'", 422),
    ({"queries": ["q"], "histories": []}, "1 queries and 0 histories", 422),
    ({"queries": ["q"], "histories": ["h"]}, "lists of texts", 422),
    ({"queries": ["q"], "vectors": {}}, "in place of queries", 422),
    ({"vectors": [[1.0]]}, "object of shape and float32", 422),
    ({"vectors": {"shape": [1], "float32": ""}}, "two whole numbers", 422),
    ({"vectors": {"shape": [-1, 2], "float32": ""}}, "two whole", 422),
    ({"vectors": {"shape": [1, 2], "float32": "AAA"}}, "no base64", 422),
    ({"vectors": {"shape": [1, 2], "float32": 3}}, "no base64", 422),
    (
      {"vectors": {"shape": [1, 2], "float32": "AAAA"}},
      "take 8 bytes, got 3",
      422,
    ),
    ({"vectors": {"shape": [5, 0], "float32": ""}}, "4 queries, got 5", 413),
  ],
)
def test_what_is_wrong_is_named(body, message, status):
  with pytest.raises(protocol.RefusedError, match=message) as caught:
    parse(body)
  assert caught.value.status == status
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
  ("parameters", "message"),
  [
    ({"documents": "text"}, "'documents' is no parameter.*mean 'document'"),
    ({"document": "xml"}, "document must be object or text, got 'xml'"),
    ({"mode": ""}, "mode must be list or choice, got ''"),
  ],
)
def test_a_wrong_url_is_named(parameters, message):
  with pytest.raises(protocol.RefusedError, match=message):
    parse({"queries": []}, parameters)


def test_limits_are_checked():
  with pytest.raises(ValueError, match="max_topk must be at least 1, got 0"):
    protocol.Limits(max_topk=0)


HIT = retrieval.step_hit(
  loopback.make_trace("Wer\nwar  das?", 7, reward=0.5, history=("a", "b")),
  0.875,
)


TRACE = json.loads(json.dumps(dataclasses.asdict(HIT.trace)))


def test_all_fields_of_a_trace_are_sent():
  assert protocol._TRACE_TYPES.keys() == TRACE.keys()


def written(**changes):
  request = dataclasses.replace(parse({"queries": ["q"]}), **changes)
  # As the other side reads it.
  (item,) = json.loads(json.dumps(protocol.hits_to_json([HIT], request)))
  return item


def test_documents_as_search_r1_reads_them():
  item = written(return_scores=True)
  title, text = item["document"]["contents"].split("\n", 1)
  assert title == "Wer war das?"
  assert text == HIT.trace.step
  assert item["document"]["id"] == "7"
  assert item["score"] == 0.875
  assert written(return_scores=False) == item["document"]


def test_documents_as_the_authors_read_them():
  assert written(return_scores=True, document="text") == {
    "document": HIT.trace.step,
    "reward": 0.5,
    "score": 0.875,
  }
  assert written(return_scores=False, document="text") == {
    "key": "Wer\nwar  das?\na\nb",
    "value": HIT.trace.step,
    "reward": 0.5,
  }


def test_a_trace_there_and_back():
  assert protocol.hit_from_json(written(return_scores=True)) == HIT


@pytest.mark.parametrize(
  ("item", "message"),
  [
    (3, "object of document and score"),
    ({"document": "text", "score": 1.0}, "document=object"),
    ({"document": {}, "score": "1"}, "document and score"),
    ({"document": {}}, "document and score"),
    (
      {"document": {"id": "1", "contents": "c"}, "score": 1},
      "question of a document must be a text, got None",
    ),
    (
      {"document": {**TRACE, "history": "step"}, "score": 1},
      "history of a document must be a list of texts, got 'step'",
    ),
    (
      {"document": {**TRACE, "reward": None}, "score": 1},
      "reward of a document must be a number, got None",
    ),
    (
      {"document": {**TRACE, "trace_id": True}, "score": 1},
      "trace_id of a document must be a whole number of at least 0, got True",
    ),
  ],
)
def test_documents_of_other_servers_are_no_traces(item, message):
  with pytest.raises(protocol.RefusedError, match=message):
    protocol.hit_from_json(item)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (b"<html>", "no JSON"),
    (b"[]", "list of lists"),
    (b'{"result": [1]}', "list of lists"),
    (b'{"result": [[]]}', "results of 1 queries, 2 were asked"),
  ],
)
def test_answers_that_are_none(body, message):
  with pytest.raises(protocol.RefusedError, match=message):
    protocol.answer_from_json(body, 2)


@pytest.mark.parametrize("version", [None, 7])
def test_an_answer_there_and_back(version):
  results = map(protocol.result_to_json, [["ä"], []])
  body = protocol.answer_to_json(results, version)
  assert json.loads(body)["result"] == [["ä"], []]
  assert protocol.answer_from_json(body, 2) == protocol.Answer(
    [["ä"], []], version
  )


@pytest.mark.parametrize("score", [np.inf, -np.inf, np.nan])
def test_a_score_that_is_no_number_is_null(score):
  request = parse({"queries": ["q"], "return_scores": True})
  rows = protocol.neighbors_to_json([5], [float(score)], request)
  body = protocol.answer_to_json([protocol.result_to_json(rows)], 1)
  assert b"Infinity" not in body
  assert b"NaN" not in body
  ((item,),) = protocol.answer_from_json(body, 1).results
  assert item["score"] is None
  row, found = protocol.row_from_json(item)
  assert row == 5
  assert np.isnan(found)
  hit = dataclasses.replace(HIT, similarity=float(score))
  (item,) = json.loads(
    protocol.result_to_json(protocol.hits_to_json([hit], request))
  )
  assert item["score"] is None
  read = protocol.hit_from_json(item)
  assert np.isnan(read.similarity)
  # No threshold lets it pass.
  config = retrieval.RetrievalConfig(min_similarity=-1.0)
  assert isinstance(retrieval.choose_hit([read], config), retrieval.Miss)


def test_extras_that_are_no_json_are_null():
  trace = dataclasses.replace(HIT.trace, extras={"a": [np.nan, 1.0]})
  request = parse({"queries": ["q"], "return_scores": True})
  hits = [dataclasses.replace(HIT, trace=trace)]
  (item,) = json.loads(
    protocol.result_to_json(protocol.hits_to_json(hits, request))
  )
  assert item["document"]["extras"] == {"a": [None, 1.0]}


def test_parts_of_a_request():
  request = parse({"queries": ["a", "b", "c\nd"]})
  parts = request.parts(2)
  assert [part.questions for part in parts] == [("a", "b"), ("c",)]
  assert [part.histories for part in parts] == [((), ()), (("d",),)]
  assert len(parse({"queries": []}).parts(2)) == 1
  vectors = np.eye(3, dtype=np.float32)
  request = parse({"vectors": protocol.vectors_to_json(vectors)})
  np.testing.assert_array_equal(
    np.concatenate([part.vectors for part in request.parts(2)]), vectors
  )


def test_rows_of_an_index():
  request = parse({"queries": ["q"], "return_scores": True})
  score = float(np.float32(0.1))
  assert protocol.neighbors_to_json([5, -1], [score, -np.inf], request) == [
    {"document": {"id": "5"}, "score": score}
  ]
  assert protocol.row_from_json({"document": {"id": "5"}, "score": score}) == (
    5,
    score,
  )
  request = parse({"queries": ["q"]})
  assert protocol.neighbors_to_json([5], [score], request) == [{"id": "5"}]
  for item in (3, {"score": 1}, {"document": {"id": "a"}, "score": 1}):
    with pytest.raises(protocol.RefusedError, match="id is a row's number"):
      protocol.row_from_json(item)
