//! A million mutated frames, and a second opinion on each.
//!
//! `generate` makes sound frames of balanced flows and damages some of them, field by field.
//! `judge` reads them with smoltcp's wire types and its own model of the rules, and says what must
//! become of them. It shares no code with the balancer.

mod generate;
mod judge;
mod look;
mod world;

use std::collections::BTreeMap;

use evenkeel::lb::Verdict;
use evenkeel::lb::counters::DropReason;
use generate::Random;
use judge::{Expect, Judge};
use world::{Run, World};

const FRAMES: usize = 1_000_000;

#[test]
fn an_independent_oracle_agrees_about_a_million_frames() {
    let mut random = Random::new(0x6576_656e_6b65_656c);
    let mut met: BTreeMap<&'static str, usize> = BTreeMap::new();
    let (mut frames, mut forwarded) = (0, 0);
    for world in World::all() {
        let mut judge = Judge::new(&world);
        // Of the full table only a look is taken; hardly a frame there is judged.
        let until = if judge.is_tiny() {
            frames
        } else {
            frames + FRAMES / 4
        };
        let mut sent_here = 0;
        let mut run = Run::new(world);
        while frames < until || sent_here < 20_000 {
            sent_here += 1;
            run.disturb(&mut random, &mut judge);
            let sent = run.frame(&mut random);
            let expected = judge.judge(&sent);
            // The model knows nothing of fragments, nor of the flows that they open.
            if expected == Expect::Unjudged && !judge.is_tiny() {
                continue;
            }
            let outcome = run.process(&sent);
            let context = || format!("{}: {sent:?}\n{outcome:?}", run.name());
            assert!(
                expected.allows(outcome.verdict),
                "{expected:?} {}",
                context()
            );
            judge.learn(&sent, expected, &outcome, &context);
            *met.entry(word(outcome.verdict)).or_default() += 1;
            let judged = expected != Expect::Unjudged;
            forwarded += usize::from(judged && outcome.verdict == Verdict::Transmit(0));
            frames += usize::from(judged);
        }
    }
    assert!(frames >= FRAMES);
    println!("{forwarded} of {frames} forwarded; {met:?}");
    assert!(
        forwarded * 10 >= frames * 3,
        "only {forwarded} deserved forwarding"
    );
    for reason in DropReason::ALL {
        let met = met.contains_key(reason.token());
        assert_eq!(met, PURE.contains(reason), "{}", reason.token());
    }
}

/// The reasons that arise in the pure core with this configuration; the others are a worker's, or
/// need FullNAT, limits or fragments that wait.
const PURE: &[DropReason] = &[
    DropReason::Truncated,
    DropReason::MalformedIp,
    DropReason::MalformedL4,
    DropReason::BadIpChecksum,
    DropReason::ForeignMac,
    DropReason::BroadcastMac,
    DropReason::BadSource,
    DropReason::TtlExpired,
    DropReason::Untracked,
    DropReason::NoBackend,
    DropReason::BackendGone,
    DropReason::NoNeighbour,
    DropReason::ReplyConflict,
    DropReason::TableFull,
    DropReason::TooBig,
    DropReason::NoHeadroom,
    DropReason::Segmented,
    DropReason::IcmpUnrelated,
    DropReason::NoBuffer,
];

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Transmit(_) => "(forward)",
        Verdict::Pass(pass) => pass.token(),
        Verdict::Drop(reason) | Verdict::Reply { reason, .. } => reason.token(),
        Verdict::HandOff(_) => "(hand-off)",
        Verdict::Hold(_) => "(hold)",
    }
}
