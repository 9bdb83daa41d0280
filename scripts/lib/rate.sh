# A generator, evenkeel and a sink of packets on one machine, for scripts/lab. Sourced after common.sh.
#
#   dpdk-testpmd txonly ── wan 198.18.0.1 evenkeel 198.19.0.1 lan ── dpdk-testpmd rxonly
#
# What stands between them is shared memory: memif, or virtio-user on vhost-user. Backends are MAC
# addresses: nobody answers for them, the sink takes what it gets and counts.

CLIENT_ADDRESS=198.18.0.2
VIP=198.18.0.80
VIP_PORT=4789
# What testpmd's flowgen sends to: a range, so the service listens on all of it.
FLOWGEN_VIPS=10.253.0.0/24
FLOWGEN_PORT=1001
FLOWGEN_MAC=00:01:02:03:04:01
FLOWGEN_FLOWS=200
BACKENDS=(198.19.0.11 198.19.0.12 198.19.0.13)
FRAME=64

# cpu N: the Nth CPU that this process may use, counted round.
cpu() {
  local list part cpus=()
  list=$(sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status)
  for part in ${list//,/ }; do mapfile -t -O ${#cpus[@]} cpus < <(seq "${part%-*}" "${part#*-}"); done
  printf '%s' "${cpus[$1 % ${#cpus[@]}]}"
}

# Each that polls has a CPU of its own where there are three; the generator and the sink share one first.
worker_cpu()    { cpu 1; }
generator_cpu() { cpu 0; }
sink_cpu()      { cpu 2; }

write_config() {
  local method=$1 index listen
  case $GENERATOR in
    txonly)  listen=udp:$VIP:$VIP_PORT ;;
    flowgen) listen=udp:$FLOWGEN_VIPS:$FLOWGEN_PORT ;;
  esac
  cat <<EOC
[workers]
cores = "$(worker_cpu)"
connections = 100_000
memory = "512MiB"
idle = "yield"

[management]
core = $(cpu 0)
socket = "$TEMP/evenkeel.sock"
metrics = "off"

[[port]]
name = "wan"
device = "$(evenkeel_device 0)"
addresses = ["198.18.0.1/24"]

[[port]]
name = "lan"
device = "$(evenkeel_device 1)"
addresses = ["198.19.0.1/24"]
EOC
  for index in 0 1 2; do
    printf '[[port.neighbour]]\naddress = "%s"\nmac = "02:00:00:00:00:1%d"\n' "${BACKENDS[index]}" "$index"
  done
  cat <<EOC

[[service]]
name = "sink"
listen = ["$listen"]
method = "$method"
scheduler = "rr"
EOC
  [ "$method" != fullnat ] || say 'local_addresses = ["198.19.0.100", "198.19.0.101"]'
  for index in 0 1 2; do
    printf '[[service.backend]]\nname = "sink-%d"\naddress = "%s"\n' $((index + 1)) "${BACKENDS[index]}"
  done
}

# evenkeel_device INDEX, peer_device INDEX: the two ends of a wire.
evenkeel_device() {
  case $WIRE in
    memif)
      printf 'net_memif%d,role=server,id=%d,socket=%s,socket-abstract=no' "$1" "$1" "$TEMP/wire$1"
      [ "$1" != 0 ] || printf ',mac=%s' $FLOWGEN_MAC ;;
    vhost) printf 'net_vhost%d,iface=%s' "$1" "$TEMP/wire$1" ;;
  esac
}
peer_device() {
  case $WIRE in
    memif) printf 'net_memif0,role=client,id=%d,socket=%s,socket-abstract=no,rsize=14' "$1" "$TEMP/wire$1" ;;
    vhost) printf 'net_virtio_user0,path=%s,queue_size=1024' "$TEMP/wire$1" ;;
  esac
}

