"""Reads the instructions of a Containerfile in order, with continued lines joined."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from msgspec import Struct

RECIPE = Path(__file__).with_name("Containerfile")


class Instruction(Struct, frozen=True):
    """One instruction: its verb, such as ``RUN``, and its text."""

    verb: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def variables(self) -> dict[str, str]:
        """The variables that an ``ENV`` sets. The values are as written, so references to other variables are not
        replaced.
        """
        return dict(word.split("=", 1) for word in self.words)

    @property
    def command(self) -> list[str]:
        """The command line of an ``ENTRYPOINT``, ``CMD`` or ``HEALTHCHECK``. In the recipe, the command line is a JSON
        list or a shell command.
        """
        text = self.text.partition(" CMD ")[2] or self.text
        words: list[str] = json.loads(text) if text.startswith("[") else ["/bin/sh", "-c", text]
        return words

    @property
    def commands(self) -> list[str]:
        """The shell commands of a ``RUN``; each must succeed before the next one runs."""
        return [command.strip() for command in self.text.split(" && ")]


class BuildStage(Struct):
    """A ``FROM`` and the instructions up to the next ``FROM``."""

    name: str
    instructions: list[Instruction]

    def all(self, verb: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.verb == verb]

    def last(self, verb: str) -> Instruction:
        return self.all(verb)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the stage's ``ENV`` instructions set, with their values as written."""
        return {name: value for env in self.all("ENV") for name, value in env.variables.items()}


def read(path: Path = RECIPE) -> list[BuildStage]:
    """The stages of a recipe. Instructions before the first ``FROM`` belong to no stage and are left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: list[BuildStage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        verb, _, text = line.partition(" ")
        instruction = Instruction(verb, re.sub(r" {2,}", " ", text).strip())
        if verb == "FROM":
            stages.append(BuildStage(text.partition(" AS ")[2].strip(), []))
        elif stages:
            stages[-1].instructions.append(instruction)
    return stages
