"""Run the Dockerfile's own steps, where there is no docker: `python -m tests.image.build DIRECTORY [ARGUMENT=value …]`.

Each stage is a layer in DIRECTORY. Begin it with `layers.in_namespace`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

from tests.image.dockerfile import DOCKERFILE, ROOT, Instruction, Stage, read_stages
from tests.image.layers import STEP_SECONDS, base_environment, mount_writable, run

FINAL = "final"


def main() -> None:
    """Build every stage, the last one as FINAL."""
    directory, *given = sys.argv[1:]
    arguments = dict(item.split("=", 1) for item in given)
    for stage in read_stages(DOCKERFILE.read_text()):
        _StageBuild(Path(directory), stage, arguments).run()


class _StageBuild:
    def __init__(self, directory: Path, stage: Stage, arguments: dict[str, str]) -> None:
        self._directory, self._stage, self._arguments = directory, stage, arguments
        self._root = mount_writable(directory / (stage.name or FINAL))
        self._environment = base_environment()
        self._workplace = Path("/")

    def run(self) -> None:
        for instruction in self._stage.instructions:
            print(instruction.name, instruction.rest, flush=True)
            self._run(instruction)

    def _run(self, instruction: Instruction) -> None:
        match instruction.name:
            case "ARG":
                pairs = instruction.pairs()
                self._environment.update({name: self._arguments.get(name, value) for name, value in pairs.items()})
            case "ENV":
                for name, value in instruction.pairs().items():
                    self._environment[name] = Template(value).substitute(self._environment)
            case "WORKDIR":
                self._workplace = Path(instruction.rest)
                self._inside(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(instruction.rest.split())
            case "RUN":
                script = f"cd {self._workplace}\n{instruction.rest}"
                run(self._root, ["/bin/sh", "-ec", script], self._environment)
            case _:
                pass  # says how the image is started

    def _copy(self, words: list[str]) -> None:
        origin = ROOT
        if words[0].startswith("--from="):
            origin = self._directory / words.pop(0).removeprefix("--from=") / "root"
        *sources, target = words
        for source in (origin / name.lstrip("/") for name in sources):
            destination = self._inside(target) / (source.name if target.endswith("/") else "")
            _copy(source, destination)

    def _inside(self, path: str) -> Path:
        return self._root / str(self._workplace / path).lstrip("/")


def _copy(source: Path, destination: Path) -> None:
    if source.is_file():
        shutil.copy(source, destination)
        return
    subprocess.run(["cp", "--archive", "--no-target-directory", source, destination], timeout=STEP_SECONDS, check=True)


if __name__ == "__main__":
    main()
