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

# One accent colour (teal) on warm grey. Text has a contrast of at least 4.5:1: 700 of the accent on
# light, 400 on dark, 600 and 400 of the grey for secondary text.
THEME = gr.themes.Base(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="stone",
    radius_size="md",
    font=["system-ui", "sans-serif"],
    font_mono=["monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_900",
    background_fill_primary="white",
    background_fill_primary_dark="*neutral_800",
    background_fill_secondary="*neutral_100",
    background_fill_secondary_dark="*neutral_800",
    body_text_color="*neutral_900",
    body_text_color_dark="*neutral_100",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    border_color_primary="*neutral_200",
    border_color_primary_dark="*neutral_700",
    color_accent="*primary_700",
    color_accent_soft="*primary_50",
    color_accent_soft_dark="*primary_900",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_400",
    block_background_fill="transparent",
    block_background_fill_dark="transparent",
    block_border_width="0px",
    block_shadow="none",
    block_padding="0px",
    block_title_text_color="*body_text_color_subdued",
    block_title_text_weight="500",
    block_label_text_color="*body_text_color_subdued",
    block_info_text_color="*body_text_color_subdued",
    input_background_fill="white",
    input_background_fill_dark="*neutral_800",
    input_border_width="1px",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_600",
    input_border_color_focus="*primary_700",
    input_border_color_focus_dark="*primary_400",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_border_color="*primary_700",
    button_primary_border_color_dark="*primary_700",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_800",
    button_secondary_background_fill_hover="*neutral_100",
    button_secondary_background_fill_hover_dark="*neutral_700",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_600",
    button_secondary_text_color="*neutral_800",
    button_secondary_text_color_dark="*neutral_100",
    button_border_width="1px",
    button_large_text_weight="500",
    slider_color="*primary_700",
    slider_color_dark="*primary_400",
    checkbox_background_color_selected="*primary_700",
    checkbox_background_color_selected_dark="*primary_700",
    checkbox_border_color_selected="*primary_700",
    checkbox_border_color_selected_dark="*primary_400",
    checkbox_label_border_width="1px",
    checkbox_label_border_color="*neutral_300",
    checkbox_label_border_color_dark="*neutral_600",
    checkbox_label_background_fill="white",
    checkbox_label_background_fill_dark="*neutral_800",
    checkbox_label_border_color_selected="*primary_700",
    checkbox_label_border_color_selected_dark="*primary_400",
)


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
        i18n=page.context.translations,
        theme=THEME,
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
