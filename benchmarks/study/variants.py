"""The rewards that are compared, each as flags of `vigor-trainer`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to reward: its name in tables, the reward that is recorded, and the flags that ask for it."""

    name: str
    reward: str
    flags: tuple[str, ...] = ()

    @property
    def directory_name(self) -> str:
        return self.name.replace(" ", "-").replace("√", "sqrt-")

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--reward", self.reward, *self.flags)


VARIANTS = (
    Variant("vigor", "vigor"),
    Variant("vigor without √T", "vigor", ("--vigor_sqrt_length", "false")),
    Variant("vigor without rank", "vigor", ("--vigor_rank", "false")),
    *(Variant(name, name) for name in ("self_certainty", "entropy", "logprob", "majority", "verifier", "random")),
)
