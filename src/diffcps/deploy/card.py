"""The model card of an export: what it is, what it was trained on, what it scored, how to call it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from diffcps.algorithms import ALGORITHMS
from diffcps.deploy.program import Exported
from diffcps.deploy.record import ExportRecord
from diffcps.records.folder import RunFolder
from diffcps.records.record import SCORE_KINDS, MemberEpisodes, MemberScores, RunEvaluation
from diffcps.run.table import score_text
from diffcps.storage import read_json
from diffcps.types import UserError

PROTOCOLS = {
    "last": "the last evaluation",
    "best": "the evaluation with the highest return, chosen by asking the environment",
    "mean_of_last": "the mean over the last evaluations",
    "offline_selected": "the evaluation with the lowest `selection/loss`, chosen without the environment",
}


def card(policy: Exported, record: ExportRecord) -> str:
    """README.md, with the front matter by which model hubs file it."""
    method = ALGORITHMS[record.algorithm]
    title = (method.__doc__ or record.algorithm).splitlines()[0].rstrip(".")
    kinds = [name.removeprefix("policy.") for name in record.parity]
    tags = ["reinforcement-learning", "offline-reinforcement-learning", record.algorithm, *kinds]
    needs = "neither diffcps nor JAX" if "onnx" in kinds else "JAX, and not diffcps"
    lines = [
        *_front_matter(record, tags),
        f"# {record.algorithm}" + ("" if record.environment is None else f" for {record.environment}"),
        "",
        f"A policy by {title}, trained with diffcps and exported: it needs {needs}.",
        "",
        *_facts(record),
        "",
        "## Scores",
        "",
        *_scores(policy, record),
        "",
        "## How to call it",
        "",
        *_how(record),
        "",
        "## How far it is from the run",
        "",
        *_parity(record),
        "",
        "## The method",
        "",
        "```bibtex",
        method.CITATION,
        "```",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(record: ExportRecord, tags: Sequence[str]) -> Iterator[str]:
    yield from ("---", "library_name: diffcps", "license: unknown  # of the weights: yours to say")
    yield from ("pipeline_tag: reinforcement-learning", "tags:", *(f"- {tag}" for tag in tags))
    if record.environment is not None:
        yield f"- {json.dumps(record.environment)}"
    yield from ("datasets:", f"- {json.dumps(record.dataset)}", "---", "")


def _facts(record: ExportRecord) -> Iterator[str]:
    checkpoint = f"{record.checkpoint}, after {record.updates:,} updates (member {record.member}, seed {record.seed})"
    yield from ("| | |", "|---|---|", f"| method | `{record.algorithm}` |", f"| checkpoint | {checkpoint} |")
    yield f"| data | `{record.dataset}`, SHA-256 `{record.dataset_sha256}` |"
    yield f"| environment | {record.environment or 'none: the run has no scores'} |"
    yield f"| observation | {record.observation_size} numbers, in the environment's units |"
    yield f"| action | {record.action_size} numbers, from {list(record.action_low)} to {list(record.action_high)} |"
    choice = getattr(record.config, "action_choice", None)
    if choice is not None:
        yield f"| acts by | `{choice}` |"
    yield "| every field | `config.json` |"


def _scores(policy: Exported, record: ExportRecord) -> Iterator[str]:
    folder = RunFolder(policy.run)
    found, played = _summary(folder, record.member), _evaluations(folder, policy)
    if found is None and not played:
        yield "The run has no scores."
        return
    if record.plans_anew:
        yield "They are of the run, which follows a plan for several steps; the exported policy plans at every step."
        yield ""
    if found is not None and found.scores is not None:
        own = getattr(folder.read_record().config, "action_choice", None)
        by = "" if own is None else f", acting by `{own}`"
        yield from (f"Of the run, while it was trained{by}:", "", "| protocol | return (normalised) | after updates |")
        yield "|---|---|---|"
        for kind in SCORE_KINDS:
            if (score := getattr(found.scores, kind)) is not None:
                updates = ", ".join(f"{update:,}" for update in score.updates)
                yield f"| `{kind}`: {PROTOCOLS[kind]} | {score_text(score.score, score.normalised)} | {updates} |"
    for evaluation, row in played:
        by = "" if evaluation.action_choice is None else f" by `{evaluation.action_choice}`"
        yield ""
        yield (
            f"New episodes in {evaluation.environment}{by}: checkpoint `{evaluation.checkpoint}` (after "
            f"{row.updates:,} updates), {evaluation.episodes} episodes from seed {evaluation.seed}, return "
            f"{score_text(row.score, row.normalised)}, standard deviation over the episodes {row.std:.3g}."
        )


def _summary(folder: RunFolder, member: int) -> MemberScores | None:
    try:
        found = folder.read_summary().members[member]
    except UserError:  # stopped before it had one
        return None
    return None if found.scores is None else found


def _evaluations(folder: RunFolder, policy: Exported) -> list[tuple[RunEvaluation, MemberEpisodes]]:
    """The new episodes of this member that the run folder holds, in the order of their files' names."""
    members = policy.record.members
    files = sorted((folder.path / "evaluations").glob("*.json"))
    found = [RunEvaluation.from_json(read_json(path), members) for path in files]
    return [(one, row) for one in found for row in one.members if row.member.index == policy.member.index]


def _how(record: ExportRecord) -> Iterator[str]:
    yield "| input | shape | type | what it holds |"
    yield "|---|---|---|---|"
    for given in record.inputs:
        yield f"| `{given.name}` | ({', '.join(map(str, given.shape))}) | {given.dtype} | {given.law} |"
    yield ""
    yield (
        "The output is `action` (batch, act), float32, in the environment's units. The number of rows is free, and "
        "each row is a policy's answer to its observation alone."
    )
    if len(record.inputs) > 1:
        yield "The policy draws its actions: give new random numbers at every call."
    if "policy.onnx" in record.parity:
        yield from ("", "By NumPy and onnxruntime (`policy.onnx`):", "", "```python", "from deploy import Policy", "")
        yield from ("policy = Policy(seed=0)", "action = policy(observation)  # (obs,) or (n, obs)", "```")
    yield ""
    numbers = ", ".join(given.name for given in record.inputs)
    yield from ("By JAX (`policy.stablehlo`, without diffcps):", "", "```python")
    yield from ("from pathlib import Path", "", "import jax", "import jax.export", "")
    yield 'program = jax.export.deserialize(bytearray(Path("policy.stablehlo").read_bytes()))'
    yield "with jax.enable_x64(True):  # observations are float64"
    yield f"    action = program.call({numbers})"
    yield "```"
    yield ""
    yield "`weights.safetensors` has the member's arrays under the names of the run's checkpoints."


def _parity(record: ExportRecord) -> Iterator[str]:
    yield "| file | observations | largest difference, of the width of the action box | other choices |"
    yield "|---|---|---|---|"
    for name, parity in record.parity.items():
        yield f"| `{name}` | {parity.rows} | {parity.largest_difference:.1g} | {parity.other_choices} |"
    yield ""
    yield (
        "Measured at export with the same random numbers. Other choices: rows in which candidates are equal but for "
        "rounding, and another one was chosen; they are not in the largest difference."
    )
