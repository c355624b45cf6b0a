#!/bin/bash
# A working tunnel in two network namespaces: adit at both ends, configured by wg, with ping and iperf3 through it; then a
# sidecar without privileges as a third end.
#
#   scripts/demo.sh path/to/adit
#
# Needs root; nothing outside of the two namespaces is touched, and both are gone at the end. Without root it first shows
# what needs none (demo-unprivileged.sh). Then it tries the rest in a user namespace, which some systems permit.
set -euo pipefail

adit=$(realpath "${1:?usage: demo.sh path/to/adit}")
PATH="$PATH:/usr/sbin:/sbin"

skip() {
    echo "demo: skipped, because $1: two namespaces, wg, ping, iperf3, a sidecar. For those: sudo make demo"
    exit 0
}

if (( EUID != 0 )) && [[ -z "${ADIT_DEMO_IN_USER_NAMESPACE:-}" ]]; then
    echo "demo: not root: first what needs no privileges at all"
    "$(dirname "$0")/demo-unprivileged.sh" "$adit"
    echo
    if unshare -Urnm true 2>/dev/null; then
        echo "demo: now the rest, in a user namespace"
        ADIT_DEMO_IN_USER_NAMESPACE=1 exec unshare -Urnm "$0" "$adit"
    fi
    skip "it needs root and this system permits no user namespaces"
fi
if [[ -n "${ADIT_DEMO_IN_USER_NAMESPACE:-}" ]]; then
    # Folders that only the real root may write are replaced by our own, in this mount namespace alone.
    mount -t tmpfs tmpfs /run
    mkdir -p /run/netns /var/run/wireguard
    if ! { true <>/dev/net/tun; } 2>/dev/null; then
        skip "/dev/net/tun may not be opened here"
    fi
