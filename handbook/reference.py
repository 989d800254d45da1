"""Which pages does the reference have? Each is made anew from the code, at every build."""

from handbook.code_pages import client_page, errors_page, metrics_page, variables_page
from handbook.command_pages import command_line_page, make_page
from handbook.schema_pages import http_documents_page, http_page, job_settings_page, presets_page


def reference_pages() -> dict[str, str]:
    """Give every page of the reference as Markdown, by the name of its file."""
    return {
        "command_line": command_line_page(),
        "http": http_page(),
        "http_documents": http_documents_page(),
        "job_settings": job_settings_page(),
        "presets": presets_page(),
        "client": client_page(),
        "errors": errors_page(),
        "variables": variables_page(),
        "metrics": metrics_page(),
        "make": make_page(),
    }
