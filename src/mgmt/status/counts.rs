//! What was counted beside the traffic: why packets were passed on or handed over, and what else the
//! workers and management did. docs/drop-reasons.md says more about each word. Runs on the management
//! thread; reads only.

use crate::lb::counters::{DropReason, WorkerCounters};
use crate::mgmt::api::Reason;
use crate::mgmt::net;
use crate::mgmt::workers::WorkerLink;

/// A word, a sentence about it, and where its number comes from.
struct Count<T> {
    token: &'static str,
    explanation: &'static str,
    read: fn(&T) -> u64,
}

const fn count<T>(token: &'static str, explanation: &'static str, read: fn(&T) -> u64) -> Count<T> {
    Count {
        token,
        explanation,
        read,
    }
}

const PASSED: &[Count<WorkerCounters>] = &[
    count(
        "local",
        "Not balanced: ARP, NDP, ping, packets for the ports' own addresses.",
        |c| {
            let others = c.passed_checks.get() + c.passed_unresolved.get();
            c.passed.get().saturating_sub(others)
        },
    ),
    count(
        "check",
        "For a check address: most likely answers to health checks.",
        |c| c.passed_checks.get(),
    ),
    count(
        "resolve",
        "Rewritten and ready, but the next hop toward the client was not resolved yet.",
        |c| c.passed_unresolved.get(),
    ),
];

const HANDED_OVER: &[Count<WorkerCounters>] = &[
    count("owner", "Another worker owns the packet's flow.", |c| {
        let full = c.dropped[DropReason::HandoffFull as usize].get();
        let others = c.handed_fragments.get() + c.handed_errors.get() + c.handed_persistent.get();
        (c.handed_off.get() + full).saturating_sub(others)
    }),
    count(
        "fragments",
        "A fragment, on its way to the worker that keeps its datagram together, or from there.",
        |c| c.handed_fragments.get(),
    ),
    count(
        "icmp_error",
        "An ICMP error about another worker's flow.",
        |c| c.handed_errors.get(),
    ),
    count(
        "persistence",
        "The first packet of a flow, on its way to the worker that remembers the client, or from there.",
        |c| c.handed_persistent.get(),
    ),
];

const WORKERS: &[Count<WorkerCounters>] = &[
    count("new_connections", "Connections that got an entry.", |c| {
        c.new_connections.get()
    }),
    count("expired", "Entries that timed out.", |c| c.expired.get()),
    count(
        "evicted",
        "Entries of handshakes under way that made room for newer ones.",
        |c| c.evicted.get(),
    ),
    count(
        "stateless",
        "Packets forwarded by the consistent hash without an entry.",
        |c| c.stateless.get(),
    ),
    count(
        "keepalives",
        "Keep-alives to clients whose flow has lost its entry and of which only the backend speaks.",
        |c| c.keepalives.get(),
    ),
    count(
        "unanswered",
        "Resets, keep-alives and ICMP errors held back by their rate limit.",
        |c| c.unanswered.get(),
    ),
    count("taken_over", "Packets taken from other workers.", |c| {
        c.taken_over.get()
    }),
    count(
        "local_ports",
        "Local ports that FullNAT has in use now.",
        |c| c.local_ports.get(),
    ),
    count("local_ports_all", "Local ports that FullNAT has.", |c| {
        c.local_ports_all.get()
    }),
    count(
        "holds_cut_short",
        "Local ports taken from a connection in TIME_WAIT, because no other was left.",
        |c| c.holds_cut_short.get(),
    ),
    count(
        "held",
        "Fragments that wait now for their datagram's first one.",
        |c| c.held.get(),
    ),
    count(
        "other_queue",
        "Packets that came by another queue than RSS was asked to choose.",
        |c| c.queues.iter().map(|q| q.disagreed.get()).sum(),
    ),
];

/// Of these the largest of any worker is told.
const FULLEST: &[Count<WorkerCounters>] = &[count(
    "local_ports_percent",
    "Percent of the local ports in use where FullNAT has fewest left: at 100 it refuses connections.",
    |c| c.local_ports_fullest.get().div_ceil(10),
)];