# testpmd NAME INDEX CPU OPTION...: in the background; obeys `tell`, and writes to TEMP/NAME.log.
testpmd() {
  local name=$1 index=$2 core=$3
  shift 3
  rm -f "$TEMP/$name.in" "$TEMP/$name.log"
  mkfifo "$TEMP/$name.in"
  stdbuf -o0 dpdk-testpmd --lcores "0@$(cpu 0),1@$core" --no-pci --in-memory --single-file-segments -m 256 \
    --no-telemetry --vdev "$(peer_device "$index")" -- --interactive --nb-cores=1 --rxd=1024 --txd=1024 \
    --total-num-mbufs=49152 "$@" <"$TEMP/$name.in" >"$TEMP/$name.log" 2>&1 &
  eval "${name}_pid=$!"
  on_exit "kill -KILL $!; wait $!"
  # Kept open, or testpmd would read the end of the file at once.
  eval "exec {${name}_in}>'$TEMP/$name.in'"
  wait_for_line 30 "$name" "testpmd> " "$!"
}

# tell NAME COMMAND [LINE]: and waits for a line of its answer.
tell() {
  local name=$1 pid=${1}_pid in=${1}_in
  printf '%s\n' "$2" >&"${!in}"
  [ $# -lt 3 ] || wait_for_line 30 "$name" "$3" "${!pid}"
}

quit() {
  local name=$1 pid=${1}_pid in=${1}_in
  tell "$name" quit
  eval "exec ${!in}>&-"
  # What it counted has been said; virtio-user may fail at its end, when the other one is gone.
  wait "${!pid}" || true
}

wait_for_line() {
  local deadline=$((SECONDS + $1)) name=$2 line=$3 pid=$4
  until grep -q "$line" "$TEMP/$name.log" 2>/dev/null; do
    kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ] ||
      { tail -n 10 "$TEMP/$name.log" >&2; die "$name did not start (its last lines are above)"; }
    sleep 0.05
  done
}

# counted NAME RX|TX: packets, of the last statistics in a testpmd's log.
counted() { sed -n "s/.*$2-packets: *\([0-9]*\).*/\1/p" "$TEMP/$1.log" | tail -n 1; }
# said WORD: a number of the last line of evenkeel's log, which sums up its packets.
said() { grep -o "packets: .*" "$TEMP/evenkeel.log" | grep -o "[0-9]* $1" | cut -d ' ' -f 1; }

generator_options() {
  case $GENERATOR in
    txonly)  printf '%s\n' --forward-mode=txonly --txonly-multi-flow "--tx-ip=$CLIENT_ADDRESS,$VIP" "--tx-udp=1024,$VIP_PORT" "--txpkts=$FRAME" ;;
    flowgen) printf '%s\n' --forward-mode=flowgen "--flowgen-flows=$FLOWGEN_FLOWS" "--txpkts=$FRAME" ;;
  esac
}

