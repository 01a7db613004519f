#!/bin/sh
# Installs the agent of this folder as a launchd daemon. As root, on macOS 12 or newer with a Python 3.9 or newer:
#   sudo ./install.sh HOST:PORT          (it asks for the join token, so that no history has it)
# Again with another release updates it. `sudo edgelite service remove` removes the daemon.
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "install.sh: run this with sudo" >&2; exit 1; }
install -d -m 755 /usr/local/lib/edgelite /usr/local/bin
install -m 755 edgelite.pyz /usr/local/lib/edgelite/edgelite.pyz
ln -sf /usr/local/lib/edgelite/edgelite.pyz /usr/local/bin/edgelite
data=/var/lib/edgelite
if [ ! -e "$data/node.json" ]; then
  [ $# -ge 1 ] || { echo "install.sh: it has not joined yet: give HOST:PORT of the hub" >&2; exit 1; }
  printf 'join token: ' >&2
  stty -echo && read -r token
  stty echo
  printf '%s\n' "$token" | /usr/local/bin/edgelite join --no-run --hub "$1" --token - --data-dir "$data"
fi
/usr/local/bin/edgelite service install --data-dir "$data"
