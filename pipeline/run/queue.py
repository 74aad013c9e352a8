"""Which steps the next of several jobs takes.

A job is a launch, and its process imports torch and TRL once, which takes longer than many a step.
So it takes a chain of steps, each of which needs the one before. Whatever else a step of a chain
was needed for can start beside it once that step is finished. Of all chains that can start, the one
that the most work waits for goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pipeline.steps.spec import StepSpec


@dataclass
class Queue:
    """The steps that wait.

    Attributes:
        waiting: in an order in which they could run.
        urgency: by fingerprint; see `urgency_of`.
        chains: whether a job may take several steps.
        in_turn: whether a step is one of those that only one job at a time may work on.
    """

    waiting: list[StepSpec]
    urgency: dict[str, float]
    chains: bool
    in_turn: Callable[[StepSpec], bool]

    def take(
        self, running: Collection[StepSpec], is_held: Callable[[StepSpec], bool]
    ) -> list[StepSpec]:
        """Take the steps of the next job; none while all that wait need others, or are held.

        Args:
            running: what other jobs have not finished yet.
            is_held: whether another run works on a step.
        """
        taken = any(map(self.in_turn, running))
        ready = [
            step
            for step in self.waiting
            if not self._lacks(step, running)
            and not (taken and self.in_turn(step))
            and not is_held(step)
        ]
        chain = [max(ready, key=self._urgency)] if ready else []
        if chain and self.chains:
            if self.in_turn(chain[0]):
                chain = list(filter(self.in_turn, ready))
            while after := [
                step
                for step in self.waiting
                if chain[-1].fingerprint in needs(step)
                and not self._lacks(step, running, chain)
                and not self.in_turn(step)
            ]:
                chain.append(max(after, key=self._urgency))
        self.waiting = [step for step in self.waiting if step not in chain]
        return chain

    def _urgency(self, step: StepSpec) -> float:
        return self.urgency[step.fingerprint]

    def _lacks(
        self, step: StepSpec, running: Collection[StepSpec], chain: Sequence[StepSpec] = ()
    ) -> bool:
        """Whether a step needs one that is not finished, nor of a chain."""
        coming = {other.fingerprint for other in (*self.waiting, *running) if other not in chain}
        return bool(needs(step) & coming)


def asks_in_turn(step: StepSpec, *, limited: bool) -> bool:
    """Whether a step asks a judge that one job at a time may ask, so that its limits hold.

    They are the requests that a server gets at once, and, where they are `limited`, all calls.
    """
    engine = (step.runtime_options.get("judge") or {}).get("engine")
    return engine == "openai" or (engine == "local" and limited)


def needs(step: StepSpec) -> set[str]:
    """The fingerprints of the steps that a step reads."""
    return {value.fingerprint for value in step.inputs.values() if isinstance(value, StepSpec)}


def urgency_of(steps: Sequence[StepSpec], seconds: dict[str, float]) -> dict[str, float]:
    """Fingerprint -> seconds from the start of a step to the end of the last one that needs it.

    Args:
        steps: in an order in which they could run.
        seconds: by fingerprint; a step that is not among them is taken to be as long as others.
    """
    usual = sorted(seconds.values())[len(seconds) // 2] if seconds else 1.0
    found: dict[str, float] = {}
    for step in reversed(steps):  # so that whatever needs a step comes before it
        own = seconds.get(step.fingerprint, usual)
        found[step.fingerprint] = own + found.get(step.fingerprint, 0.0)
        for needed in needs(step):
            found[needed] = max(found.get(needed, 0.0), found[step.fingerprint])
    return found
