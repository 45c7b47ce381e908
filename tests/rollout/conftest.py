"""The world of `tag_world`, made once."""

import pytest

from tests.rollout import tag_world


@pytest.fixture(scope="session")
def tag_tokenizer():
  return tag_world.make_tokenizer()


@pytest.fixture(scope="session")
def policy(tag_tokenizer):
  return tag_world.make_policy(len(tag_tokenizer))


@pytest.fixture(scope="session")
def echo_tool():
  return tag_world.EchoTool


@pytest.fixture(scope="session")
def queries():
  return tag_world.make_queries()


@pytest.fixture(scope="session")
def prompts(queries, tag_tokenizer):
  return tag_world.make_prompts(queries, tag_tokenizer)


@pytest.fixture(scope="session")
def buffer(queries):
  return tag_world.make_buffer(queries)
