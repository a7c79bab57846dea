#!/bin/sh
# Works on the node it runs on: puts zos-cri there, keeps it at this image's version, or takes it off.
#
#   node.sh install | remove          does it, and then waits for its end
#   node.sh is-installed | is-removed ends with 0 where it is done
#
# HOST is where the node's root is mounted, PACKAGES where the packages are, KUBELET_CONFIG_DIR the
# kubelet's --config-dir ("" leaves the kubelet alone), CONFIG a configuration for the node.
set -eu

HOST=${HOST:-/host}
PACKAGES=${PACKAGES:-/packages}
CONFIG=${CONFIG:-/scripts/config.toml}
DROP_IN=90-zos-cri.conf
STAGING=/var/lib/zos-cri-deploy

say() { echo "zos-cri: $*"; }
on_host() { chroot "$HOST" /usr/bin/env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
has_systemd() { [ -d "$HOST/run/systemd/system" ]; }

# The package for the node's architecture; each is for one Python, which dpkg checks.
package() {
    architecture=$(on_host dpkg --print-architecture)
    for each in "$PACKAGES"/zos-cri_*_"$architecture".deb; do
        [ -e "$each" ] || continue
        echo "$each"
        return
    done
    say "no package for $architecture in $PACKAGES" >&2
    return 1
}
version_of() { on_host dpkg-deb --field "$1" Version; }
installed_version() {
    # shellcheck disable=SC2016 # dpkg-query's own
    on_host dpkg-query --show --showformat '${db:Status-Status} ${Version}' zos-cri 2>/dev/null |
        sed -n 's/^installed //p'
}

stage() {
    mkdir -p "$HOST$STAGING"
    cp "$1" "$HOST$STAGING/zos-cri.deb"
}

is_configured() { [ ! -e "$CONFIG" ] || cmp -s "$CONFIG" "$HOST/etc/zos-cri/config.toml"; }
configure() {
    ! is_configured || return 0
    cp "$CONFIG" "$HOST/etc/zos-cri/.config.toml.new"
    on_host zos-cri config validate --config /etc/zos-cri/.config.toml.new || {
        code=$?
        rm -f "$HOST/etc/zos-cri/.config.toml.new"
        return $code
    }
    mv "$HOST/etc/zos-cri/.config.toml.new" "$HOST/etc/zos-cri/config.toml"
    say 'the configuration has changed'
    if has_systemd; then on_host systemctl restart zos-cri.service; fi
}

point_kubelet() {
    [ -n "${KUBELET_CONFIG_DIR:-}" ] || return 0
    file=$HOST$KUBELET_CONFIG_DIR/$DROP_IN
    [ ! -e "$file" ] || return 0
    mkdir -p "$HOST$KUBELET_CONFIG_DIR"
    cat >"$file" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/zos-cri/zos-cri.sock
END
    say "the kubelet's configuration has $DROP_IN"
    if has_systemd; then on_host systemctl restart kubelet.service; fi
}

release_kubelet() {
    [ -n "${KUBELET_CONFIG_DIR:-}" ] || return 0
    file=$HOST$KUBELET_CONFIG_DIR/$DROP_IN
    [ -e "$file" ] || return 0
    rm "$file"
    if has_systemd; then on_host systemctl restart kubelet.service; fi
}

install_() {
    file=$(package)
    stage "$file"
    wanted=$(version_of "$STAGING/zos-cri.deb")
    now=$(installed_version)
    if [ "$now" = "$wanted" ]; then
        say "$wanted is installed"
    else
        say "installing $wanted${now:+ over $now}"
        # What it depends on may be there, and then no archive is asked.
        on_host env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
            --allow-downgrades -o Dpkg::Options::=--force-confold "$STAGING/zos-cri.deb"
    fi
    rm -rf "${HOST:?}$STAGING"
    configure
    on_host zos-cri doctor || say 'zos-cri doctor finds this node unfit: see above' >&2
    point_kubelet
    say 'done'
}

remove() {
    release_kubelet
    if [ -n "$(installed_version)" ]; then
        on_host env DEBIAN_FRONTEND=noninteractive apt-get remove --yes zos-cri
    fi
    rm -rf "${HOST:?}$STAGING"
    say 'removed; /etc/zos-cri and /var/lib/zos-cri are left (apt-get purge zos-cri removes them)'
}

# Of this image, not of the one before it, and with the configuration of now.
is_installed() {
    file=$(package) || return 1
    wanted=${file##*/zos-cri_}
    [ "$(installed_version)" = "${wanted%_*}" ] || return 1
    is_configured || return 1
    ! has_systemd || on_host systemctl --quiet is-active zos-cri.service
}

wait_for_the_end() {
    trap 'exit 0' TERM INT
    while :; do
        sleep 60 &
        wait $!
        # A mounted ConfigMap may become the new one only after we have begun.
        [ "$1" = remove ] || configure || say 'the configuration is wrong, and was not taken' >&2
    done
}

case "${1:-}" in
install)
    install_
    [ -n "${ONCE:-}" ] || wait_for_the_end install
    ;;
remove)
    remove
    [ -n "${ONCE:-}" ] || wait_for_the_end remove
    ;;
is-installed) is_installed ;;
is-removed) [ -z "$(installed_version)" ] ;;
*)
    echo 'usage: node.sh install | remove | is-installed | is-removed' >&2
    exit 64
    ;;
esac
