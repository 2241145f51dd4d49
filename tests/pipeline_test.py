"""A batch is a function of (seed, step, row), and evaluation covers every candidate once."""

import collections
import threading

import jax
import numpy as np
import pytest

from iclm.config import InputError
from iclm.data import evaluation, pipeline, rows
from iclm.data import tokenizer as tokenizer_lib
from iclm.data.records import Example

BYTES = tokenizer_lib.train([], 259, tokenizer_lib.WORDS)
BOS, EOS, PAD = BYTES.bos_id, BYTES.eos_id, BYTES.pad_id


def example(prompt, answer, domain="d", name="e", choices=()):
  return Example(prompt, answer, choices, domain, "all", name)


FINITE = [[example(f"c{i}\nq", str(i), "d", f"d{i}")] for i in range(100)]


class Endless:
  def __len__(self):
    return 2**40

  def __getitem__(self, index):
    return [example(f"n{index}\nq", "a", "n", f"n{index}")]


def mixed(seed=0):
  return pipeline.mixture([FINITE, Endless()], [1.0, 3.0], seed, [True, False])


def loader(source, **changes):
  settings = dict(
    tokenizer=BYTES,
    domains=("other", "d"),
    named=False,
    batch_size=8,
    seq_len=24,
    question="last_line",
    loss="answer",
    too_long="error",
    counted=0,
    share=0,
    n_shares=1,
    prefetch=2,
  )
  return pipeline.Loader(source, **(settings | changes))


def assert_equal(left, right):
  for one, other in zip(left, right, strict=True):
    np.testing.assert_array_equal(one, other)


def joined(*batches):
  return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def test_shares_of_the_mixture_hold_in_every_stretch_and_epochs_are_complete():
  source = mixed()
  names = [source[i][0].id for i in range(800)]
  # Weights 1 : 3, so of any 4k consecutive rows k come from the finite source.
  for start in range(0, 800, 40):
    assert sum(name[0] == "d" for name in names[start : start + 40]) == 10
  # 800 rows hold 200 finite ones: two epochs of 100, each complete, in different orders.
  finite = [name for name in names if name[0] == "d"]
  assert sorted(finite[:100]) == sorted(finite[100:]) == sorted(f"d{i}" for i in range(100))
  assert finite[:100] != finite[100:]
  # An endless source is read in order.
  assert [name for name in names if name[0] == "n"] == [f"n{i}" for i in range(600)]
  assert source[2**41][0].id


def test_the_mixture_is_a_function_of_seed_and_index():
  forward = [mixed()[i][0].id for i in range(60)]
  source = mixed()
  assert [source[i][0].id for i in reversed(range(60))] == forward[::-1]
  other = [mixed(1)[i][0].id for i in range(60)]
  assert other != forward
  # Two like sources take different orders, and no order of a later epoch of the other.
  twins = pipeline.mixture([FINITE, FINITE], [1.0, 1.0], 0, [True, True])
  names = [twins[i][0].id for i in range(1000)]
  orders = [tuple(names[k::2][e : e + 100]) for k in (0, 1) for e in range(0, 500, 100)]
  assert len(set(orders)) == 10


def test_what_cannot_be_mixed():
  with pytest.raises(InputError, match="source 1 holds no rows"):
    pipeline.mixture([FINITE, []], [1.0, 1.0], 0, [True, True])
  with pytest.raises(InputError, match="cannot be shuffled"):
    pipeline.mixture([Endless()], [1.0], 0, [True])


@pytest.mark.parametrize("n", [2, 4])
def test_processes_read_their_rows_of_one_global_batch(n):
  whole = loader(mixed())
  parts = [loader(mixed(), share=i, n_shares=n) for i in range(n)]
  for step in (7, 0):  # In any order.
    shares = [part.batch(step) for part in parts]
    assert_equal(joined(*shares), whole.batch(step))
    assert all(part.ids(step) == whole.ids(step) for part in parts)


def test_a_row_does_not_depend_on_the_batch_size():
  # Rows 8..15 are step 1 of batches of 8, and steps 2 and 3 of batches of 4.
  small = loader(mixed(), batch_size=4)
  assert_equal(joined(small.batch(2), small.batch(3)), loader(mixed()).batch(1))


