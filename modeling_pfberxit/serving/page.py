"""`GET /`: one HTML file that shows a text's layers, the traffic and the frontier; it loads nothing else."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def page_of() -> APIRouter:
    """The page's route. It holds no data, so it needs no token; what it shows, the page fetches with one."""
    router, page = APIRouter(), html()
    headers = {"Content-Security-Policy": allowed(page), "Cache-Control": "no-cache"}

    @router.head("/", summary="whether the page is there", response_class=HTMLResponse)
    @router.get("/", summary="a page to look at", response_class=HTMLResponse)
    async def look() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    return router


def html() -> str:
    """The page, as it is in the package."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def allowed(page: str) -> str:
    """A content security policy: the page's own style and script, by their hashes, and this server's answers."""
    style, script = (hashed(re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def hashed(parts: list[str]) -> str:
    """Inline parts as sources of a policy."""
    return " ".join(f"'sha256-{b64encode(sha256(part.encode()).digest()).decode()}'" for part in parts)
