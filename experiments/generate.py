"""Talk to a trained run: which expert answers, how sure the router was, and what it says.

python -m experiments.generate --workdir=runs/quickstart --prompt=TEXT [--prompt=...]
  [--prompts=FILE] [--out=OUT.jsonl] [--max_tokens=64] [--stop=STRING ...]
  [--temperature=0.8 --top_k=40 --top_p=0.95 --seed=1] [--do_route=2] [--disable_expert=0 ...]
  [--chat [--system=TEXT]] [--context=4096]

Without any prompt it reads one per line from the terminal, and answers as it speaks. A file holds a
prompt per line, or is a jsonl of records, whose prompts may have several lines. The answer to a
prompt stands directly behind it, as in training. Under --chat a prompt is what a user says, and the
run's chat template makes the rest of it; messages of records are written by it always.
"""

import pathlib
import sys
from collections.abc import Callable

from absl import flags

from experiments import cli
from iclm import config, generate, outputs, workdir
from iclm.config import InputError
from iclm.data import assemble, chat, records

WATCHED = 1  # Tokens between two looks of somebody who waits for them.


def main(flag: flags.FlagValues) -> int:
  out = None if flag.out is None else config.path(flag.out)
  if out is not None:
    outputs.check_can_be_written(out)
    if flag.prompts is not None and out.resolve() == config.path(flag.prompts).resolve():
      raise InputError(f"--out={flag.out} is the file of --prompts, which it would replace")
  if sys.stdin is None and not flag.prompt and flag.prompts is None:
    raise InputError("there is no input to read prompts from; give --prompt or --prompts")
  folder = config.path(flag.workdir)
  sizes = cli.mesh_of(folder, flag.mesh)
  template = workdir.template_of(folder)
  ask = _asker(flag, template)
  asked, options = _asked(flag, template, ask), _options(flag)
  if not asked and out is not None:
    raise InputError("--out takes the answers to --prompt or --prompts, and there is none")
  run = workdir.load_run(folder, sizes, cli.step_of(flag.step))
  if flag.context is not None:
    run = run._replace(config=generate.with_context(run.config, flag.context))
  generate.check(options, run.config)
  size = generate.rows_of(run.mesh, min(len(asked) or 1, flag.batch_size))
  generator = generate.Generator(*run.parts, size)
  if not asked:
    return _talk(generator, ask, options)
  if len(asked) == 1:
    answers = [_show(generator, asked[0], options)]
  else:
    answers = generator(asked, options)
    for answer in answers:
      print(f"{_route(answer)}\n{answer.prompt}{answer.text}\n{_end(answer, options)}\n")
  if out is not None:
    outputs.write_jsonl(out, (_record(a, options) | {"step": run.step} for a in answers))
  return 0


def _asked(
  flag: flags.FlagValues, template: chat.Template | None, ask: Callable[[str], str]
) -> list[str]:
  """The prompts of the flags, then those of the file."""
  told = [ask(text) for text in flag.prompt]
  if flag.prompts is None:
    return told
  path = config.path(flag.prompts)
  if path.name.endswith((".jsonl", ".jsonl.gz")):
    return [*told, *(example.prompt for example in assemble.read(str(path), template))]
  return [*told, *(ask(text) for text in _lines(path))]


def _asker(flag: flags.FlagValues, template: chat.Template | None) -> Callable[[str], str]:
  """From what somebody says to a prompt: the same, or under --chat the template's."""
  if not flag.chat:
    if flag.system:
      raise InputError("--system is what a chat begins with; give --chat too")
    return lambda text: text
  if template is None:
    workdir.config_of(config.path(flag.workdir))  # Where there is no run, that is told instead.
    raise InputError(
      f"{flag.workdir} has no chat template: train it with config.data.chat_template, or leave out "
      "--chat"
    )
  before = [{"role": "system", "content": flag.system}] if flag.system else []

  def ask(text: str) -> str:
    if not text:
      raise InputError("what a user says is empty; a model needs something to answer to")
    return template.render([*before, {"role": "user", "content": text}])

  return ask


