"""A trained run as a model of EleutherAI's lm-evaluation-harness (extra `eval`).

`python -m experiments.lm_eval` registers it there; releases after 0.4.13 find it by the entry point
in setup.py.
"""

import dataclasses
import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.model import LM
from tqdm import tqdm

from experiments import cli
from iclm import config, generate, workdir
from iclm.config import InputError, nearest
from iclm.data import chat
from iclm.evals import likelihood
from iclm.evals.subject import Subject

NAME = "iclm"
MAX_TOKENS = 256  # Of an answer, where a task does not say; as other models of the harness have it.
ARGUMENTS = ("workdir", "end", "batch_size", "max_length", "step", "mesh")
STRIDE = 16  # Tokens between two looks at the answers.
# What a task may say about generation, under each of its names; all else is an error.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GENERATION = ("until", "do_sample", "temperature", "top_k", "top_p", "seed", *LENGTHS)


class Harness(LM):
  """Answers the requests of the harness with one run; the route goes by the context alone."""

  def __init__(
    self,
    workdir: str = "",
    end: bool = False,
    batch_size: int | str = "auto",
    max_batch_size: int | None = None,
    max_length: int | None = None,
    step: int | str | None = None,
    device: str | None = None,
    mesh: str | None = None,
    **unknown: Any,
  ):
    """Loads the newest good checkpoint of a run.

    Args:
      workdir: its folder.
      end: the end token behind a continuation counts too, as in `experiments.evaluate`; for tasks
        whose continuations are whole answers. Other models of the harness do not count it.
      batch_size: rows at once, rounded up to what the devices share evenly; "auto" takes that of
        the run's evaluation.
      max_batch_size: bounds nothing, since no batch grows.
      max_length: tokens of a context and what follows it; a row of the run's evaluation where it is
        not given.
      device: chooses nothing, since the harness asks for "cuda:0" where nobody did; JAX takes the
        devices that it has, and JAX_PLATFORMS chooses.
      step: of the checkpoint, or "best"; the newest good one where it is not given.
      mesh: devices for data, experts and model, as 8x1x1; the run's own where it is not given.

    Raises:
      InputError: see `cli.mesh_of` and `workdir.load_run`, or an argument is bad.
    """
    super().__init__()
    for name in unknown:
      raise InputError(f"model_args: {name!r} is not known: " + nearest(name, ARGUMENTS))
    if not workdir:
      raise InputError("model_args must name the folder of a run, as workdir=runs/acre")
    if not isinstance(end, bool):
      raise InputError(f"end = {end!r} must be True or False")
    run = _load(workdir, mesh, step)
    c = run.config
    if c.experts.kind != "none" and c.router.kind == "oracle":
      raise InputError("config.router.kind = 'oracle' routes by domains, and a task names none")
    rows = _rows(batch_size, c.evaluation.batch_size)
    evaluation = dataclasses.replace(c.evaluation, batch_size=rows)
    data = dataclasses.replace(c.data, too_long="truncate_left")
    c = dataclasses.replace(c, evaluation=evaluation, data=data)
    if max_length is not None:
      c = generate.with_context(c, _whole("max_length", max_length))
    self._config, self._end, self._tokenizer = c, end, run.tokenizer
    parts = run._replace(config=c).parts
    self._subject = Subject(*parts)
    self._generator = generate.Generator(*parts, c.evaluation_rows)

  @property
  def tokenizer_name(self) -> str:
    """Tells the request caches of two runs apart: they hold prompts as the template writes them."""
    return hashlib.sha256(self._template().to_json().encode()).hexdigest()

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The source of the run's template, which the harness records."""
    return self._template().source if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The prompt that the run's template makes of messages."""
    return self._template().render(chat_history, answer=add_generation_prompt)

  def _template(self) -> chat.Template:
    if self._tokenizer.chat is None:
      raise InputError(
        "this run has no chat template: train it with config.data.chat_template, or leave out "
        "--apply_chat_template"
      )
    return self._tokenizer.chat

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """(nats, whether greedy decoding says it) of each (context, continuation).

    The two are tokenised as prompt and answer are in training: a space at the end of the context
    is the context's, where other models of the harness count it as the continuation's.
    """
    pieces = [
      likelihood.encode(context, continuation, self._tokenizer, self._config, end=self._end)
      for context, continuation in (request.args for request in requests)
    ]
    found: list[Any] = [None] * len(pieces)
    for i, one in _watch(self._subject.likelihoods(pieces), len(pieces), disable_tqdm):
      found[i] = (one.nats, one.greedy)
      self.cache_hook.add_partial("loglikelihood", requests[i].args, found[i])
    _tell_cut(sum(piece.n_cut > 0 for piece in pieces), len(pieces))
    return found

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Nats of each text, in windows where it is longer than the context."""
    texts = [request.args[0] for request in requests]
    windows = [likelihood.windows(text, self._tokenizer, self._config) for text in texts]
    pieces = [piece for own in windows for piece in own]
    owners = [i for i, own in enumerate(windows) for _ in own]
    nats = [0.0] * len(texts)
    for p, one in _watch(self._subject.likelihoods(pieces), len(pieces), disable_tqdm):
      nats[owners[p]] += one.nats
    for request, found in zip(requests, nats, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, found)
    return nats

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """The answer to each context, up to the first of its stop strings."""
    alike, found = defaultdict(list), [""] * len(requests)
    for i, request in enumerate(requests):
      alike[json.dumps(request.args[1], sort_keys=True)].append(i)
    told = {asked: options_of(json.loads(asked)) for asked in alike}
    for options in told.values():  # All of them before the first answer.
      generate.check(options, self._config)
    bar = tqdm(total=len(requests), desc="answers", disable=disable_tqdm)
    n_cut = 0
    for asked, indices in alike.items():
      options = told[asked]
      texts = [requests[i].args[0] for i in indices]
      for piece in self._generator.stream(texts, options, STRIDE):
        if piece.answer is not None:
          i = indices[piece.index]
          found[i] = piece.answer.text
          n_cut += piece.answer.n_cut > 0
          self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
          bar.update()
    bar.close()
    _tell_cut(n_cut, len(requests))
    return found


def options_of(asked: dict[str, Any]) -> generate.Options:
  """A task's generation arguments as ours.

  Raises:
    InputError: there is one that nothing here would follow, or that is not of its type.
  """
  for key in asked:
    if key not in GENERATION:
      raise InputError(f"the task's generation argument {key!r} is not known: "
                       + nearest(key, GENERATION))  # fmt: skip
  number = functools.partial(_number, {k: v for k, v in asked.items() if v is not None})
  # As the harness has it: a temperature alone means to sample, and do_sample = false not to.
  temperature = number("temperature", float, 0.0)
  sample = asked.get("do_sample")
  if sample is None:
    sample = temperature > 0
  if not isinstance(sample, bool):
    raise InputError(f"the task's generation argument do_sample = {sample!r} must be true or false")
  if sample and temperature == 0:
    temperature = 1.0
  length = next((key for key in LENGTHS if asked.get(key) is not None), LENGTHS[0])
  return generate.Options(
    max_tokens=number(length, int, MAX_TOKENS),
    temperature=temperature if sample else 0.0,
    top_k=number("top_k", int, 0) if sample else 0,
    top_p=number("top_p", float, 1.0) if sample else 1.0,
    seed=number("seed", int, 0),
    stop=_stops(asked.get("until")),
    route=None,
    disabled=(),
  )


def _number(asked: dict[str, Any], key: str, kind: type, default: float) -> Any:
  """A number that a task gives, or that the command line does, as text."""
  value = asked.get(key, default)
  try:
    if isinstance(value, bool) or kind(value) != float(value):
      raise ValueError
    return kind(value)
  except (TypeError, ValueError, OverflowError):
    what = "a whole number" if kind is int else "a number"
    raise InputError(f"the task's generation argument {key} = {value!r} must be {what}") from None


def _stops(until: Any) -> tuple[str, ...]:
  texts = [until] if isinstance(until, str) else until or []
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise InputError(f"the task's generation argument until = {until!r} must be texts")
  return tuple(text for text in texts if text)


def _load(folder: str, mesh: str | None, step: int | str | None) -> workdir.Run:
  path, at = config.path(str(folder)), cli.step_of(None if step is None else str(step))
  return workdir.load_run(path, cli.mesh_of(path, mesh), at)


def _rows(batch_size: int | str, automatic: int) -> int:
  """The harness passes a number on as a string, and `auto:N` for one that it would search for."""
  if str(batch_size).startswith("auto"):
    return automatic
  return _whole("batch_size", batch_size, " or 'auto'")


def _whole(name: str, value: int | str, other: str = "") -> int:
  if not str(value).isdecimal() or int(value) < 1:
    raise InputError(f"{name} = {value!r} must be a whole number, at least 1{other}")
  return int(value)


def _watch(found: Iterator[Any], n: int, disable: bool) -> Iterator[Any]:
  return iter(tqdm(found, total=n, desc="likelihoods", disable=disable))


def _tell_cut(n_cut: int, n: int) -> None:
  if n_cut:
    print(f"{n_cut} of {n} contexts were too long and lost tokens from their left")
