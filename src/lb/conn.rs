//! A tracked connection and its TCP state machine.
//! Pure; owned by the worker whose table holds it. Byte order: ports and addresses host order.

use super::flow::{Address, protocol};
use super::parse::tcp;
use super::snapshot::BackendId;

/// States after IPVS (shared by operators of LVS), with UDP's beside TCP's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// An empty slot.
    None = 0,
    /// A SYN from the backend's side alone; kept for the listing's sake.
    SynSent,
    /// The client's SYN was seen.
    SynRecv,
    Established,
    /// The backend closed first (full view), or the client did (half view).
    FinWait,
    TimeWait,
    Close,
    /// The client closed first.
    CloseWait,
    LastAck,
    Udp,
}

impl State {
    pub const ALL: [State; 10] = [
        State::None,
        State::SynSent,
        State::SynRecv,
        State::Established,
        State::FinWait,
        State::TimeWait,
        State::Close,
        State::CloseWait,
        State::LastAck,
        State::Udp,
    ];

    /// The name ipvsadm prints.
    pub fn name(self) -> &'static str {
        match self {
            State::None => "NONE",
            State::SynSent => "SYN_SENT",
            State::SynRecv => "SYN_RECV",
            State::Established => "ESTABLISHED",
            State::FinWait => "FIN_WAIT",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::Udp => "UDP",
        }
    }

    /// Counts as an active connection: TCP established, or any live UDP flow.
    pub fn is_active(self) -> bool {
        matches!(self, State::Established | State::Udp)
    }

    /// A SYN that meets an entry in this state opens a new connection at once.
    pub fn is_over(self, half: bool) -> bool {
        match self {
            State::TimeWait | State::Close | State::LastAck => true,
            State::FinWait => half,
            _ => false,
        }
    }
}

/// Who sent a packet of a tracked flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    Client,
    Backend,
}

/// The next TCP state. `half` says that only the client's packets pass here (tunnel, direct
/// routing). The rows are IPVS's `tcp_states`: RST before SYN before FIN before ACK.
pub fn next_state(state: State, from: From, half: bool, flags: u8) -> State {
    use State::*;
    if flags & tcp::RST != 0 {
        return match (state, from) {
            // A client's RST while its SYN is unanswered may be forged; the timer decides.
            (SynRecv, From::Client) => SynRecv,
            (LastAck, From::Client) => LastAck,
            (TimeWait, From::Backend) => TimeWait,
            _ => Close,
        };
    }
    if flags & tcp::SYN != 0 {
        return match (state, from) {
            (None, From::Client) => SynRecv,
            (None, From::Backend) => SynSent,
            (SynSent, From::Client) => Established,
            _ => state,
        };
    }
    if flags & tcp::FIN != 0 {
        return match (state, from) {
            (Established, From::Client) if half => FinWait,
            (Established, From::Client) => CloseWait,
            (Established, From::Backend) => FinWait,
            (SynRecv, From::Client) => TimeWait,
            (SynRecv, From::Backend) => FinWait,
            (FinWait, From::Client) if !half => TimeWait,
            (CloseWait, From::Backend) => TimeWait,
            (None, _) => Close,
            _ => state,
        };
    }
    if flags & tcp::ACK != 0 {
        return match (state, from) {
            (None | SynRecv, _) => Established,
            (SynSent, From::Backend) => Established,
            (LastAck, From::Client) => Close,
            _ => state,
        };
    }
    state
}

/// Seconds of silence after which a connection in each state is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts([u16; State::ALL.len()]);

impl Default for Timeouts {
    /// IPVS's own.
    fn default() -> Self {
        let mut timeouts = Self([60; State::ALL.len()]);
        for (state, seconds) in [
            (State::SynSent, 120),
            (State::SynRecv, 60),
            (State::Established, 900),
            (State::FinWait, 120),
            (State::TimeWait, 120),
            (State::Close, 10),
            (State::CloseWait, 60),
            (State::LastAck, 30),
            (State::Udp, 300),
        ] {
            timeouts.set(state, seconds);
        }
        timeouts
    }
}

impl Timeouts {
    #[inline(always)]
    pub fn of(&self, state: State) -> u16 {
        self.0[state as usize]
    }

    pub fn set(&mut self, state: State, seconds: u16) {
        self.0[state as usize] = seconds;
    }
}

/// Facts about a connection beside its state.
pub mod flag {
    /// Not yet confirmed by a second packet (UDP) or the handshake's end (TCP): may be evicted.
    pub const EMBRYONIC: u8 = 1;
    /// Counted as active at its backend; else as inactive.
    pub const ACTIVE: u8 = 2;
    /// Replies pass here too (NAT, FullNAT), and may find this entry.
    pub const TWO_WAY: u8 = 4;
    /// The source is rewritten to a local address (FullNAT).
    pub const FULL_NAT: u8 = 8;
    /// The backend sent the first FIN, so its end stays in TIME_WAIT (full view alone).
    pub const BACKEND_CLOSED: u8 = 16;
    /// In these bits, the eighth of the second in which the entry was made: a flood fills the table in
    /// less than a second, and time stamps are whole ones.
    pub const EIGHTH: u8 = 0xe0;

