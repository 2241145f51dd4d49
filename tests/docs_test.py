"""What the pages name is there: files, places within a page, modules, and flags of commands."""

import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("README.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
FILE = re.compile(r"`((?:iclm|experiments|configs|tests|colab)/[\w/.]+\.(?:py|json|ipynb))`")
BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
name = lambda page: str(page.relative_to(ROOT))


def anchors(page: pathlib.Path) -> set[str]:
  """Of its headings, as GitHub makes them."""
  titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: pathlib.Path) -> list[list[str]]:
  """The words of every command of ours in a block of code, its lines joined."""
  text = "\n".join(BLOCK.findall(page.read_text())).replace("\\\n", " ")
  asked = [line for line in text.splitlines() if line.lstrip().startswith("python -m ")]
  prose = BLOCK.sub("", page.read_text()).replace("\n", " ")
  asked += re.findall(r"`(python -m [^`]+)`", prose)
  return [shlex.split(line, comments=True) for line in asked]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_exist(page):
  text = page.read_text()
  for path, anchor in LINK.findall(text):
    found = (page.parent / path).resolve() if path else page
    assert found.exists(), path
    if anchor:
      inside = found / "README.md" if found.is_dir() else found
      assert anchor in anchors(inside), (path, anchor)
  for path in FILE.findall(text):
    assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_their_module_and_flags(page):
  for words in commands(page):
    module = importlib.util.find_spec(words[2])
    assert module and module.origin, words
    source = pathlib.Path(module.origin).read_text()
    own = words[: words.index("--")] if "--" in words else words
    for flag in re.findall(r"^--(\w+)", "\n".join(own[3:]), re.MULTILINE):
      known = f'"{flag}"' in source or flag in ("config", "workdir", "step", "mesh")
      assert known or "lm_eval" in words[2], (words[2], flag)
    required = re.search(r"mark_flags_as_required\(\[(.*?)\]\)", source)
    for flag in re.findall(r'"(\w+)"', required[1] if required else ""):
      assert any(word.startswith(f"--{flag}") for word in own), (words, flag)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(capsys, monkeypatch):
  [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  monkeypatch.chdir(ROOT)
  exec(block, {})
  *_, found, forced = capsys.readouterr().out.split()
  assert float(found) < float(forced)  # Every input of another surface pays for the wrong expert.
