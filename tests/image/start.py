"""Start a command in the built image as its own user, read-only: `python -m tests.image.start LAYER COMMAND…`.

Below LAYER/writable is what can be written, each directory at its place. Begin it with `layers.in_namespace`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from string import Template

from tests.image.dockerfile import DOCKERFILE, read_stages
from tests.image.layers import base_environment, mount_read_only

WRITABLE = ("/tmp", "/var/cache/vigor", "/var/lib/vigor")  # noqa: S108 - inside the image


def main() -> None:
    """Become the command. Variables of the service, VIGOR_…, are passed on, as by `docker run --env`."""
    layer, *command = sys.argv[1:]
    final = read_stages(DOCKERFILE.read_text())[-1]
    environment = base_environment()
    for instruction in final.all("ENV"):
        for name, value in instruction.pairs().items():
            environment[name] = Template(value).substitute(environment)
    given = {name: value for name, value in os.environ.items() if name.startswith("VIGOR_")}
    root = mount_read_only(Path(layer), {place: writable(Path(layer), place) for place in WRITABLE})
    user = final.all("USER")[0].rest
    arguments = ["chroot", f"--userspec={user}", str(root), *command]
    os.execvpe("chroot", arguments, {**environment, **given})  # noqa: S606 - no shell is wanted


def writable(layer: Path, place: str) -> Path:
    """Return the directory of this machine that is seen at a place of the image."""
    return layer / "writable" / place.lstrip("/")


if __name__ == "__main__":
    main()
