#!/bin/sh
# Half of the end-to-end tests run against mosquitto, the production broker. Install it when that is possible here,
# and say plainly what will be skipped when it is not.
set -eu
PATH="$PATH:/usr/sbin:/usr/local/sbin"
if command -v mosquitto >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "mosquitto is missing: installing it with apt-get"
    # The package starts a service where there is an init system; the tests start their own brokers on free ports.
    if (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends mosquitto) >/dev/null 2>&1; then
        service mosquitto stop >/dev/null 2>&1 || true
        exit 0
    fi
    echo "apt-get could not install mosquitto"
fi
echo "mosquitto is not installed: the tests against it are skipped (install it with: sudo apt-get install mosquitto)"