# measure METHOD: a line of the table.
measure() {
  local method=$1 began ended options wan sent taken passed dropped received evenkeel
  rm -f "$TEMP"/wire* "$TEMP/evenkeel.log"
  write_config "$method" >"$TEMP/evenkeel.toml"
  "$PROGRAM" run --config "$TEMP/evenkeel.toml" >"$TEMP/evenkeel.log" 2>&1 &
  evenkeel=$!
  on_exit "kill -KILL $evenkeel; wait $evenkeel"
  wait_for_line 30 evenkeel "service sink: " $evenkeel
  wan=$(sed -n 's/.*port wan: .*MAC \([0-9a-f:]*\),.*/\1/p' "$TEMP/evenkeel.log")
  testpmd sink 1 "$(sink_cpu)" --forward-mode=rxonly
  mapfile -t options < <(generator_options)
  testpmd generator 0 "$(generator_cpu)" "${options[@]}" "--eth-peer=0,$wan"
  # Both wires carry, from evenkeel's point of view.
  wait_for_line 30 evenkeel "port lan: link up" $evenkeel
  wait_for_line 30 evenkeel "port wan: link up" $evenkeel
  # evenkeel's announcements of its addresses, three in two seconds, go first: the sink counts none of them.
  sleep 2.3
  tell sink start "packet forwarding packets"
  began=$(date +%s%N)
  tell generator start "packet forwarding packets"
  sleep "$SECONDS_EACH"
  tell generator stop "Forward statistics"
  ended=$(date +%s%N)
  # What is under way arrives.
  sleep 0.3
  tell sink stop "Forward statistics"
  # evenkeel first: a memif whose other end goes must not be polled meanwhile.
  kill -TERM $evenkeel
  wait $evenkeel || { tail -n 5 "$TEMP/evenkeel.log" >&2; die "evenkeel failed (its last lines are above)"; }
  quit generator
  quit sink
  sent=$(counted generator TX) received=$(counted sink RX)
  taken=$(said received) passed=$(said transmitted) dropped=$(said dropped)
  awk -v method="$method" -v sent="$sent" -v taken="$taken" -v dropped="$dropped" -v passed="$passed" \
    -v received="$received" -v seconds="$(((ended - began) / 1000000))" 'BEGIN {
      share = sent ? 100 * (sent - received) / sent : 0
      printf "%-15s %9d %6.2f %9d %9d %8d %9d %6.2f %6.2f%%\n", method, sent, sent / seconds / 1000, taken,
        passed, dropped, received, received / seconds / 1000, share }'
  [ "$received" -gt 0 ] || die "the sink received nothing; evenkeel's last lines: $(tail -n 5 "$TEMP/evenkeel.log")"
}

measure_all() {
  local method
  say "$GENERATOR over $WIRE, $FRAME-byte frames, $SECONDS_EACH s each; $(nproc) CPUs for three programs that poll"
  say
  say "                ---- generator -- ---------- evenkeel -------- ---- sink ------"
  say "method               sent   Mp/s  received      sent  dropped  received   Mp/s   lost"
  for method in "${METHODS[@]}"; do measure "$method"; done
}

# write_pktgen FOLDER
write_pktgen() {
  cat >"$1/evenkeel.pkt" <<EOP
# Commands for Pktgen-DPDK: pktgen -l 0-1 -- -m 1.0 -f evenkeel.pkt
# Untested. Put evenkeel's MAC address, as its log has it at start, in place of 02:00:00:00:00:01.
stop all
set 0 proto udp
set 0 src ip $CLIENT_ADDRESS/24
set 0 dst ip $VIP
set 0 dst mac 02:00:00:00:00:01
set 0 sport 1024
set 0 dport $VIP_PORT
set 0 size $FRAME
set 0 rate 100
set 0 count 0
start 0
EOP
  python3 - "$1/evenkeel.pcap" "$CLIENT_ADDRESS" "$VIP" "$VIP_PORT" "$FRAME" <<'EOP'
import socket, struct, sys

path, source, vip, port, frame = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def packet(client_port):
    # The frame check sequence is not in a pcap.
    payload = bytes(frame - 4 - 14 - 20 - 8)
    length = 8 + len(payload)
    addresses = socket.inet_aton(source) + socket.inet_aton(vip)
    udp = struct.pack("!4H", client_port, port, length, 0)
    udp = udp[:6] + struct.pack("!H", checksum(addresses + struct.pack("!2H", 17, length) + udp + payload))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    ethernet = bytes.fromhex("020000000001" "020000000002" "0800")
    return ethernet + ip + udp + payload

with open(path, "wb") as file:
    file.write(struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 65535, 1))
    for number in range(200):
        data = packet(1024 + number)
        file.write(struct.pack("<IIII", 0, number, len(data), len(data)) + data)
EOP
  say "$1/evenkeel.pkt: commands for Pktgen-DPDK (untested)"
  say "$1/evenkeel.pcap: 200 flows of the same, a packet each"
}
