#!/usr/bin/env bash
# Prints the path of the Chromium that drives the playground in the tests. If there is no Chromium, installs Debian's
# package. If that fails, prints nothing, and the tests of the page are skipped.
set -euo pipefail

find_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

if find_browser; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Chromium with apt-get" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } >&2 ||
        true
fi
find_browser || echo "no Chromium: the tests of the playground are skipped (on Debian: apt-get install chromium)" >&2
