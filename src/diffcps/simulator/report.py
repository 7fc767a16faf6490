"""What a check against a simulator has found: records with types, their JSON, and the verdict in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from diffcps.simulator.probe import FITS
from diffcps.simulator.record import FileFacts
from diffcps.simulator.replay import Comparison
from diffcps.simulator.reward_faults import Terminals
from diffcps.simulator.versions import Version
from diffcps.storage import SOFTWARE, JsonRow


@dataclass(frozen=True)
class Sample:
    """The rows that were drawn, and what is known of the states in which they start."""

    environment: str
    seed: int
    drawn: int
    judged: int
    not_judged: dict[str, int]
    """Rows by the reason why they cannot be judged."""
    state: str
    """Where the state comes from, for people."""
    left_out: list[str]
    """Coordinates of the state that observations leave out."""
    own_steps_again: float
    """Share of its own steps that the simulator gives again from the observations; -1 where none could be tried."""
    goal: list[float] | None
    """AntMaze: where the rewards have the goal."""


@dataclass(frozen=True)
class EntryErrors:
    """Errors of one entry of the next observation, in one-step changes."""

    entry: int
    name: str
    one_step_change: float
    """The unit of the errors, in units of the environment."""
    median: float
    p99: float
    agree: float
    """Share of the steps within rounding."""


@dataclass(frozen=True)
class StepErrors:
    """Errors of the worst entry of each step, in one-step changes."""

    agree: float
    median: float
    p99: float
    close_in_contact: float | None
    """Share of the steps with a contact that come within a thousandth of a one-step change; None without any."""
    close_without_contact: float | None
    worst_rows: list[int]
    """Rows of the file."""


@dataclass(frozen=True)
class RewardErrors:
    """Errors of the rewards, in their own units."""

    agree: float
    median: float
    p99: float


@dataclass(frozen=True)
class Findings:
    """What the judged steps have shown."""

    observation: list[EntryErrors]
    step: StepErrors
    reward: RewardErrors
    agree_when_repaired: float
    """Share of steps that agree with the faults of the steps undone."""
    terminal: Terminals
    fits: bool
    versions: list[Version]
    """Other versions of the environment on the same steps."""
    comparison: Comparison
    """The judged steps one by one, as the file stands; not in the JSON."""


@dataclass(frozen=True)
class Report:
    """The answer of `diffcps.simulator.check.check_simulator`."""

    file: FileFacts
    sample: Sample
    faults: list[str]
    """A sentence without its full stop for each."""
    findings: Findings | None
    """None where nothing can be judged."""

    @property
    def fits(self) -> bool | None:
        """Whether the data fit the simulator; None where nothing can be judged."""
        return None if self.findings is None else self.findings.fits

    @property
    def verdict(self) -> str:
        """The answer in a few sentences."""
        if self.findings is None:
            return _cannot_judge(self.sample)
        return _verdict(self.sample, self.findings, self.faults)

    def to_json(self) -> JsonRow:
        """Everything but the single steps; docs/simulator-check.md names what programs read."""
        found = self.findings
        measured: JsonRow = {}
        versions: JsonRow = {}
        if found is not None:
            measured = {
                "observation": [asdict(entry) for entry in found.observation],
                "step": asdict(found.step),
                "reward": asdict(found.reward),
                "agree_when_repaired": found.agree_when_repaired,
                "terminal": asdict(found.terminal),
            }
            versions = {"versions": [asdict(version) for version in found.versions]}
        facts: JsonRow = {"software": SOFTWARE, **asdict(self.file), **asdict(self.sample)}
        answer: JsonRow = {"fits": self.fits, "faults": [*self.faults]}
        return {**facts, **measured, **answer, **versions, "verdict": self.verdict}


def _cannot_judge(sample: Sample) -> str:
    if sample.own_steps_again >= FITS:
        return f"Cannot be judged: only {sample.judged} of {sample.drawn} drawn steps have a known state."
    return (
        f"Cannot be judged: the observation of {sample.environment} does not tell its state "
        f"({max(sample.own_steps_again, 0.0):.0%} of the simulator's own steps come out again). It leaves out "
        f"{_list(sample.left_out) or 'something beyond qpos and qvel'}, "
        "and the file does not hold it in infos/qpos and infos/qvel."
    )


def _verdict(sample: Sample, found: Findings, faults: Sequence[str]) -> str:
    name, step, terminal = sample.environment, found.step, found.terminal
    shares = f"{step.agree:.1%} of {sample.judged:,} judged steps and {found.reward.agree:.1%} of their rewards"
    if found.fits:
        sentences = [f"The data fit {name}: {shares} agree within the rounding of float32."]
    else:
        sentences = [
            f"The data do not fit {name}: {shares} agree within the rounding of float32 (median error of a step "
            f"{step.median:.2g} one-step changes)."
        ]
    if terminal.stored:
        sentences.append(f"{terminal.confirmed} of {terminal.stored} terminals looked at are confirmed.")
    sentences += [f"Found: {fault}." for fault in faults]
    repaired = found.agree_when_repaired > step.agree + 0.01
    if repaired:
        sentences.append(f"With that undone {found.agree_when_repaired:.1%} of the steps agree.")
    if found.agree_when_repaired < FITS:
        sentences.append(_unexplained(step, "the rest" if repaired else "it"))
    if same := [version.environment for version in found.versions if version.fits]:
        as_good = "On these steps {} cannot be told from it." if found.fits else "All of it fits {}."
        sentences.append(as_good.format(_list(same)))
    return " ".join(sentences)


def _unexplained(step: StepErrors, what: str) -> str:
    start = f"No fault that is known here explains {what}"
    contact, free = step.close_in_contact, step.close_without_contact
    if contact is None or free is None or free < FITS or contact >= FITS:
        return f"{start}: other physics, another build of the simulator, noise, or several faults at once."
    return (
        f"{start}, but steps in which nothing touches come within a thousandth of a one-step change "
        f"({free:.1%}), and those with a contact do not ({contact:.1%}): other friction, or another version of "
        "MuJoCo, whose contacts differ."
    )


def _list(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
