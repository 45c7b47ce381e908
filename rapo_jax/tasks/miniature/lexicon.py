"""The words of the miniature world.

Names are single wordpieces of MiniLM, so that keys and documents are short.
They were picked, from the 471 tried, by how well MiniLM tells the documents
about them apart; `rapo_jax.tasks.miniature.findability` measures how well.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


NAMES: tuple[str, ...] = _words(
  """
  Dirk Vernon Pedro Nell Earl Dora Sonia Bruno Myra Reggie Caroline Sherry
  Jonah Ernest Herbert Lorenzo Hazel Theo Kurt Lynn Lara Sebastian Felix
  Lily Clay Dennis Rita Ramon Clara Fritz Brenda Lois Owen Danny Marcus Mia
  Lance Gerald Flora Rupert Omar Justin Xavier Penny Claude Carla Trevor
  Edmund Pamela Mae Keith Carlos Wade Eve Cody Brian Lauren Jerome Thomas
  Sasha Pierre Hugh Boris Hugo Donna Hannah Iris Philip Wolfgang Freddy
  Clifford Stan Damien Lee Clyde Teresa Nigel Bruce Blake Kenneth Vivian
  Ingrid Ned Murray Mei Jane Bianca Erin Saul Noah Ricardo Kelly Rex Winston
  Nelson Igor Howard Ethan Dana Sofia Nadia Chad Noel Nicole Norman Isaac
  Barbara Evan Julian Eric Ida Tyler Connor Leo Louise Derek Zane Malcolm
  Helen Judy Evelyn Oliver Joan Gordon Colin Ben Meredith Raymond Phil
  Gilbert Tara Travis Roger Nick Doris Brad Rodney Adrian Virginia Cindy
  Sadie Olivia Violet Gina Lucy Edward Yuri Helena Shelby Edgar Elise Rod
  Morris Bernard Greta Sophie Juan Eva Jessica Ravi Quentin Claire Jennifer
  Gareth Mason Anton Darren Natalie Stella Angela Beth Rhys Grace Leonard
  Jake Wilfred Shane Nate Arnold Luis Jim Ken Jan Leon Cecil Samuel Viola
  Florence Carter Milton Diana Raoul Arthur Jill Joel Bobby Daniel Vlad Raj
  Harold
  """
)

RELATIONS: tuple[str, ...] = (
  "mentor",
  "rival",
  "neighbor",
  "doctor",
  "tailor",
  "pilot",
  "lawyer",
  "butler",
  "driver",
  "cousin",
)

CITIES: tuple[str, ...] = _words(
  """
  Paris London Berlin Madrid Rome Vienna Prague Warsaw Athens Dublin Oslo
  Stockholm Helsinki Copenhagen Lisbon Brussels Amsterdam Zurich Geneva
  Milan Naples Venice Munich Hamburg Moscow Kiev Budapest Belgrade Istanbul
  Cairo Lagos Nairobi Tokyo Kyoto Seoul Beijing Shanghai Delhi Mumbai
  Bangkok Manila Jakarta Sydney Melbourne Auckland Toronto Montreal Boston
  Chicago Denver Dallas Houston Seattle Miami Lima Havana Bogota Quito
  Santiago Caracas
  """
)

FIELDS: dict[str, tuple[str, ...]] = {
  "age": tuple(str(age) for age in range(18, 97)),
  "city": CITIES,
}
"""Fields of a page and what they may hold."""

PAGE = "page"
"""What the first search of a web question looks for."""

FIRST = "first page"
"""The move that opens what that search has found."""

STEP_THOUGHTS: tuple[str, ...] = ("Next {}", "Now {}", "Then {}", "So {}")
"""Wordings of a thought before a tool call, drawn uniformly.

Light words, because longer ones outweigh in MiniLM's embeddings what tells one
step of a question from the next.
"""

ANSWER_THOUGHTS: tuple[str, ...] = (
  "That is it",
  "It is done",
  "All is done",
  "I have it",
)
"""Wordings of a thought before the answer, drawn uniformly."""
