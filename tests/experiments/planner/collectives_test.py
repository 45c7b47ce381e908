# ruff: noqa: E501  Lines of a compiled program are as long as they are.
"""Communication in the text of compiled programs."""

from experiments.planner.collectives import Collective, collectives

PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

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


def lines(*instructions):
  """A program of these alone, for eight devices."""
  body = "\n".join(f"  %{i} = {text}" for i, text in enumerate(instructions))
  return (
    "HloModule jit_f, is_scheduled=true, num_partitions=8\n\n"
    f"ENTRY %main (p: s32[]) -> s32[] {{\n{body}\n}}\n"
  )


def sent(*instructions):
  return {c.op: c.bytes for c in collectives(lines(*instructions), ())}


def test_all_operands_of_an_asynchronous_start_are_sent():
  # Operands and results of a gather, each a tuple; a sum's are given once.
  gather = (
    "((bf16[8,4]{1,0:T(8,128)(2,1)}, f32[2]{0}), (bf16[32,4]{1,0}, f32[8]{0})) "
    "all-gather-start(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}"
  )
  assert sent(gather) == {"all-gather": (32 * 4 * 2 + 8 * 4) * 3 / 4}
  total = "(f32[100]{0}, bf16[10]{0}) all-reduce-start(%a, %b), replica_groups="
  assert sent(total + "[4,2]<=[8]") == {"all-reduce": 2 * 420 / 2}
  moved = (
    "(bf16[6]{0:T(256)}, bf16[6]{0}, u32[]{:S(2)}, u32[]{:S(2)}) "
    "collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}"
  )
  assert sent(moved) == {"collective-permute": 12}


def test_without_groups_all_devices_take_part():
  total = (
    "f32[100]{0} all-reduce(%a), channel_id=1, replica_groups={}, to_apply="
  )
  assert sent(total + "%add") == {"all-reduce": 2 * 400 * 7 / 8}


