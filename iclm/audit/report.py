"""One HTML file about a run or a sweep: tables, heat maps and curves, nothing to download.

What is missing in a run is missing on its page; what could not be estimated is shown as a dash,
with its reason among the notes. All text that comes from data is escaped.
"""

import importlib.resources
import pathlib

import jinja2

from iclm.audit import drawing, run, sweep
from iclm.config import InputError


def render(folder: pathlib.Path, examined: pathlib.Path | None) -> str:
  """The page of a folder.

  Args:
    folder: of a finished run, or of a sweep: its runs are SYSTEM/SEED.
    examined: what `experiments.evaluate --interventions --independence` wrote of the run, if
      anything.

  Raises:
    InputError: there are no results yet, a file is malformed, or `examined` is of something else.
  """
  if not sweep.is_sweep(folder):
    return _fill("run.html.j2", run.content(folder, examined))
  if examined is not None:
    raise InputError(
      f"{folder} is a sweep and {examined} is about one run; name the run's own folder"
    )
  return _fill("sweep.html.j2", sweep.content(folder))


def _fill(template: str, content: dict) -> str:
  here = importlib.resources.files("iclm.audit")
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: here.joinpath(name).read_text("utf-8")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(number=drawing.number, shade=drawing.shade)
  environment.globals.update(
    width=drawing.WIDTH, height=drawing.HEIGHT, map_width=drawing.MAP_WIDTH
  )
  return environment.get_template(template).render(content)