const MANAGEMENT: &[Count<net::Counters>] = &[
    count(
        "answered",
        "Passed packets that management answered: ARP, NDP and ping.",
        |c| c.arp_replies + c.neighbour_adverts + c.echo_replies,
    ),
    count(
        "not_for_us",
        "Passed packets that are nothing to management.",
        |c| c.not_for_us,
    ),
    count(
        "malformed",
        "Passed packets that management could not read.",
        |c| c.malformed,
    ),
    count(
        "rate_limited",
        "Passed packets that management left without an answer because of a rate limit.",
        |c| c.rate_limited,
    ),
    count(
        "unresolved",
        "Packets whose next hop did not answer in time, or beyond those that may wait for it.",
        |c| c.held_dropped,
    ),
    count(
        "address_conflicts",
        "Frames of other machines that use an address of ours; `evenkeel events` names them.",
        |c| c.conflicts,
    ),
    count(
        "neighbours_full",
        "Neighbours that found no room in the table.",
        |c| c.table_full,
    ),
];

fn sum(counts: &[Count<WorkerCounters>], workers: &[WorkerLink]) -> Vec<Reason> {
    told(counts, |count| {
        let of = workers.iter().map(|worker| (count.read)(&worker.counters));
        of.sum::<u64>()
    })
}

fn largest(counts: &[Count<WorkerCounters>], workers: &[WorkerLink]) -> Vec<Reason> {
    told(counts, |count| {
        let of = workers.iter().map(|worker| (count.read)(&worker.counters));
        of.max().unwrap_or(0)
    })
}

fn told(
    counts: &[Count<WorkerCounters>],
    total: impl Fn(&Count<WorkerCounters>) -> u64,
) -> Vec<Reason> {
    let all = counts.iter().map(|count| reason(count, total(count)));
    all.filter(|reason| reason.count > 0).collect()
}

fn reason<T>(count: &Count<T>, total: u64) -> Reason {
    Reason {
        reason: count.token.into(),
        count: total,
        explanation: count.explanation.into(),
    }
}

/// Why packets were given to management or the kernel.
pub(super) fn passed(workers: &[WorkerLink]) -> Vec<Reason> {
    sum(PASSED, workers)
}

/// Why packets were given to another worker.
pub(super) fn handed_over(workers: &[WorkerLink]) -> Vec<Reason> {
    sum(HANDED_OVER, workers)
}

/// All else.
pub(super) fn others(workers: &[WorkerLink], net: net::Counters) -> Vec<Reason> {
    let of_management = MANAGEMENT.iter().map(|c| reason(c, (c.read)(&net)));
    let of_management = of_management.filter(|reason| reason.count > 0);
    sum(WORKERS, workers)
        .into_iter()
        .chain(largest(FULLEST, workers))
        .chain(of_management)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::Pass;

    /// The rows of one section of the page.
    fn documented(title: &str) -> Vec<String> {
        let page = include_str!("../../../docs/drop-reasons.md");
        let start = page.find(&format!("## {title}\n")).expect("the section");
        let section = &page[start + 3..];
        let section = section.split("\n## ").next().unwrap_or_default();
        let token = |row: &str| Some(row.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        section.lines().filter_map(token).collect()
    }

    #[test]
    fn the_page_has_every_word_and_no_other() {
        let tokens = |counts: &[Count<WorkerCounters>]| -> Vec<&str> {
            counts.iter().map(|count| count.token).collect()
        };
        let management = MANAGEMENT.iter().map(|count| count.token);
        assert_eq!(documented("Passed on"), tokens(PASSED));
        assert_eq!(documented("Handed over"), tokens(HANDED_OVER));
        let others: Vec<_> = tokens(WORKERS)
            .into_iter()
            .chain(tokens(FULLEST))
            .chain(management)
            .collect();
        assert_eq!(documented("Other counts"), others);
        let reasons: Vec<_> = DropReason::ALL.iter().map(|r| r.token()).collect();
        let page = include_str!("../../../docs/drop-reasons.md");
        let first = page.split("\n## ").next().unwrap_or_default();
        let rows = first.lines().filter(|line| line.starts_with("| `"));
        assert_eq!(rows.count(), reasons.len());
        for pass in [Pass::Local, Pass::Check, Pass::Resolve] {
            assert!(tokens(PASSED).contains(&pass.token()));
        }
    }

    #[test]
    fn the_reasons_to_hand_over_add_up() {
        let counters = WorkerCounters::new(1);
        counters.handed_off.add(10);
        counters.dropped[DropReason::HandoffFull as usize].add(3);
        counters.handed_fragments.add(4);
        counters.handed_errors.add(2);
        counters.handed_persistent.add(1);
        let counts: Vec<u64> = HANDED_OVER.iter().map(|c| (c.read)(&counters)).collect();
        assert_eq!(counts, [6, 4, 2, 1]);
        assert_eq!(counts.iter().sum::<u64>(), 13);
    }
}