TPU_PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%start (p: f32[8]) -> f32[8] {
  %gather.1 = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%piece (p: f32[8]) -> f32[8] {
  %gather.2 = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%ring_test (p: (f32[8], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(4)
  %p.1 = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %at.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%at.1, %limit), direction=LT
}

%ring (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %p.2 = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %one = u32[]{:T(128)} constant(1)
  %at.2 = u32[]{:T(128)} get-tuple-element(%p.2), index=1
  %move.1 = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %fused.2 = f32[8]{0} fusion(%x), kind=kOutput, calls=%piece
  %at.3 = u32[]{:T(128)} add(%at.2, %one)
  %move.2 = f32[8]{0} collective-permute(%y), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %at.4 = u32[]{:T(128)S(6)} copy(%at.3)
  %at.5 = u32[]{:T(128)} add(%at.4, %one)
  ROOT %next = (f32[8]{0}, u32[]{:T(128)}) tuple(%move.2, %at.5)
}

%layers_test (p: (s32[], f32[8])) -> pred[] {
  %count = s32[]{:T(128)} constant(6)
  %p.3 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %layer.1 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  ROOT %below = pred[]{:T(512)} compare(%layer.1, %count), direction=LT
}

%layers (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %step = s32[]{:T(128)} constant(1)
  %layer.2 = s32[]{:T(128)} get-tuple-element(%p.4), index=0
  %begin = f32[8]{0} fusion(%w), kind=kCustom, calls=%start
  %around = (f32[8]{0}, u32[]) while(%r), condition=%ring_test, body=%ring
  %layer.3 = s32[]{:T(128)} add(%layer.2, %step)
  ROOT %more = (s32[]{:T(128)}, f32[8]{0}) tuple(%layer.3, %v)
}

%rows_test (p: (s32[], s32[])) -> pred[] {
  %p.5 = (s32[], s32[]) parameter(0)
  %row.1 = s32[] get-tuple-element(%p.5), index=0
  %rows.1 = s32[] get-tuple-element(%p.5), index=1
  ROOT %left = pred[] compare(%row.1, %rows.1), direction=LT
}

%rows (p: (s32[], s32[])) -> (s32[], s32[]) {
  %all = (s32[], f32[8]) while(%u), condition=%layers_test, body=%layers
}

ENTRY %main (p: s32[]) -> s32[] {
  %loop = (s32[], s32[]) while(%s), condition=%rows_test, body=%rows
}
"""


def test_programs_for_tpu_say_in_their_loops_how_often_these_run():
  # Told of one loop, 5 rows. 6 layers, and 4 moves by 2 in each: the gather
  # that is overlapped with them begins once a layer.
  assert collectives(TPU_PROGRAM, trips=(5,)) == [
    Collective("all-gather", 30, 30 * 8 * 4 * 3 / 4),
    Collective("collective-permute", 5 * 6 * 2 * 2, 5 * 6 * 2 * 2 * 32),
  ]


def test_what_leaves_an_island_goes_by_where_its_devices_are():
  program = lines(
    # Within an island of four, then strided over both, then all.
    "f32[8]{0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
    "f32[8]{0} all-gather(%b), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}",
    "f32[8]{0} all-gather(%c), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}",
    "f32[8]{0} all-reduce(%d), to_apply=%add",
    "f32[8]{0} collective-permute(%e), source_target_pairs={{3,4},{4,3}}",
  )
  far = {c.op: c.far_bytes for c in collectives(program, (), island=4)}
  # 0 and 4 are alone in their islands: all of 32 / 2 bytes leave. 0, 2, 4 and
  # 6 are two and two: half of 32 * 3 / 4.
  assert far["all-gather"] == 16 + 12
  # Four in each island share 2 * 32 * 7 / 8 bytes.
  assert far["all-reduce"] == 56 / 4
  assert far["collective-permute"] == 32
  near = collectives(program, ())
  assert all(c.far_bytes == 0 for c in near)
  assert [c.bytes for c in near] == [
    c.bytes for c in collectives(program, (), island=4)
  ]


def test_what_leaves_a_slice_of_tpus_is_handed_to_its_hosts():
  def transfer(channel, result, kind, target="{1,2,3,4}x{0:7}"):
    given = f'_xla_megascale_target="{target}",' if target else ""
    attributes = (
      f"channel_id={channel}, is_host_transfer=true, frontend_attributes={{"
      f'{given}_xla_megascale_transfer_type="{kind}"}}'
    )
    return (
      f"(bf16[1,8]{{1,0}}, u32[], token[]) send(%a, %t), {attributes}",
      f"({result}, u32[], token[]) recv(%t), {attributes}",
      f"({result}, token[]) recv-done(%r), {attributes}",
    )

  program = lines(
    # The channels of both have the same number.
    "bf16[8]{0} all-gather(%a), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}",
    *transfer(1, "bf16[4,8]{1,0:T(8,128)(2,1)}", "ALL_GATHER"),
    *transfer(2, "f32[100]{0}", "ALL_REDUCE", "{1,3}x{0:7}"),
    *transfer(3, "f32[50]{0}", "ALL_REDUCE", target=None),
    *transfer(4, "f32[10]{0}", "REDUCE_SCATTER"),
    *transfer(5, "f32[8]{0}", "ALL_TO_ALL"),
    *transfer(6, "f32[7]{0}", "ONE_TO_ONE", target=None),
    # To the host, and to nobody else.
    "(f32[9]{0}, u32[], token[]) recv(%t), channel_id=7, is_host_transfer=true",
  )
  found = {
    c.op: (c.count, c.bytes, c.far_bytes)
    for c in collectives(program, (), island=8, slices=4)
  }
  gathered = 4 * 8 * 2 * 3 / 4
  # Two slices, and all four where none are named.
  summed = 2 * 400 / 2 + 2 * 200 * 3 / 4
  assert found == {
    "all-gather": (2, 8 * 2 / 2 + gathered, gathered),
    "all-reduce": (2, summed, summed),
    "reduce-scatter": (1, 40 * 3, 40 * 3),
    "all-to-all": (1, 32 * 3 / 4, 32 * 3 / 4),
    "collective-permute": (1, 28, 28),
  }
  # One fast network for all: the same bytes, and none of them far.
  near = collectives(program, (), island=32, slices=4)
  assert {c.op: (c.count, c.bytes) for c in near} == {
    op: numbers[:2] for op, numbers in found.items()
  }
  assert all(c.far_bytes == 0 for c in near)