fi
missing=()
for tool in wg ip ping iperf3 setpriv; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if (( ${#missing[@]} )); then
    echo "demo: not installed: ${missing[*]} (scripts/install-tools.sh --demo installs them)" >&2
    exit 1
fi

left=adit-demo-$$-left
right=adit-demo-$$-right
wg_left=dl$$
wg_right=dr$$
scratch=$(mktemp -d)

clean_up() {
    status=$?
    for ns in "$left" "$right"; do
        for pid in $(ip netns pids "$ns" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
        ip netns delete "$ns" 2>/dev/null || true
    done
    if (( status != 0 )); then
        echo "demo: failed; the daemons said:" >&2
        cat "$scratch"/*.log >&2 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
on_left() { ip netns exec "$left" "$@"; }
on_right() { ip netns exec "$right" "$@"; }

say "Two network namespaces, joined by a veth pair"
ip netns add "$left"
ip netns add "$right"
ip -n "$left" link add outer type veth peer name outer netns "$right"
ip -n "$left" address add 10.0.0.1/24 dev outer
ip -n "$right" address add 10.0.0.2/24 dev outer
for ns in "$left" "$right"; do
    ip -n "$ns" link set lo up
    ip -n "$ns" link set outer up
done
on_left ping -q -c 1 -W 5 10.0.0.2 >"$scratch/outer-ping"
echo "10.0.0.1 <-> 10.0.0.2"

say "adit in each: $("$adit" --version | head -n 1)"
# In the background, as wg-quick starts it: when the command returns, the daemon answers.
LOG_LEVEL=error on_left "$adit" "$wg_left" >"$scratch/left.log" 2>&1
LOG_LEVEL=error on_right "$adit" "$wg_right" >"$scratch/right.log" 2>&1
on_left wg show interfaces

say "Keys and peers, by wg"
(umask 077; wg genkey >"$scratch/left.key"; wg genkey >"$scratch/right.key"; wg genpsk >"$scratch/psk")
on_left wg set "$wg_left" private-key "$scratch/left.key" listen-port 51821 \
    peer "$(wg pubkey <"$scratch/right.key")" preshared-key "$scratch/psk" \
    allowed-ips 192.168.241.2/32,fd00:241::2/128 endpoint 10.0.0.2:51822
on_right wg set "$wg_right" private-key "$scratch/right.key" listen-port 51822 \
    peer "$(wg pubkey <"$scratch/left.key")" preshared-key "$scratch/psk" \
    allowed-ips 192.168.241.1/32,fd00:241::1/128
for end in "left 1" "right 2"; do
    read -r side n <<<"$end"
    ns=$side; interface=wg_$side
    ip -n "${!ns}" address add "192.168.241.$n/24" dev "${!interface}"
    ip -n "${!ns}" address add "fd00:241::$n/64" dev "${!interface}" nodad
    ip -n "${!ns}" link set "${!interface}" up
done
on_left wg showconf "$wg_left" | sed -E 's/^((Private|Preshared)Key = ).*/\1(hidden)/'

say "ping through the tunnel"
on_left ping -c 5 -i 0.2 -W 5 192.168.241.2 | tee "$scratch/ping4"
on_right ping -c 5 -i 0.2 -W 5 fd00:241::1 | tee "$scratch/ping6"

rate() { awk '/receiver/ { print $(NF-2), $(NF-1) }' "$1"; }
on_right iperf3 -s -D -I "$scratch/iperf3.pid" --logfile "$scratch/iperf3-server.log" -B 192.168.241.2
for _ in $(seq 100); do grep -q listening "$scratch/iperf3-server.log" 2>/dev/null && break; sleep 0.05; done
say "iperf3, left to right"
on_left iperf3 -c 192.168.241.2 -t 3 | tee "$scratch/forward"
say "iperf3, right to left"
on_left iperf3 -c 192.168.241.2 -t 3 -R | tee "$scratch/reverse"

say "A sidecar: a third end, without a TUN device, a capability or a privileged user"
without_privileges=(setpriv --inh-caps=-all --bounding-set=-all --no-new-privs)
user=$EUID
if [[ -z "${ADIT_DEMO_IN_USER_NAMESPACE:-}" ]]; then
    user=65532
    without_privileges+=(--reuid "$user" --regid "$user" --clear-groups)
fi
# Where that user can read it, wherever this checkout lies.
chmod 0711 "$scratch"
install -d -m 0700 "$scratch/sidecar"
install -m 0755 "$adit" "$scratch/sidecar/adit"
(umask 077; "$adit" genkey >"$scratch/sidecar/private-key")
cat >"$scratch/sidecar/adit.conf" <<END
[Interface]
PrivateKeyFile = private-key
Address = 192.168.241.3/24

[Peer]
PublicKey = $(wg pubkey <"$scratch/right.key")
Endpoint = 10.0.0.2:51822
AllowedIPs = 192.168.241.0/24

[TCPClientTunnel]
BindAddress = 127.0.0.1:5301
Target = 192.168.241.2:5201
END
chown -R "$user" "$scratch/sidecar"
on_right wg set "$wg_right" peer "$("$adit" pubkey <"$scratch/sidecar/private-key")" allowed-ips 192.168.241.3/32
sed -n '/^\[TCPClientTunnel/,$p' "$scratch/sidecar/adit.conf"
# Not by on_left: this process becomes the sidecar.
ip netns exec "$left" "${without_privileges[@]}" "$scratch/sidecar/adit" proxy -c "$scratch/sidecar/adit.conf" \
    >"$scratch/sidecar.log" 2>&1 &
sidecar=$!
for _ in $(seq 100); do on_left ss -Hltn "sport = :5301" | grep -q . && break; sleep 0.05; done
on_left iperf3 -c 127.0.0.1 -p 5301 -t 3 | tee "$scratch/through-sidecar"
grep -E '^(Uid|CapEff)' "/proc/$sidecar/status"
kill "$sidecar"
wait "$sidecar"

say "wg show"
on_left wg show "$wg_left"
echo
on_right wg show "$wg_right"

say "Summary"
loss() { sed -nE 's/.* ([0-9]+% packet loss).*/\1/p' "$1"; }
rtt() { sed -nE 's/^rtt [^=]*= [^\/]*\/([^\/]*)\/.*/\1 ms/p' "$1"; }
printf '%-28s %s, %s on average\n' "ping over inner IPv4" "$(loss "$scratch/ping4")" "$(rtt "$scratch/ping4")"
printf '%-28s %s, %s on average\n' "ping over inner IPv6" "$(loss "$scratch/ping6")" "$(rtt "$scratch/ping6")"
printf '%-28s %s\n' "TCP, left to right" "$(rate "$scratch/forward")"
printf '%-28s %s\n' "TCP, right to left" "$(rate "$scratch/reverse")"
printf '%-28s %s\n' "TCP, through the sidecar" "$(rate "$scratch/through-sidecar")"
ip -n "$left" link delete "$wg_left"
ip -n "$right" link delete "$wg_right"
for _ in $(seq 100); do [[ -e "/var/run/wireguard/$wg_left.sock" || -e "/var/run/wireguard/$wg_right.sock" ]] || break; sleep 0.05; done
if [[ -e "/var/run/wireguard/$wg_left.sock" || -e "/var/run/wireguard/$wg_right.sock" ]]; then
    echo "demo: a daemon did not end when its interface was deleted" >&2
    exit 1
fi
echo "Both interfaces deleted; both daemons have ended. The namespaces go now."
