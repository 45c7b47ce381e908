"""The tool for verl, called by verl's agent loop."""

import pathlib

import pytest

from tests import peer_programs

PROGRAM = pathlib.Path(__file__).with_name("verl_program.py")


@pytest.mark.slow
def test_verl_calls_the_tool(counting_url):
  peer_programs.run("verl", str(PROGRAM), counting_url)
