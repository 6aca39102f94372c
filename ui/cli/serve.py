"""`nightschool serve`."""

from ui.serve_options import ServeOptions, serve_command


def start(options: ServeOptions) -> int:
    """Import the server, which takes a moment, and run it."""
    from ui import app

    return app.start(options)


serve = serve_command(start)
