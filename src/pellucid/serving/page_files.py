"""The page at `/`: a few files, served with headers that let it load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from pellucid.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def page_file(name: str) -> Response:
    """One of the page's files."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in KINDS}
    if name not in files:
        raise ApiError(404, f"the page has no file {name[:100]!r}", "not_found")
    return Response(files[name].read_bytes(), media_type=KINDS[files[name].suffix], headers=HEADERS)


async def page(request: Request) -> Response:
    return page_file(request.path_params.get("name", "index.html"))
