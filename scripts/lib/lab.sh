# The demonstration's network, made of namespaces, and the programs on it. Sourced after common.sh;
# tests/e2e/lab builds the same network for the tests.
#
#   client 198.51.100.10 ── 198.51.100.1 router 192.0.2.1
#                                          │
#                      ── switch 192.0.2.0/24 ──┬──────┬──────┬── evenkeel 192.0.2.2
#                                              .11    .12    .13
#                                             web-1  web-2  web-3
#
# Router and switch live in the balancer's namespace, where evenkeel's TAP device is born.

CLIENT=ekdemo$$-client
BALANCER=ekdemo$$-balancer
WEB=("ekdemo$$-web-1" "ekdemo$$-web-2" "ekdemo$$-web-3")
WEB_ADDRESS=(192.0.2.11 192.0.2.12 192.0.2.13)
TAP=ek0
MTU=1520   # on the switch: 1,500 bytes and the header that a tunnel puts in front of them

# in_host HOST COMMAND...
in_host() { ip netns exec "$@"; }
# sysctl_in HOST KEY VALUE
sysctl_in() { in_host "$1" sh -c "echo $3 >/proc/sys/net/$2"; }

# start_in HOST NAME COMMAND...: runs in the background until the script ends; prints to TEMP/NAME.log.
start_in() {
  local host=$1 name=$2
  shift 2
  ip netns exec "$host" "$@" >"$TEMP/$name.log" 2>&1 &
  STARTED=$!
  on_exit "kill -TERM $STARTED; wait $STARTED"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds, or says with status 99 that it never will.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2 status
  shift 2
  while true; do
    status=0
    "$@" >/dev/null 2>&1 || status=$?
    [ $status -ne 0 ] || return 0
    [ $status -ne 99 ] && [ $SECONDS -lt $deadline ] || { say "waited in vain for $what"; return 1; }
    sleep 0.1
  done
}

add_host() {
  # First, since Ctrl-C may come in the middle of adding.
  on_exit "ip netns pids $1 | xargs -r kill -KILL; ip netns del $1"
  ip netns add "$1"
  ip -n "$1" link set lo up
}

# cable HOST DEVICE HOST DEVICE
cable() { ip link add "$2" netns "$1" type veth peer name "$4" netns "$3"; }

# create_network VIP...: the VIPs are put on the backends, for tunnel and direct routing.
create_network() {
  local index
  add_host "$BALANCER"
  sysctl_in "$BALANCER" ipv4/ip_forward 1
  sysctl_in "$BALANCER" ipv4/conf/all/send_redirects 0
  # An address of its own, or it would change whenever a member with a lower one joins.
  ip -n "$BALANCER" link add lan address 02:00:00:00:00:01 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
  sysctl_in "$BALANCER" ipv4/conf/lan/send_redirects 0
  ip -n "$BALANCER" address add 192.0.2.1/24 dev lan
  ip -n "$BALANCER" link set lan mtu $MTU up

  add_host "$CLIENT"
  cable "$BALANCER" to-client "$CLIENT" eth0
  ip -n "$BALANCER" address add 198.51.100.1/24 dev to-client
  ip -n "$BALANCER" link set to-client up
  ip -n "$CLIENT" address add 198.51.100.10/24 dev eth0
  ip -n "$CLIENT" link set eth0 up
  ip -n "$CLIENT" route add default via 198.51.100.1

  for index in 0 1 2; do
    add_backend "${WEB[index]}" "${WEB_ADDRESS[index]}" "to-web-$((index + 1))" "$@"
  done
}

