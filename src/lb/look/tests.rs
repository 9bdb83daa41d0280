use std::net::Ipv4Addr;

use proptest::prelude::*;

use crate::lb::cluster::Cluster;
use crate::lb::exits::Exit;
use crate::lb::fixture::{Lab, VIP, VIP6, tcp4, udp4, udp6};
use crate::lb::fragment::tests::cut;
use crate::lb::frame::{Frame, MemoryFrame, Note};
use crate::lb::owner::Ownership;
use crate::lb::owner::tests::error;
use crate::lb::parse::tcp;
use crate::lb::snapshot::{ForwardMethod, Scheduler};
use crate::lb::{Arrival, MAX_BURST, Verdict};

/// A frame of one of the sorts that the passes tell apart, most often a plain packet.
fn frame(sort: usize, client: u16) -> Vec<u8> {
    let v4 = format!("10.9.9.9:{client}");
    let fragments = || cut(&udp4(&v4, VIP).payload(&[7; 40]).frame(), 7, &[16]);
    match sort {
        0 => udp6(&format!("[2001:db8::9]:{client}"), VIP6).frame(),
        1 => tcp4(&v4, VIP).flags(tcp::SYN).frame(),
        2 => udp4(&v4, VIP).options(&[1; 4]).frame(),
        3 => udp4(&v4, VIP).macs([2, 0, 0, 0, 9, 9], [2; 6]).frame(),
        4 => vec![0; 60],
        5 => udp4("10.0.1.1:8080", &v4).frame(),
        6 | 7 => fragments().swap_remove(sort - 6),
        8 => error(Ipv4Addr::new(10, 9, 9, 9), &udp4(&v4, VIP).frame()),
        _ => udp4(&v4, VIP).frame(),
    }
}

/// What became of a frame, with what there is to say about it where it is handed over.
type End = (Verdict, Vec<u8>, Option<Note>);

fn end(verdict: Verdict, frame: &MemoryFrame) -> End {
    let handed = matches!(verdict, Verdict::HandOff(_));
    (
        verdict,
        frame.bytes().to_vec(),
        handed.then(|| frame.note()),
    )
}

/// The verdict on all of them, where there is one.
fn only(mut verdicts: impl Iterator<Item = Verdict>) -> Option<Verdict> {
    let first = verdicts.next()?;
    verdicts.all(|verdict| verdict == first).then_some(first)
}

proptest! {
    /// A burst comes to what its frames come to one by one. Packets of other workers are behind the
    /// worker's own frames, but where one of these is handed over too.
    #[test]
    fn frames_of_several_owners_may_come_in_one_burst(
        workers in 2u8..6,
        method in prop::sample::select(ForwardMethod::ALL.to_vec()),
        connections in prop::sample::select(vec![1000, 100_000]),
        sent in prop::collection::vec((0usize..24, 1u16..40), 1..=MAX_BURST),
    ) {
        let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1, 1, 1]);
        lab.snapshot.ownership = Ownership { reta: 128, workers, compute: true };
        let world = || Cluster::new(workers.into(), connections);
        let frames = || sent.iter().map(|&(sort, client)| MemoryFrame::new(&frame(sort, client)));

        let (mut at_once, mut one_by_one) = (world(), world());
        // What was new is settled in the end.
        for _ in 0..3 {
            let (mut alone, mut elsewhere) = (Vec::new(), 0);
            for (n, mut frame) in frames().enumerate() {
                let frame = std::slice::from_mut(&mut frame);
                let (decided, verdicts) =
                    one_by_one.burst(&lab.snapshot, 0, Arrival::Port(0), frame);
                elsewhere |= decided.elsewhere << n;
                alone.push(end(verdicts[0], &frame[0]));
            }
            let parted = alone.iter().enumerate().partition(|(n, _)| elsewhere >> n & 1 == 0);
            let (mut own, mut others): (Vec<_>, Vec<_>) = parted;
            let handed = |&(_, (verdict, ..)): &(usize, &End)| matches!(verdict, Verdict::HandOff(_));
            if !others.is_empty() && own.iter().any(handed) {
                elsewhere = 0;
                own.append(&mut others);
                own.sort_by_key(|&(n, _)| n);
            }

            let mut frames: Vec<_> = frames().collect();
            let (decided, verdicts) =
                at_once.burst(&lab.snapshot, 0, Arrival::Port(0), &mut frames);
            prop_assert_eq!((decided.elsewhere, decided.own), (elsewhere, own.len()));
            let verdict = |&(_, (verdict, ..)): &(usize, &End)| *verdict;
            prop_assert_eq!(decided.owner.map(Verdict::HandOff), only(others.iter().map(verdict)));
            let exit = match only(own.iter().map(verdict)) {
                Some(Verdict::Transmit(port)) => {
                    let bytes = own.iter().map(|(_, (_, bytes, _))| bytes.len() as u64).sum();
                    Some(Exit { port, bytes })
                }
                _ => None,
            };
            prop_assert_eq!(decided.exit, exit);
            let ends = frames.iter().zip(verdicts).map(|(frame, verdict)| end(verdict, frame));
            let wanted: Vec<_> = own.into_iter().chain(others).map(|(_, end)| end.clone()).collect();
            prop_assert_eq!(ends.collect::<Vec<_>>(), wanted);
        }
    }
}
