"""Pages for people: the templates in `pages/`, filled in. Whatever stands in a page is text, unless it is our own markup."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def page(template: str, /, **values: Any) -> str:
    """A template with its values; a value that is missing is an error."""
    pages = Environment(loader=PackageLoader("pellucid", "pages"), autoescape=select_autoescape(), undefined=StrictUndefined)
    pages.filters["count"] = "{:,}".format
    pages.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return pages.get_template(f"{template}.html").render(values)