# add_backend HOST ADDRESS SWITCH-PORT VIP...
add_backend() {
  local host=$1 address=$2 switch_port=$3 vip
  shift 3
  add_host "$host"
  cable "$BALANCER" "$switch_port" "$host" eth0
  ip -n "$BALANCER" link set "$switch_port" mtu $MTU master lan up
  # The host accepts the VIP but must not answer ARP for it.
  sysctl_in "$host" ipv4/conf/all/arp_ignore 1
  sysctl_in "$host" ipv4/conf/all/arp_announce 2
  sysctl_in "$host" ipv4/conf/all/rp_filter 0
  sysctl_in "$host" ipv4/conf/default/rp_filter 0
  ip -n "$host" address add "$address/24" dev eth0
  ip -n "$host" link set eth0 mtu $MTU up
  for vip in "$@"; do ip -n "$host" address add "$vip/32" dev lo; done
  # From the VIP straight to the client, by the router; from the host's own address back through
  # evenkeel, as NAT needs it.
  ip -n "$host" route add default via 192.0.2.1
  ip -n "$host" rule add from "$address" table 100
  ip -n "$host" route add 192.0.2.0/24 dev eth0 table 100
  ip -n "$host" route add default via 192.0.2.2 table 100
}

# start_nginx HOST NAME FILE: answers / with its name, and /large with FILE.
start_nginx() {
  local host=$1 name=$2 file=$3 own=$TEMP/$2 kind
  mkdir -p "$own"
  {
    echo "user root; daemon off; master_process off; pid $own/pid; error_log stderr warn;"
    echo "events { }"
    echo "http { access_log off; default_type text/plain; keepalive_requests 100000;"
    for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $own/$kind;"; done
    echo "server { listen 80; location = / { return 200 \"$name\\n\"; }"
    echo "location = /healthz { return 200 \"ok\\n\"; } location = /large { alias $file; } } }"
  } >"$own/nginx.conf"
  start_in "$host" "$name" nginx -p "$own" -c "$own/nginx.conf"
  wait_for 20 "nginx on $name" in_host "$host" curl -sf http://127.0.0.1/healthz
}

# start_unwrapping HOST NAME ADDRESS: IPIP by the kernel's ipip, or by a program where it has none.
start_unwrapping() {
  if ip -n "$1" link add tun0 type ipip local "$3" 2>/dev/null; then
    ip -n "$1" link set tun0 up
  else
    start_in "$1" "$2-unwrap" "$ROOT/target/debug/examples/lab_tool" unwrap tun0
    wait_for 20 "the end of the tunnel on $2" grep -qx ready "$TEMP/$2-unwrap.log"
  fi
}

# The wire of an AF_PACKET or AF_XDP port: evenkeel has one end, the switch the other. Nothing along it
# may leave checksums or segments to a card, which is not there.
create_veth() {
  ip -n "$BALANCER" link add "$TAP" mtu $MTU type veth peer name to-evenkeel mtu $MTU
  ip -n "$BALANCER" link set to-evenkeel master lan up
  # An AF_PACKET port gets copies, and Linux the packets: it must neither answer nor forward them.
  sysctl_in "$BALANCER" ipv4/conf/$TAP/forwarding 0
  sysctl_in "$BALANCER" ipv4/conf/$TAP/arp_ignore 8
  sysctl_in "$BALANCER" ipv6/conf/$TAP/disable_ipv6 1
  ip -n "$BALANCER" link set "$TAP" up
  for device in "$TAP" to-evenkeel; do
    in_host "$BALANCER" ethtool -K "$device" tx off rx off gso off gro off tso off >/dev/null 2>&1 || true
  done
}

# Plugs the port of process PID into the switch; true once evenkeel answers a ping through it.
# The DPDK driver gives a TAP port's MAC address to the kernel's end too, and a bridge keeps what other
# members send to an address of its own. Not before the port is started, which sets it.
# attach_port PID DEVICE
attach_port() {
  kill -0 "$1" || return 99
  [ "$2" != tap ] || ip -n "$BALANCER" link set $TAP master lan up || return 1
  in_host "$BALANCER" ping -c1 -W1 -n 192.0.2.2 || return 1
  [ "$2" != tap ] || ip -n "$BALANCER" link set $TAP address 02:00:00:00:00:fe
}