    /// The bits for this moment.
    pub fn eighth(now: crate::lb::Now) -> u8 {
        ((now.nanos % 1_000_000_000) / 125_000_000) as u8 * 32
    }
}

/// One connection: 32 bytes for IPv4, 64 for IPv6. All zero is an empty slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Conn<A: Address> {
    /// The ends in the order of a client's packet.
    pub client: A,
    pub vip: A,
    /// Behind each other as a packet's ports are, once those are read as one number.
    pub vip_port: u16,
    pub client_port: u16,
    pub backend: BackendId,
    /// Second (see [`super::Now`]) in which the last packet was seen.
    pub last_seen: u32,
    /// Seconds of silence allowed, from the state it is in.
    pub timeout: u16,
    pub protocol: u8,
    pub state: State,
    pub flags: u8,
    /// FullNAT: the backend group, the local port, the index of the local address, and the port's
    /// index in its pool.
    pub group: u8,
    pub local_port: u16,
    pub local_address: u16,
    pub local_index: u16,
    pub pad: A::Pad,
}

const _: () = assert!(size_of::<Conn<std::net::Ipv4Addr>>() == 32);
const _: () = assert!(size_of::<Conn<std::net::Ipv6Addr>>() == 64);

impl<A: Address> Conn<A> {
    #[inline(always)]
    pub fn is_expired(&self, second: u32) -> bool {
        second.wrapping_sub(self.last_seen) > u32::from(self.timeout)
    }

    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether a packet with this [`settling`] changes nothing but the time stamp.
    #[inline(always)]
    pub fn is_settled_for(&self, settling: u16) -> bool {
        let progress = u16::from_le_bytes([self.protocol, self.state as u8]);
        progress == settling && !self.has(flag::EMBRYONIC)
    }
}

/// Protocol and state of a connection in which a TCP or UDP packet with these flags changes nothing
/// but the time stamp, if the connection is not embryonic; no connection's where there is none.
#[inline(always)]
pub fn settling(number: u8, tcp_flags: u8) -> u16 {
    match number {
        protocol::UDP => u16::from_le_bytes([protocol::UDP, State::Udp as u8]),
        _ if tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0 => {
            u16::from_le_bytes([protocol::TCP, State::Established as u8])
        }
        _ => u16::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcp::{ACK, FIN, RST, SYN};

    fn walk(half: bool, steps: &[(From, u8)]) -> Vec<State> {
        let mut state = State::None;
        steps
            .iter()
            .map(|&(from, flags)| {
                state = next_state(state, from, half, flags);
                state
            })
            .collect()
    }

    #[test]
    fn full_view_client_closes_first() {
        use State::*;
        let steps = [
            (From::Client, SYN),
            (From::Backend, SYN | ACK),
            (From::Client, ACK),
            (From::Client, FIN | ACK),
            (From::Backend, ACK),
            (From::Backend, FIN | ACK),
            (From::Client, ACK),
        ];
        let want = [
            SynRecv,
            SynRecv,
            Established,
            CloseWait,
            CloseWait,
            TimeWait,
            TimeWait,
        ];
        assert_eq!(walk(false, &steps), want);
    }

    #[test]
    fn full_view_backend_closes_first() {
        use State::*;
        let steps = [
            (From::Client, SYN),
            (From::Client, ACK),
            (From::Backend, FIN | ACK),
            (From::Client, FIN | ACK),
        ];
        assert_eq!(
            walk(false, &steps),
            [SynRecv, Established, FinWait, TimeWait]
        );
    }

    #[test]
    fn half_view_runs_on_the_client_alone() {
        use State::*;
        let steps = [
            (From::Client, SYN),
            (From::Client, ACK),
            (From::Client, FIN | ACK),
            (From::Client, ACK),
            (From::Client, RST),
        ];
        assert_eq!(
            walk(true, &steps),
            [SynRecv, Established, FinWait, FinWait, Close]
        );
    }

    #[test]
    fn timeouts_are_those_of_ipvs() {
        let timeouts = Timeouts::default();
        let of = |state| timeouts.of(state);
        assert_eq!(of(State::Established), 900);
        assert_eq!(of(State::FinWait), 120);
        assert_eq!(of(State::Close), 10);
        assert_eq!(of(State::Udp), 300);
    }

    #[test]
    fn expiry_is_after_the_timeout_and_survives_a_clock_wrap() {
        let mut conn = crate::lb::fixture::conn("10.0.0.1:1", "10.0.0.2:2");
        (conn.last_seen, conn.timeout) = (u32::MAX - 1, 10);
        assert!(!conn.is_expired(8));
        assert!(conn.is_expired(9));
    }
}
