"""MkDocs hooks of the documentation site (`hooks` in mkdocs.yml).

Pages link to files outside `docs/` by relative paths, as GitHub shows them. The site does not have these files, so the
links are replaced here. A page that would load something from another host is refused.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOG = logging.getLogger("mkdocs.docs.site")
CODE = r"(?ms)^(?P<fence>```|~~~).*?^(?P=fence)[ ]*$|(?P<tick>`+)(?!`).*?(?<!`)(?P=tick)(?!`)"
LINK = re.compile(CODE + r"|(?<!!)\[(?P<text>(?:[^\]`]|`[^`]*`)*)\]\((?P<target>\.\./[^)\s]+)\)")
LOADED = re.compile(r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>")
LOADED_BY_LINK = re.compile(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the links to files outside `docs/`: see `with_links_to_the_repository`."""
    del files
    return with_links_to_the_repository(markdown, page.file.src_uri, config.extra["repository"])


def with_links_to_the_repository(markdown: str, source: str, repository: str) -> str:
    """A page's Markdown with links to files outside `docs/` replaced.

    Args:
        markdown: The page's source.
        source: The page's path, relative to `docs/`.
        repository: The repository's address; if empty, links become the names of the files.
    """
    folder = posixpath.dirname(posixpath.join("docs", source))

    def replaced(match: re.Match[str]) -> str:
        if match["target"] is None:
            return match[0]
        path, _, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", source, path)
        if repository:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"[{match['text']}]({repository}/{kind}/main/{path}{'#' + anchor if anchor else ''})"
        return match["text"] if path in match["text"] else f"{match['text']} (`{path}`)"

    return LINK.sub(replaced, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Warn of what the page would load from another host; `strict` makes an error of the warning."""
    del config
    for pattern in (LOADED, LOADED_BY_LINK):
        for match in pattern.finditer(output):
            LOG.warning("%s loads from another host: %s", page.file.src_uri, match[0])
    return output
