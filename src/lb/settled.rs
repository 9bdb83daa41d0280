//! The path of nearly every packet: a plain one of a flow in whose connection nothing changes but
//! the time stamp. All else is left as it was, and goes through [`super::shard`] step by step.
//! Runs on workers; whatever is added here is paid for by every packet (`scripts/instructions`).

use super::Now;
use super::Verdict;
use super::answers::rewrite_for_client;
use super::conn::{Conn, State, flag};
use super::flow::{Address, FlowKey};
use super::forward::write_macs;
use super::frame::Frame;
use super::fullnat::{is_local_reply, local_end};
use super::look::{Look, Meets};
use super::parse::{ETHERNET, Packet, tcp};
use super::shard::{Shard, Tracked, Way, is_reply, is_request, to_backend};
use super::snapshot::{BackendState, Snapshot};

impl Shard {
    /// Forwards a plain packet of a settled flow, and returns the port to send it out of. `None`
    /// for all others, whose frames may have lost their padding and nothing else.
    #[inline(always)]
    pub(super) fn forward_settled<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        look: &Look,
    ) -> Option<u8> {
        let Look {
            protocol,
            length,
            tcp_flags,
            ..
        } = *look;
        let packet = Packet::<A>::plain(frame.bytes(), protocol, length, tcp_flags)?;
        let conn = A::table_mut(&mut self.tables).live(look.slot)?;
        let is_its = match look.meets == Meets::Request {
            true => is_request(conn, &packet.key),
            false => is_its_reply(snapshot, conn, &packet.key, look.meets),
        };
        if !is_its || !is_settled(conn, tcp_flags) || conn.is_expired(now.second) {
            return None;
        }
        let backend = snapshot.backend(conn.backend)?;
        if backend.state == BackendState::Removed {
            return None;
        }
        if conn.last_seen != now.second {
            conn.last_seen = now.second;
        }
        frame.truncate(ETHERNET + usize::from(length));
        if look.meets == Meets::Request {
            let way = Way {
                backend,
                hash: look.hash,
                local: local_end(snapshot, conn),
            };
            // A packet that lives too short or is too long is refused before anything is written.
            let Verdict::Transmit(port) = to_backend(frame, &packet, &way) else {
                return None;
            };
            self.count_in(backend, &packet);
            return Some(port);
        }
        let link = snapshot.routes.link(conn.client.into())?;
        if length > self.smallest_mtu {
            return None;
        }
        rewrite_for_client(frame.bytes_mut(), &packet, conn).ok()?;
        write_macs(frame.bytes_mut(), &link);
        self.count_out(backend.id, length);
        Some(link.port)
    }
}

#[inline(always)]
fn is_its_reply<A: Address>(
    snapshot: &Snapshot,
    conn: &Conn<A>,
    key: &FlowKey<A>,
    meets: Meets,
) -> bool {
    match meets == Meets::LocalReply {
        true => is_local_reply(snapshot, conn, key),
        false => is_reply(snapshot, conn, key),
    }
}

/// Nothing about the connection can change by this packet but its time stamp.
#[inline(always)]
pub(super) fn is_settled<A: Address>(conn: &Conn<A>, tcp_flags: u8) -> bool {
    match conn.state {
        State::Established => tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0,
        State::Udp => !conn.has(flag::EMBRYONIC),
        _ => false,
    }
}
