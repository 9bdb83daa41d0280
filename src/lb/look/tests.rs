use proptest::prelude::*;

use crate::lb::cluster::Cluster;
use crate::lb::fixture::{Lab, VIP, VIP6, tcp4, udp4, udp6};
use crate::lb::frame::{Frame, MemoryFrame, Note};
use crate::lb::owner::Ownership;
use crate::lb::parse::tcp;
use crate::lb::snapshot::{ForwardMethod, Scheduler};
use crate::lb::{Arrival, MAX_BURST, Verdict};

/// A frame of one of the sorts that the passes tell apart.
fn frame(sort: usize, client: u16) -> Vec<u8> {
    let v4 = format!("10.9.9.9:{client}");
    match sort {
        0 => udp6(&format!("[2001:db8::9]:{client}"), VIP6).frame(),
        1 => tcp4(&v4, VIP).flags(tcp::SYN).frame(),
        2 => udp4(&v4, VIP).options(&[1; 4]).frame(),
        3 => udp4(&v4, VIP).macs([2, 0, 0, 0, 9, 9], [2; 6]).frame(),
        4 => vec![0; 60],
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

proptest! {
    /// A burst comes to what its frames come to one by one. Those of other workers are behind the others.
    #[test]
    fn frames_of_several_owners_may_come_in_one_burst(
        workers in 2u8..6,
        method in prop::sample::select(vec![ForwardMethod::DirectRouting, ForwardMethod::Nat]),
        connections in prop::sample::select(vec![1000, 100_000]),
        sent in prop::collection::vec((0usize..16, 1u16..40), 1..=MAX_BURST),
    ) {
        let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1, 1, 1]);
        lab.snapshot.ownership = Ownership { reta: 128, workers, compute: true };
        let world = || Cluster::new(workers.into(), connections);
        let frames = || sent.iter().map(|&(sort, client)| MemoryFrame::new(&frame(sort, client)));

        let (mut at_once, mut one_by_one) = (world(), world());
        // What was new is settled in the end.
        for _ in 0..3 {
            let (mut own, mut others, mut elsewhere) = (Vec::new(), Vec::new(), 0);
            for (n, mut frame) in frames().enumerate() {
                let frame = std::slice::from_mut(&mut frame);
                let (decided, verdicts) =
                    one_by_one.burst(&lab.snapshot, 0, Arrival::Port(0), frame);
                elsewhere |= decided.elsewhere << n;
                let side = if decided.own == 0 { &mut others } else { &mut own };
                side.push(end(verdicts[0], &frame[0]));
            }

            let mut frames: Vec<_> = frames().collect();
            let (decided, verdicts) =
                at_once.burst(&lab.snapshot, 0, Arrival::Port(0), &mut frames);
            prop_assert_eq!((decided.elsewhere, decided.own), (elsewhere, own.len()));
            let owners: Vec<_> = others.iter().map(|(verdict, ..)| *verdict).collect();
            let first = owners.first().filter(|&first| owners.iter().all(|owner| owner == first));
            prop_assert_eq!(decided.owner.map(Verdict::HandOff), first.copied());
            let ends = frames.iter().zip(verdicts).map(|(frame, verdict)| end(verdict, frame));
            let alone: Vec<_> = own.into_iter().chain(others).collect();
            prop_assert_eq!(ends.collect::<Vec<_>>(), alone);
        }
    }
}
