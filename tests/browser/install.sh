#!/usr/bin/env bash
# Installs the browser that the tests of this folder open pages in: Debian's Chromium with its driver. Without them, and
# without selenium of m3di[dev], those tests skip.
set -euo pipefail

command -v chromium > /dev/null && command -v chromedriver > /dev/null && exit 0
apt-get update
apt-get install --yes --no-install-recommends chromium chromium-driver
