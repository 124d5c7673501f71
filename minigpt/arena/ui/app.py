"""The web application: the page and the downloads. Every request passes PageFilter before it."""

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from minigpt.arena import html
from minigpt.arena.exports import EXPORTS
from minigpt.arena.window import curves, runs_html, tokens_html

# Enter also ends the composition of a Chinese word; then it must not send the unfinished text.
HEAD = """<script>
for (const kind of ["keydown", "keypress"])
  document.addEventListener(kind, event => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229))
      event.stopImmediatePropagation();
  }, true);
</script>"""


def make_app(page):
    """A FastAPI app of a Page and its downloads."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for name, export in EXPORTS.items():
        route = _download(name, export, page.context.arena.ledger)
        app.add_api_route(f"/download/{name}", route, methods=["GET"])
    blocks = page.build()
    blocks.queue(default_concurrency_limit=64, max_size=256, api_open=False)
    # Each answer occupies a thread while it waits for the next chunk; 40 are for the other events.
    blocks.max_threads = 40 + page.context.arena.max_battles
    # launch() sets this, mount_gradio_app() does not. Without it Gradio accepts the path of any
    # file in the values that a visitor sends, and copies the file to a folder that it serves.
    blocks.has_launched = True
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        i18n=page.context.i18n,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=html.CSS + tokens_html.CSS + curves.CSS + runs_html.CSS,
        head=HEAD,
        ssr_mode=False,
        footer_links=[],
        run_history=False,  # else the browser stores the questions, for its next user to read
        show_error=False,
    )


def _download(name, export, ledger):
    """A route that streams an Export of the ledger."""

    def download():
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        media_type = f"{export.media_type}; charset=utf-8"
        return StreamingResponse(export.write(ledger), media_type=media_type, headers=headers)

    return download
