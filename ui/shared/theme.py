"""The theme of every page, and the script in its head."""

from pathlib import Path

import gradio as gr

SYSTEM_FONTS = [
    gr.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif")
]
SYSTEM_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")]
THEME = gr.themes.Base(
    primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO
).set(  # the theme's own greys are too pale to read
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_500",
)
SCRIPT = Path(__file__).with_name("page.js").read_text()
HEAD = f'<meta name="color-scheme" content="light dark"><script>{SCRIPT}</script>'