def test_domains_are_counted_in_the_given_names():
  whole = loader(mixed())
  expected = [1 if name[0] == "d" else -1 for name in whole.ids(0)]
  assert whole.batch(0).domain_B.tolist() == expected
  assert whole.batch(0).domain_B.dtype == np.int32


def test_iterating_is_reading_and_closing_ends_the_thread():
  reader = loader(mixed(), prefetch=3)
  before = threading.active_count()
  batches = reader.iterate(5)
  for step in range(5, 10):
    assert_equal(next(batches), reader.batch(step))
  assert threading.active_count() == before + 1
  batches.close()
  assert threading.active_count() == before


def test_an_error_of_the_thread_is_raised_at_its_step():
  class Broken(Endless):
    def __getitem__(self, index):
      if index >= 2 * 8:
        raise InputError("row 16 is bad")
      return FINITE[index]

  batches = loader(Broken(), prefetch=4).iterate(0)
  next(batches)
  next(batches)
  with pytest.raises(InputError, match="row 16 is bad"):
    next(batches)


def test_truncated_rows_are_counted():
  # bos c <i> \n q <answer>: 6 tokens up to i = 9, 8 from 10 on; at most 6 fit.
  source = pipeline.mixture([FINITE[6:14]], [1.0], 0, [False])
  reader = loader(source, seq_len=6, too_long="truncate_left")
  assert sum(row.n_cut > 0 for row in reader.lay_out(reader._groups(0))[0]) == 4
  with pytest.raises(InputError, match=r"d10: the row needs 8 tokens and seq_len is 6"):
    loader(source, seq_len=6).batch(0)


def test_where_domains_weigh_each_row_has_one():
  told = r"d\d+: its domain 'd' is none of config.data.domains.*did you mean 'a d'"
  with pytest.raises(InputError, match=told):
    loader(FINITE, named=True, domains=("other", "a d")).batch(0)
  loader(FINITE, named=True).batch(0)


def test_settings_that_cannot_work():
  with pytest.raises(InputError, match="batch_size = 8 must be a positive multiple"):
    loader(FINITE, n_shares=3)


def evaluate(examples, **changes):
  settings = dict(
    batch_size=2, seq_len=16, question="last_line", questions_per_row=4, too_long="error"
  )
  return list(evaluation.eval_batches(examples, BYTES, ("d",), **(settings | changes)))


def test_owners_by_hand():
  # Items: 0 and 1 are the choices of the first question, 2 the answer of the second; bos x \n
  # is shared. "q" predicts "a" and "a" predicts eos; item 2 has two tokens and eos.
  pair = [example("x\nq", "b", choices=("a", "b")), example("x\nr", "cd")]
  assert evaluation.eval_items(pair) == [(0, "a"), (0, "b"), (1, "cd")]
  (only,) = evaluate(pair)
  row = [-1, -1, -1, 0, 0, 1, 1, 2, 2, 2, -1, -1, -1, -1, -1, -1]
  np.testing.assert_array_equal(only.owner_BT, [row, [-1] * 16])
  spelled = BYTES.decode(only.batch.tokens_BT[0]), BYTES.decode(only.batch.targets_BT[0])
  assert spelled == ("x\nqaqbrcd", "x\nabcd")
  # The second row is padding: nothing in it counts, and no router looks at it.
  padding = [leaf[1] for leaf in jax.tree.leaves(only.batch)]
  assert_equal(padding, [[PAD] * 16, [PAD] * 16, *[[0] * 16] * 4, -1])
  assert only.batch.domain_B.tolist() == [0, -1]


def test_a_whole_prompt_is_read_once_by_the_router():
  # bos x y, then z with candidate a, z with candidate b: the router sees bos x y z.
  (only,) = evaluate([example("xyz", "a", choices=("a", "b"))], question="none", batch_size=1)
  assert BYTES.decode(only.batch.tokens_BT[0]) == "xyzazb"
  assert only.batch.prompt_mask_BT[0].tolist() == [True] * 4 + [False] * 12
  assert only.owner_BT[0].tolist() == [-1] * 3 + [0, 0, 1, 1] + [-1] * 9