def _lines(path: pathlib.Path) -> list[str]:
  """The lines of a text file, none of them empty."""
  if not path.is_file():
    raise records.missing(path)
  try:
    lines = path.read_text("utf-8-sig").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: cannot be read as text: {error}") from None
  lines = lines[:-1] if not lines[-1] else lines
  if not lines:
    raise InputError(f"{path} holds no prompt; write one per line")
  for i, line in enumerate(lines):
    if not line:
      raise InputError(f"{path}:{i + 1}: the prompt is empty; a model needs one token to answer")
  return lines


def _options(flag: flags.FlagValues) -> generate.Options:
  return generate.Options(
    max_tokens=flag.max_tokens,
    temperature=flag.temperature,
    top_k=flag.top_k,
    top_p=flag.top_p,
    seed=flag.seed,
    stop=tuple(flag.stop),
    route=flag.do_route,
    disabled=tuple(flag.disable_expert),
  )


def _talk(
  generator: generate.Generator, ask: Callable[[str], str], options: generate.Options
) -> int:
  """A prompt a line until the input ends; on a terminal a bad one is told and asked anew."""
  terminal = sys.stdin.isatty()
  while True:
    if terminal:
      print("> ", end="", flush=True)
    try:
      line = sys.stdin.readline()
    except UnicodeDecodeError as error:
      raise InputError(f"a prompt is not UTF-8: {error.reason} at byte {error.start}") from None
    if not line:
      return 0
    try:
      _show(generator, ask(line.removesuffix("\n")), options)
    except InputError as error:
      if not terminal:
        raise
      print(f"error: {error}", file=sys.stderr)


def _show(generator: generate.Generator, prompt: str, options: generate.Options) -> generate.Answer:
  """Prints an answer while it is being said."""
  answer = None
  for i, piece in enumerate(generator.stream([prompt], options, WATCHED)):
    if i == 0:
      print(f"{_route(piece)}\n{prompt}", end="")
    print(piece.text, end="", flush=True)
    answer = piece.answer
  assert answer is not None
  print(f"\n{_end(answer, options)}\n", flush=True)
  return answer


def _route(said: generate.Answer | generate.Piece) -> str:
  if said.expert is None:
    return "[plain base]"
  return f"[expert {said.expert}, to which the router gives {said.confidence:.3f}]"


def _end(answer: generate.Answer, options: generate.Options) -> str:
  missed = options.stop and answer.finish != "stop"
  never = "; no stop string was met" if missed else ""
  cut = (
    f"; the prompt was too long and lost its first {answer.n_cut} tokens" if answer.n_cut else ""
  )
  return f"[{answer.finish} after {len(answer.tokens)} tokens{never}{cut}]"


def _record(answer: generate.Answer, options: generate.Options) -> dict:
  return {
    "prompt": answer.prompt,
    "prompt_tokens_cut": answer.n_cut,
    "answer": answer.text,
    "finish": answer.finish,
    "tokens": len(answer.tokens),
    "expert": answer.expert,
    "confidence": answer.confidence,
    "do_route": options.route,
    "disabled": list(options.disabled),
  }


if __name__ == "__main__":
  cli.define_run()
  flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
  flags.DEFINE_string("prompts", None, "A text file with a prompt per line, or a jsonl of records.")
  flags.DEFINE_string("out", None, "Where the answers go, as jsonl.")
  flags.DEFINE_integer("max_tokens", 64, "The most tokens of an answer, its end included.")
  flags.DEFINE_float("temperature", 0.0, "Of the draws; 0 is greedy.")
  flags.DEFINE_integer("top_k", 0, "Draw from so many of the likeliest tokens; 0 from all.")
  flags.DEFINE_float("top_p", 1.0, "Draw from the fewest that hold this share, in (0, 1].")
  flags.DEFINE_integer("seed", 0, "Of the draws.")
  flags.DEFINE_multi_string("stop", [], "A string that ends an answer; several times.")
  flags.DEFINE_integer("do_route", None, "The expert to run, whatever the router says.")
  flags.DEFINE_multi_integer("disable_expert", [], "One whose inputs re-route; several times.")
  flags.DEFINE_bool("chat", False, "Each prompt is what a user says to the run's chat template.")
  flags.DEFINE_string("system", "", "What the system says before, under --chat.")
  told = "Tokens of a prompt and its answer; default: a row of the run's evaluation."
  flags.DEFINE_integer("context", None, told)
  flags.DEFINE_integer("batch_size", 16, "The most prompts answered at once.", lower_bound=1)
  flags.mark_flags_as_required(["workdir"])
  cli.run(main)
