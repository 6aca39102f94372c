#!/bin/sh
# Prints the Chromium that the tests drive; an empty line means Playwright's own. Argument: the venv's bin folder.
# One on PATH, else Playwright's own, else Debian's package when root, else one line that says what to install.
set -eu
bin=${1:-.venv/bin}

say() { echo "Chromium: $*" >&2; }

on_path() {
    for name in "${NIGHTSCHOOL_CHROMIUM:-}" chromium chromium-browser google-chrome chrome; do
        # Ubuntu's chromium-browser may only be a pointer to snap, so it must also run.
        if path=$(command -v "$name") && "$path" --version >/dev/null 2>&1; then
            say "$path"
            echo "$path"
            return 0
        fi
    done
    return 1
}

playwrights_own() {
    say "none on PATH; trying Playwright's own"
    # Launched once, since its download does not bring the system libraries it needs.
    "$bin/playwright" install chromium >/dev/null 2>&1 &&
        "$bin/python" -c 'from playwright.sync_api import sync_playwright as p
with p() as play: play.chromium.launch().close()' >/dev/null 2>&1 || return 1
    say "Playwright's own"
    echo
}

debians() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing Debian's package"
    apt-get update >/dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium >/dev/null || return 1
    on_path
}

on_path || playwrights_own || debians || {
    say "none found; install Chromium or Chrome so that it is on PATH, or set NIGHTSCHOOL_CHROMIUM to its path."
    exit 1
}