def seen(batches):
  """Returns for each item all that a model reads before and at its answer."""
  items = collections.defaultdict(list)
  for batch, owner_BT, _ in batches:
    np.testing.assert_array_equal(batch.loss_mask_BT > 0, owner_BT >= 0)
    for r, owner_T in enumerate(owner_BT):
      for item in np.unique(owner_T[owner_T >= 0]):
        (segment,) = set(batch.segment_BT[r][owner_T == item])
        own_T = (batch.segment_BT[r] == 1) | (batch.segment_BT[r] == segment)
        leaves = (batch.tokens_BT, batch.position_BT, batch.targets_BT, batch.loss_mask_BT)
        items[int(item)].append([leaf[r][own_T].tolist() for leaf in leaves])
  return dict(items)


def test_every_item_comes_once_and_alike_however_it_is_packed():
  examples = [
    example(f"ctx{i // 3}\nq{i}", "no", name=str(i), choices=("yes", "no") if i % 2 else ())
    for i in range(9)
  ]
  alone = seen(evaluate(examples, questions_per_row=1))
  assert sorted(alone) == list(range(len(evaluation.eval_items(examples))))
  for (i, text), item in zip(evaluation.eval_items(examples), sorted(alone), strict=True):
    ((tokens, _, targets, mask),) = alone[item]
    assert BYTES.decode(tokens) == examples[i].prompt + text
    said = [target for target, counts in zip(targets, mask, strict=True) if counts]
    assert said == [*BYTES.encode(text), EOS]
  # bos ctx0 \n is 6 tokens, an item 4 or 5: 16 hold two items, 24 three or four.
  for seq_len, n_rows in ((16, 7), (24, 5)):
    batches = evaluate(examples, seq_len=seq_len)
    assert seen(batches) == alone
    assert sum(int(b.batch.prompt_mask_BT.any(axis=1).sum()) for b in batches) <= n_rows
    assert {b.batch.tokens_BT.shape for b in batches} == {(2, seq_len)}


def test_evaluation_truncates_only_what_does_not_fit_alone():
  pair = [example("x" * 20 + "\nq", "a", name="long"), example("x\nq", "a", name="short")]
  with pytest.raises(InputError, match="long: the row needs 24 tokens and seq_len is 16"):
    evaluate(pair)
  (only,) = evaluate(pair, too_long="truncate_left")
  assert only.n_truncated == 1
  assert BYTES.decode(only.batch.tokens_BT[0]) == "x" * 12 + "\nqa"
  assert evaluate([]) == []


def test_choices_of_an_example_stand_behind_the_same_text_though_it_is_cut():
  # Bos, 20 letters and a newline are 22 tokens; with a question and its longest choice, of four,
  # 27, of which 16 have room. The neighbour's longest is of two.
  long = example("x" * 20 + "\nq", "a", name="long", choices=("a", "abcd"))
  beside = example("x" * 20 + "\nr", "b", name="beside", choices=("b", "bc"))
  for examples, n_cuts in (([long], [11] * 2), ([long, beside], [11] * 2 + [9] * 2)):
    batches = evaluate(examples, too_long="truncate_left", questions_per_row=1)
    texts = [BYTES.decode(t) for b in batches for t in b.batch.tokens_BT][: len(n_cuts)]
    assert [20 - text.count("x") for text in texts] == n_cuts


def test_training_rows_and_evaluation_rows_are_the_same_rows():
  group = [example("x\nq", "a"), example("x\nr", "b")]
  (only,) = evaluate(group, batch_size=1)
  [row] = rows.pack_all(
    [group], BYTES, seq_len=16, question="last_line", loss="answer", too_long="error"
  )
  assert_equal([leaf[0] for leaf in only.batch[:6]], row[:6])


def test_a_row_that_counts_more_than_the_bound_is_an_error_and_not_cut():
  # Every answer is one byte and its end: two targets a row.
  assert (
    loader([[example("n\nq", "a", "d", "d0")]] * 8, counted=2).batch(0).loss_mask_BT.sum() == 16
  )
  with pytest.raises(InputError, match="the row counts 2 targets"):
    loader([[example("n\nq", "a", "d", "d0")]] * 8, counted=1).batch(0)
