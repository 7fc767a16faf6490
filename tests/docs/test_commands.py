"""Commands in the documents: each is one that the command line takes. None of them is run."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffcps.cli.main import _parser
from diffcps.cli.train import _given
from diffcps.run.resolve import resolve
from diffcps.types import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [path for folder in ("docs", "results", "benchmarks") for path in sorted((ROOT / folder).rglob("*.md"))]
STANDS_FOR = {"METHOD": "diffcps", "TASK": "hopper-medium"}
"""Words that a reader replaces, where not every word would do."""
LOOP = re.compile(r"for (\w+) in (.*); do (.*); done$")
VARIABLE = re.compile(r'([A-Z]+)="(.*)"$')


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of fenced blocks with the number of each; a continued line is one. A block that begins is an empty line."""
    fenced, begun, indent = False, "", ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.removeprefix(indent)
        if line.lstrip().startswith("```"):
            fenced, begun = not fenced, ""
            indent = line[: line.index("`")] if fenced else ""
            yield number, ""
        elif fenced and line.endswith("\\"):
            begun += line[:-1]
        elif fenced:
            yield number, begun + line
            begun = ""


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Arguments of every `diffcps ...` in fenced blocks, with variables, loops and optional [parts] written out."""
    variables: dict[str, str] = {}
    for number, line in lines(text):
        line = line.removeprefix("$ ")
        if not line:
            variables = {}
        elif assigned := VARIABLE.match(line):
            variables[assigned[1]] = assigned[2]
        loop = LOOP.match(line)
        turns = [{loop[1]: value} for value in loop[2].split()] if loop else [{}]
        for turn in turns:
            command = loop[3] if loop else line
            if not command.startswith("diffcps "):
                continue
            for name, value in (variables | turn).items():
                command = re.sub(rf"\${name}\b", value, command)
            command = re.sub(r"\[(.*?)\]", r"\1", command)
            words = shlex.split(command, comments=True)[1:]
            yield number, [STANDS_FOR.get(word, word) for word in words]


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    return _parser()


def fault(parser: ArgumentParser, arguments: list[str]) -> str | None:
    """What the command line has against a command; of a training also what presets, tasks and sweeps say."""
    try:
        options = parser.parse_args(arguments)
        if arguments[0] == "train":
            resolve(options.algorithm, _given(options), options.task, options.preset, None, None)
    except UserError as error:
        return str(error)
    except SystemExit as end:  # --help
        return f"ends with {end.code}" if end.code else None
    return None


def faults(parser: ArgumentParser, text: str) -> list[str]:
    found = [(number, arguments, fault(parser, arguments)) for number, arguments in commands(text)]
    return [f"{number}: diffcps {' '.join(arguments)}: {error}" for number, arguments, error in found if error]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_are_such(parser, page):
    assert faults(parser, page.read_text()) == []


def test_commands_were_found():
    found = [arguments for page in PAGES for _, arguments in commands(page.read_text())]
    assert len(found) > 150
    assert {arguments[0] for arguments in found} >= {
        "train",
        "evaluate",
        "data",
        "study",
        "reproduce",
        "table",
        "kappa",
    }


PAGE = """
Before. diffcps train nothing

```bash
M="--env Hopper-v5 --seeds 0 1"
$ diffcps train bc $M \\
    --updates 9    # to be continued
for figure in figure1 figure5; do diffcps reproduce $figure; done
diffcps evaluate RUN [--episodes 5]
  diffcps as a word
```
- in a list
  ```
  diffcps cite bc
  ```
"""


def test_commands_are_written_out():
    assert list(commands(PAGE)) == [
        (7, ["train", "bc", "--env", "Hopper-v5", "--seeds", "0", "1", "--updates", "9"]),
        (8, ["reproduce", "figure1"]),
        (8, ["reproduce", "figure5"]),
        (9, ["evaluate", "RUN", "--episodes", "5"]),
        (14, ["cite", "bc"]),
    ]


@pytest.mark.parametrize(
    "command",
    [
        "diffcps trian bc",
        "diffcps train no_such_method",
        "diffcps train bc --kappa 0.1",
        "diffcps train crr --filter no_such_filter",
        "diffcps train diffcps --preset no-such-task",
        "diffcps train diffcps --task no-such-task-v2",
        "diffcps evaluate runs/first --epsiodes 5",
        "diffcps train awr --seeds one",
    ],
)
def test_wrong_commands_are_found(parser, command):
    assert len(faults(parser, f"```\n{command}\n```")) == 1
