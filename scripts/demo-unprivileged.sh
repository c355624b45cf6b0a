#!/bin/bash
# A tunnel that needs no privilege at all: two processes of adit, each with a TCP/IP stack of its own, and a page fetched by
# HTTP from the one through the tunnel to the other.
#
#   scripts/demo-unprivileged.sh path/to/adit
#
# Everything is on loopback and in one folder that is gone at the end.
set -euo pipefail

adit=$(realpath "${1:?usage: demo-unprivileged.sh path/to/adit}")
scratch=$(mktemp -d)
clean_up() {
    status=$?
    jobs -p | xargs -r kill 2>/dev/null || true
    if (( status != 0 )); then
        echo "demo: failed; the two ends said:" >&2
        cat "$scratch"/*.log >&2 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Four ports in a row on which nobody listens.
for _ in $(seq 20); do
    base=$(( 20000 + RANDOM % 12000 ))
    for port in $(seq "$base" $(( base + 3 ))); do answers "$port" && continue 2; done
    break
done
tunnel=$base page=$(( base + 1 )) proxy=$(( base + 2 )) figures=$(( base + 3 ))

say "Two ends, without a TUN device, a capability or root: $("$adit" --version | head -n 1)"
(umask 077; for end in server client; do "$adit" genkey >"$scratch/$end.key"; done)
cat >"$scratch/server.conf" <<END
[Interface]
PrivateKeyFile = server.key
Address = 192.168.241.1/24
ListenPort = $tunnel

[Peer]
PublicKey = $("$adit" pubkey <"$scratch/client.key")
AllowedIPs = 192.168.241.2/32

# The page: the server's own metrics, on port 80 inside the tunnel.
[Metrics]
BindAddress = 127.0.0.1:$page

[TCPServerTunnel]
ListenPort = 80
Target = 127.0.0.1:$page
END
cat >"$scratch/client.conf" <<END
[Interface]
PrivateKeyFile = client.key
Address = 192.168.241.2/24

[Peer]
PublicKey = $("$adit" pubkey <"$scratch/server.key")
Endpoint = 127.0.0.1:$tunnel
AllowedIPs = 192.168.241.1/32

[http]
BindAddress = 127.0.0.1:$proxy

[Metrics]
BindAddress = 127.0.0.1:$figures
END
for end in server client; do
    "$adit" proxy -c "$scratch/$end.conf" >"$scratch/$end.log" 2>&1 &
done
for port in "$page" "$proxy" "$figures"; do
    for _ in $(seq 200); do answers "$port" && break; sleep 0.05; done
done
grep -vE '^$' "$scratch/client.conf"

say "GET http://192.168.241.1/metrics through the client's HTTP proxy and the tunnel"
fetch() {
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$2" "$3" >&3
    timeout 20 cat <&3
    exec 3<&-
}
fetch "$proxy" http://192.168.241.1/metrics 192.168.241.1 >"$scratch/page"
head -n 1 "$scratch/page"
grep -q '^HTTP/1.1 200 ' "$scratch/page"
grep -E '^wireguard_[a-z_]*bytes' "$scratch/page"

say "Summary"
fetch "$figures" /metrics localhost >"$scratch/figures"
sum() { awk -v name="^wireguard_$1_bytes" '$0 ~ name { total += $2 } END { printf "%d", total }' "$scratch/figures"; }
printf '%-28s %s bytes\n' "the page" "$(wc -c <"$scratch/page")"
printf '%-28s %s bytes\n' "encrypted, out" "$(sum sent)"
printf '%-28s %s bytes\n' "encrypted, in" "$(sum received)"
printf '%-28s uid %s, CapEff %s\n' "each process" "$(id -u)" "$(sed -n 's/^CapEff:\t//p' "/proc/$(jobs -p | head -n 1)/status")"
