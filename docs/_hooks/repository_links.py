"""Two hooks of the docs site: links to files outside docs/, and the decisions in the navigation.

The pages link to source files by relative paths, which work on a git host and in an editor. The site has no such files:
there a link leads to the repository, if the site knows its address (``repo_url``), and otherwise becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODE_OR_LINK = re.compile(r"^```.*?^```$|`[^`\n]*`|(?<!!)\[([^\]]+)\]\((\.\.?/[^)\s]+)\)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:  # noqa: ANN401 - mkdocs' MkDocsConfig; mkdocs is not installed where this is checked
    """Put every decision into the navigation, in the order of their numbers."""
    numbered = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    config["nav"].append({"Decisions": ["decisions/README.md", *(f"decisions/{page.name}" for page in numbered)]})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ANN401, ARG001 - as mkdocs calls it
    """Return the page with links that lead out of docs/ changed as described above."""
    return with_repository_links(markdown, page.file.src_uri, config["repo_url"])


def with_repository_links(markdown: str, page: str, repository_url: str | None) -> str:
    """Return the text of ``page``, a path below docs/, with every link to a file outside docs/ changed.

    Raises:
        FileNotFoundError: if a link leads to a file that the repository does not have.
    """

    def changed(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target is None:
            return found[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
        if path.startswith("docs/"):
            return found[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"docs/{page} links to {path}, which is not there")
        if not repository_url:
            return text
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({repository_url.rstrip('/')}/{kind}/main/{path}{'#' if anchor else ''}{anchor})"

    return CODE_OR_LINK.sub(changed, markdown)
