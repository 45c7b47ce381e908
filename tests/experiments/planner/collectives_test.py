# ruff: noqa: E501  Lines of a compiled program are as long as they are.
"""Communication in the text of compiled programs."""

from experiments.planner.collectives import Collective, collectives

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%layer (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %gather = bf16[32,64]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %sum = (f32[8,64]{1,0}, f32[2]{0}) all-reduce(%y, %z), replica_groups=[4,2]<=[8], to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  %c = f32[] add(%a, %b)
}

%test (p: (s32[], bf16[8,64])) -> pred[] {
  %d = pred[] compare(%i, %n), direction=LT
}

%outer (p: (s32[])) -> (s32[]) {
  %scan = (s32[], bf16[8,64]) while(%t), condition=%test, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %move = f32[10]{0} collective-permute(%v), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p: s32[]) -> s32[] {
  %chunk = (s32[]) while(%s), condition=%test, body=%outer
  %start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%q), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %part = f32[100]{0} reduce-scatter(%r), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def test_loops_groups_and_asynchronous_starts():
  # The outer loop is told to run twice, the inner one runs three times.
  assert collectives(PROGRAM, trips=(2,)) == [
    Collective(
      "all-gather",
      7,
      6 * (32 * 64 * 2 * 3 / 4) + 32 * 4 * 2 * 3 / 4,
    ),
    Collective("all-reduce", 6, 6 * 2 * (8 * 64 * 4 + 2 * 4) / 2),
    Collective("reduce-scatter", 1, 100 * 4 * 3),
    Collective("collective-permute", 2, 2 * 40),
  ]


def test_a_loop_that_nothing_is_told_of_runs_once():
  counts = {c.op: c.count for c in collectives(PROGRAM, trips=())}
  assert counts["collective-permute"] == 1
  assert counts["all-gather"] == 3 + 1
